"""The worker's image, built of a clone in three steps: dependencies, weights or a model prepared of them, code.

Each step is an image of its own below the next. The first two are named after what is in them and are built once, so
that after a change of the code a build takes seconds. Talks to the engine through the `docker` program.
"""

import os
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from uworker.prepared import files as prepared_files
from uworker.prepared.files import Prepared
from uworker.snapshot.builder import BuildError, Context, build, digest_of, inspect, require_engine, run
from uworker.snapshot.tree import Revision, code_files, revision_of
from uworker.weights import FOLDER, Weights, find_weights, model_directory

__all__ = [
    "BuildError",
    "BuiltImage",
    "ImageRequest",
    "Layer",
    "build_image",
    "dependencies_tag",
    "ensure_dependencies",
]

BASE = "debian:bookworm-slim"
DEPENDENCIES, WEIGHTS = "decimer-jobs-worker-dependencies", "decimer-jobs-worker-weights"
LABEL = "decimer-jobs"
_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_MODELS = {False: ("DECIMER",), True: ("DECIMER", "DECIMER_HandDrawn")}
# The package puts such a file there where there is none, and in the image nothing can be put.
_README = b"DECIMER's weights, as the decimer package looks for them.\n"
# What stands in the history of an image for each layer; what it does not name is the base.
_MADE_BY = {"/opt/venv": "dependencies", "/opt/weights": "weights", "/opt/decimer-jobs": "code", "apt-get": "Python"}

Say = Callable[[str], None]


@dataclass(frozen=True)
class ImageRequest:
    """What is to be built.

    Attributes:
        tag: Name and tag of the image.
        snapshot: Its name; rows get this and the commit, such as `patents_261121 (d245ece, changed)`.
        source: The clone.
        weights: Baked in; None: the small image without an engine, for a worker whose recogniser is elsewhere.
        gpu: With TensorFlow for CUDA.
        prepared: Baked in instead of the weights that it was made of, and recognises without TensorFlow.
    """

    tag: str
    snapshot: str
    source: Path
    weights: Weights | None
    gpu: bool = False
    prepared: Prepared | None = None


@dataclass(frozen=True)
class Layer:
    """A part of an image and its size, uncompressed."""

    what: str
    size_bytes: int


@dataclass(frozen=True)
class BuiltImage:
    """An image in the engine.

    Attributes:
        tag: As asked for.
        image_id: `sha256:` and 64 hexadecimal digits.
        size_bytes: Uncompressed.
        layers: From the base up.
        snapshot: What rows get.
        revision: The commit, or "unknown".
        dirty: The clone was not as in the commit.
    """

    tag: str
    image_id: str
    size_bytes: int
    layers: list[Layer]
    snapshot: str
    revision: str
    dirty: bool


def build_image(request: ImageRequest, say: Say) -> BuiltImage:
    """Build the image, of what lies in the clone now, and of what earlier builds have left.

    Args:
        request: what to build.
        say: told each step as a line for people.

    Raises:
        BuildError: it cannot be built; says in one line what to do. `say` has been told the builder's last lines.
    """
    require_engine()
    revision = revision_of(request.source)
    parent = ensure_dependencies(request, say)
    if request.weights is not None:
        parent = _ensure_weights(request, request.weights, parent, say)
    snapshot = f"{request.snapshot} ({revision})"
    began = time.monotonic()
    image_id = _build_code(request, parent, snapshot, revision, say)
    say(f"code: {revision}, built in {time.monotonic() - began:.1f} s")
    size = int(inspect(image_id, "{{.Size}}") or 0)
    layers = list(_layers(image_id))
    return BuiltImage(request.tag, image_id, size, layers, snapshot, revision.commit, revision.dirty)


def dependencies_tag(request: ImageRequest) -> str:
    """Name the image with what this kind of worker needs: the same name, the same content.

    Raises:
        BuildError: a file that it is made of is missing, or there is no docker.
    """
    kind = _kind(request)
    # So that a newer base, with Debian's security updates, is built on: `docker pull` brings one. Layers, not the id,
    # for that is new whenever the same base is imported. Where the builder keeps the base to itself, none are known.
    base = inspect(BASE, "{{json .RootFS.Layers}}") or ""
    return f"{DEPENDENCIES}:{kind.name}-{digest_of(_dependency_files(request.source), BASE, base)}"


class _Kind(NamedTuple):
    """What tags call it, what people are told, the extras of pyproject.toml that are installed, and the group."""

    name: str
    said: str
    extras: str
    group: str


def _kind(request: ImageRequest) -> _Kind:
    if request.weights is None:
        return _Kind("worker-base", "without TensorFlow", "worker-base", "")
    if request.prepared is not None:
        return _Kind("prepared", "for a prepared model", "worker-base prepared", "")
    group = "gpu" if request.gpu else "cpu"
    return _Kind(group, group, "worker", group)


def _dependency_files(source: Path) -> Context:
    docker = source / "docker"
    context: Context = {
        "Dockerfile": docker / "worker" / "dependencies.Dockerfile",
        "install-dependencies.sh": docker / "install-dependencies.sh",
        "pyproject.toml": source / "pyproject.toml",
        "slim.sh": docker / "worker" / "slim.sh",
        "uv.lock": source / "uv.lock",
    }
    _require(context)
    return context


def ensure_dependencies(request: ImageRequest, say: Say) -> str:
    """Return the name of the image with the dependencies, and build it where it is missing.

    Raises:
        BuildError: as `build_image`.
    """
    tag = dependencies_tag(request)
    kind = _kind(request)
    # The certificates are those of this machine, and no part of what is built.
    context = {**_dependency_files(request.source), "ca-bundle.crt": _ca_bundle()}
    arguments = {"BASE": BASE, "EXTRA": kind.extras, "GROUP": kind.group}
    _ensure(tag, f"dependencies ({kind.said})", context, arguments, say)
    return tag


def _ensure_weights(request: ImageRequest, weights: Weights, parent: str, say: Say) -> str:
    """The weights, or the model prepared of them, on top of the dependencies."""
    context: Context = {"Dockerfile": request.source / "docker" / "worker" / "weights.Dockerfile"}
    _require(context)
    prepared = request.prepared
    if prepared is None:
        what, known_by = "weights", (weights.sha256, weights.name)
    else:
        # The same model may have been proved anew.
        report = prepared.directory / prepared_files.REPORT
        what, known_by = "prepared model", (prepared.sha256, digest_of({"report": report}))
    tag = f"{WEIGHTS}:{digest_of(context, parent, *known_by)}"
    if inspect(tag, "{{.Id}}") is not None:
        say(f"{what}: built before")
        return tag
    files = _weight_files(weights) if prepared is None else _prepared_files(prepared)
    _ensure(tag, f"{what} ({weights.name})", {**context, **files}, {"PARENT": parent}, say)
    return tag


def _weight_files(weights: Weights) -> Context:
    """The files of the model whose digest the weights have; nothing else that lies beside it.

    Raises:
        BuildError: there is no such model any more.
    """
    for hand_drawn, models in _MODELS.items():
        found = find_weights(weights.home, hand_drawn=hand_drawn)
        if found is not None and found.sha256 == weights.sha256:
            folders = (model_directory(weights.home, model) for model in models)
            files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
            context = {f"weights/{path.relative_to(weights.home).as_posix()}": path for path in files}
            return {**context, "weights/README.md": _README}
    raise BuildError(f"the weights below {weights.home / FOLDER} are not those of sha256 {weights.sha256}; start again")


def _prepared_files(prepared: Prepared) -> Context:
    """The files of the prepared model, where a worker looks for them; the weights are no longer needed.

    Raises:
        BuildError: it is another one by now.
    """
    directory = prepared.directory
    try:
        sha256 = prepared_files.digest_of(directory)
    except OSError as error:
        raise BuildError(f"the prepared model {directory} cannot be read: {error}") from None
    if sha256 != prepared.sha256:
        raise BuildError(f"the prepared model {directory} is not that of sha256 {prepared.sha256}; start again")
    names = (prepared_files.ENCODER, prepared_files.STEP, prepared_files.ABOUT, prepared_files.REPORT)
    return {f"weights/{FOLDER}/{directory.name}/{name}": directory / name for name in names}


def _ensure(tag: str, what: str, context: Context, arguments: dict[str, str], say: Say) -> None:
    if inspect(tag, "{{.Id}}") is not None:
        say(f"{what}: built before")
        return
    say(f"{what}: building, which takes minutes the first time")
    began = time.monotonic()
    build(tag, context, say, arguments=arguments, labels={f"{LABEL}.part": what})
    say(f"{what}: built in {time.monotonic() - began:.0f} s")


def _build_code(request: ImageRequest, parent: str, snapshot: str, revision: Revision, say: Say) -> str:
    worker = request.source / "docker" / "worker"
    version = tomllib.loads((request.source / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    metadata = f"Metadata-Version: 2.1\nName: decimer-jobs\nVersion: {version}\n".encode()
    context: dict[str, Path | bytes] = {
        "Dockerfile": worker / "Dockerfile",
        "bin/uworker": worker / "uworker",
        "bin/uworker-alive": worker / "uworker-alive",
        # As an installation leaves it: where the version is looked up.
        f"code/decimer_jobs-{version}.dist-info/METADATA": metadata,
    }
    context |= {f"code/{path.as_posix()}": request.source / path for path in code_files(request.source)}
    _require(context)
    weights = request.weights
    labels = {
        "org.opencontainers.image.title": "decimer-jobs worker",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": revision.commit,
        "org.opencontainers.image.created": datetime.now(UTC).isoformat(timespec="seconds"),
        "org.opencontainers.image.licenses": "MIT",
        f"{LABEL}.snapshot": snapshot,
        # An image has the labels of the one below it, but for those of its own.
        f"{LABEL}.part": "code",
        f"{LABEL}.changed": str(revision.dirty).lower(),
        f"{LABEL}.weights": weights.name if weights else "",
        f"{LABEL}.weights-sha256": weights.sha256 if weights else "",
        f"{LABEL}.prepared": request.prepared.sha256 if request.prepared else "",
    }
    arguments = {"PARENT": parent, "SNAPSHOT": snapshot, "WEIGHTS_SHA256": weights.sha256 if weights else ""}
    return build(request.tag, context, say, arguments=arguments, labels=labels)


def _require(context: Context) -> None:
    for content in context.values():
        if isinstance(content, Path) and not content.is_file():
            raise BuildError(f"{content} is missing; build in a complete clone")


def _ca_bundle() -> Path | bytes:
    """The certificates that this machine believes: where a proxy inspects TLS, PyPI is not reached without."""
    path = Path(os.environ.get("SSL_CERT_FILE") or _CA_BUNDLE)
    return path if path.is_file() else b""


def _layers(image_id: str) -> Iterable[Layer]:
    """What an image is made of, from the base up; neighbours of one name are one."""
    history = run("history", "--no-trunc", "--human=false", "--format={{.Size}}\t{{.CreatedBy}}", image_id).stdout
    sizes: dict[str, int] = {}
    for line in reversed(history.splitlines()):
        size, _, made_by = line.partition("\t")
        if not int(size):
            continue  # a label or a setting, and no layer
        what = next((name for sign, name in _MADE_BY.items() if sign in made_by), "code" if sizes else BASE)
        sizes[what] = sizes.get(what, 0) + int(size)
    return [Layer(what, size) for what, size in sizes.items()]
