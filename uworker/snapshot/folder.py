"""The folder of a snapshot, `decimer_snapshot_PROJECT_YYMMDD`: whole or not there at all.

Of its files `worker.env` alone holds a secret, the workers' token.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from job_api.locations import BadLocation, locate
from uworker.snapshot.access import SnapshotError
from uworker.snapshot.images import BuiltImage

COMPOSE, START, ENVIRONMENT, IMAGE = "docker-compose.yml", "start_worker.sh", "worker.env", "docker_image"
REPOSITORY, ENGINE_REPOSITORY = "decimer-worker", "decimer-engine"
_PREFIX = "decimer_snapshot_"
# Around lines of the compose file that stand there only in some snapshots.
_IF, _END = "#IF ", "#END"

_ENVIRONMENT = """\
# What the workers that are started from this folder are told. The token is a secret: keep this file to yourself.
# One NAME=value to a line; a value with a $, a # or a space in it stands between single quotes, and a ' in it is \\'.
# After a change: bash {start}

UWORKER_JOB_API_ROOT={root}
# Another project needs another name here, and a token that may see it:
# job-api token add NAME --role worker --project PROJECT --config CONFIG
UWORKER_JOB_API_PROJECT={project}
UWORKER_JOB_API_TOKEN={token}

# A folder of this machine that the workers see, under its own name, for projects whose source is such a folder.
WORKER_MOUNT={mount}
# A file of this machine with the certificates that the workers believe, where the service or a proxy has its own
# authority, such as /etc/ssl/certs/ca-certificates.crt; empty: those that Debian believes.
WORKER_CA_FILE=
# false where workers write there, for projects with results_file; user 10001 must be let in.
WORKER_MOUNT_READ_ONLY=true
# The most memory {whose} may use, such as 12g; empty: what the machine has.
WORKER_MEMORY_LIMIT=

# Credentials for storage and other settings of the worker, as in docs/settings.md, such as:
# AZURE_STORAGE_ACCOUNT_NAME=
# AZURE_STORAGE_ACCOUNT_KEY=
# AWS_ACCESS_KEY_ID=
# AWS_SECRET_ACCESS_KEY=
# UWORKER_SOURCE_ALLOW=
"""
_ENVIRONMENT_GPU = """
# Which GPUs this worker has, such as 0; another folder's worker may have others.
NVIDIA_VISIBLE_DEVICES=all
# One process for each GPU, since the memory of a GPU is not looked at.
UWORKER_PROCESSES=1
"""


def free_name(parent: Path, project: str, day: date) -> str:
    """The snapshot's name, such as patents_261121, or patents_261121_2 where that folder is there already.

    A folder is never replaced: machines may run it, somebody may copy it, and its worker.env may have been edited.
    """
    name = f"{project}_{day:%y%m%d}"
    number = 1
    while (parent / f"{_PREFIX}{name}").exists():
        number += 1
        name = f"{project}_{day:%y%m%d}_{number}"
    return name


@dataclass(frozen=True)
class NewFolder:
    """A folder that is being filled.

    Attributes:
        path: Where it lies now, hidden.
        final: What it will be called.
    """

    path: Path
    final: Path

    def finish(self) -> None:
        """Give it its name.

        Raises:
            SnapshotError: somebody else was quicker, or it cannot be done.
        """
        try:
            self.path.chmod(0o755)
            # Fails where a folder of that name was made and filled meanwhile.
            self.path.rename(self.final)
        except OSError as error:
            raise SnapshotError(f"{self.final} cannot be made ({error.strerror}); start again") from error


@contextmanager
def new_folder(parent: Path, snapshot: str) -> Iterator[NewFolder]:
    """A folder to fill; it is removed unless it is finished.

    Raises:
        SnapshotError: nothing can be written there.
    """
    final = parent / f"{_PREFIX}{snapshot}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=parent))
    except OSError as error:
        raise SnapshotError(f"{parent} cannot be written to ({error.strerror}); name another with --output") from error
    try:
        yield NewFolder(path, final)
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Images:
    """What a snapshot's machines load.

    Attributes:
        worker: The image of the worker: the whole one, or the small one of a worker whose engine is apart.
        engine: The whole one, where it is a container of its own.
    """

    worker: BuiltImage
    engine: BuiltImage | None = None

    @property
    def size_bytes(self) -> int:
        """Uncompressed, and at most: they share their lowest layers."""
        return self.worker.size_bytes + (self.engine.size_bytes if self.engine else 0)

    def tags(self, snapshot: str) -> dict[str, str]:
        """The names under which machines load them -> their ids. Who has an image of that name has that image."""
        images = {REPOSITORY: self.worker} | ({ENGINE_REPOSITORY: self.engine} if self.engine else {})
        return {f"{name}:{snapshot}-{_short(image.image_id)}": image.image_id for name, image in images.items()}


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]


def require_room(folder: Path, images: Images) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        SnapshotError: it is too small; says by how much.
    """
    free = shutil.disk_usage(folder).free
    if free < images.size_bytes:
        raise SnapshotError(
            f"only {free / 1e9:.1f} GB are free at {folder.parent}, and the image may need "
            f"{images.size_bytes / 1e9:.1f}; make room, or name another folder with --output"
        )


def write_recipe(folder: Path, source: Path, snapshot: str, images: Images, *, size_bytes: int, gpu: bool) -> None:
    """Write the compose file and the start script; `size_bytes` are those of the images, unpacked.

    Raises:
        SnapshotError: they cannot be written.
    """
    recipe = source / "docker" / "worker"
    tags = list(images.tags(snapshot))
    facts = {
        "@SNAPSHOT@": snapshot,
        "@IMAGE@": tags[0],
        "@IMAGE_ID@": images.worker.image_id,
        "@SIZE_BYTES@": str(size_bytes),
    }
    if images.engine is not None:
        facts |= {"@ENGINE_IMAGE@": tags[1], "@ENGINE_IMAGE_ID@": images.engine.image_id}
    words = {"alone" if images.engine is None else "apart"} | ({"gpu"} if gpu else set())
    with _writing(folder):
        text = "".join(_chosen((recipe / COMPOSE).read_text(encoding="utf-8"), words))
        for mark, fact in facts.items():
            text = text.replace(mark, fact)
        (folder / COMPOSE).write_text(text, encoding="utf-8")
        shutil.copy(recipe / START, folder / START)


def _chosen(text: str, words: set[str]) -> Iterator[str]:
    """The lines that stand in no `#IF WORD`, or only in those whose words are among these."""
    hold = list[bool]()
    for line in text.splitlines(keepends=True):
        mark = line.strip()
        if mark.startswith(_IF):
            hold.append(mark.removeprefix(_IF) in words)
        elif mark == _END:
            hold.pop()
        elif all(hold):
            yield line


@dataclass(frozen=True)
class Told:
    """What the workers of a snapshot are told.

    Attributes:
        root: Address of the job service.
        project: What they work on.
        token: The secret.
        source: Of the project, as far as it is known.
    """

    root: str
    project: str
    token: str = field(repr=False)
    source: str | None


def write_environment(folder: Path, told: Told, *, gpu: bool, engine_apart: bool) -> None:
    """Write the one file that holds the token; nobody but its owner can read it, not even for a moment.

    Raises:
        SnapshotError: it cannot be written, or the name of the source's folder cannot stand in it.
    """
    text = _ENVIRONMENT.format(
        start=START,
        root=told.root,
        project=told.project,
        token=told.token,
        mount=_quoted(_mount_of(told.source)),
        whose="the engine" if engine_apart else "a worker",
    )
    with _writing(folder):
        descriptor = os.open(folder / ENVIRONMENT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + (_ENVIRONMENT_GPU if gpu else ""))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = error.filename or folder.parent
        raise SnapshotError(
            f"the snapshot cannot be written: {what}: {error.strerror or error}; make room, or name another folder "
            "with --output"
        ) from error


def _mount_of(source: str | None) -> str:
    """The folder that a project's directories lie in, where that is one of the machine."""
    try:
        location = locate(source) if source else None
    except BadLocation:
        return ""
    return f"/{location.prefix}" if location is not None and location.kind == "file" else ""


def _quoted(text: str) -> str:
    """As a value in worker.env, which start_worker.sh and both kinds of compose read alike."""
    if all(character.isalnum() or character in "/._-" for character in text):
        return text
    # What is escaped is read differently, and what follows a line's end is another setting.
    if "\\" in text or not text.isprintable():
        raise SnapshotError(
            f"the folder {text!r} cannot stand in {ENVIRONMENT}; give it a name without backslashes and control "
            "characters"
        )
    return "'" + text.replace("'", "\\'") + "'"
