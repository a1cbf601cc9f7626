"""One `docker build`: a context put together of chosen files, sent to the builder as it is made.

Nothing is copied to disk first, and nothing else of the clone is read or sent.
"""

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Context = Mapping[str, Path | bytes]
"""Path in the context -> a file on disk, or its content."""

LAST_LINES = 15
PRUNE = "docker image prune --all --filter label=decimer-jobs.part --filter 'label!=decimer-jobs.snapshot'"
# What stands in the last lines, in lower case -> what to do; the first that is found counts. Whole phrases, since lines
# that tell of no fault speak of certificates and resolving, too.
_ADVICE = {
    ("no space left",): f"make room where docker keeps its images: {PRUNE}",
    ("x509", "certificate verif", "certificate_verif", "peer certificate"): (
        "believe this network's certificates: SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt ./build_snapshot.sh …; "
        "where docker itself pulls, add them to the machine's (update-ca-certificates) and restart docker"
    ),
    (
        *("could not resolve", "failure resolving", "name resolution", "no such host", "lookup address"),
        *("name or service not known", "timeout", "timed out", "unreachable"),
    ): (
        "see that PyPI, Debian's servers and docker's registry can be reached, or set HTTPS_PROXY, for docker's own "
        "service too; then start again: what was built is kept"
    ),
}
# Docker hands these to what it runs while it builds, and keeps them in no layer and no history. Their values may hold a
# password, so docker is to take them from the environment.
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


class BuildError(Exception):
    """An image cannot be built; the message is one line that says what to do."""


def build(
    tag: str,
    context: Context,
    say: Callable[[str], None],
    *,
    arguments: Mapping[str, str],
    labels: Mapping[str, str] | None = None,
) -> str:
    """Build an image of a context that has a `Dockerfile`, with the network of this machine; returns its id.

    By then the tag may be another image's, where two builds give the same.

    Raises:
        BuildError: it failed; `say` was told the builder's last lines.
    """
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    options += [f"--build-arg={name}" for name in _PROXIES if os.environ.get(name)]
    options += [f"--label={name}={value}" for name, value in (labels or {}).items()]
    last = deque[str](maxlen=LAST_LINES)
    with tempfile.TemporaryDirectory(prefix="decimer-jobs-") as folder:
        id_file = Path(folder) / "id"
        options += [f"--tag={tag}", f"--iidfile={id_file}"]
        with _start("build", "--network=host", *options, "-") as process:
            sender = _Sender(context, process)
            for line in process.stdout or ():
                last.append(line.decode(errors="replace").rstrip())
            sender.join()
        image_id = id_file.read_text(encoding="ascii").strip() if id_file.is_file() else ""
    if sender.error is not None:
        raise BuildError(f"the files for {tag} cannot be read: {sender.error}")
    if process.returncode != 0:
        for said in last:
            say(f"  {said}")
        raise BuildError(f"docker build of {tag} failed; its last lines are above{advice(last)}")
    if not image_id or inspect(image_id, "{{.Id}}") is None:
        raise BuildError(
            "docker built an image and did not keep it; use the engine's own builder: docker buildx use default"
        )
    return image_id


def advice(said: Iterable[str]) -> str:
    """What to do about docker's last lines, to be added to a message; empty where they say nothing that is known."""
    text = "\n".join(said).lower()
    return next((f"; {what}" for signs, what in _ADVICE.items() if any(sign in text for sign in signs)), "")


def inspect(image: str, template: str) -> str | None:
    """What docker says of an image; None where there is no such image."""
    done = run("image", "inspect", f"--format={template}", image)
    return done.stdout.strip() if done.returncode == 0 else None


def require_engine() -> None:
    """See that there is an engine to build with.

    Raises:
        BuildError: there is none that answers.
    """
    done = run("version", "--format={{.Server.Version}}")
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise BuildError(f"the Docker engine does not answer ({reason[0]}); start it, or see that this user may use it")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run docker to its end and return what it said.

    Raises:
        BuildError: there is no docker.
    """
    with _start(*arguments, stderr=subprocess.PIPE) as process:
        stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, stdout.decode(), stderr.decode(errors="replace"))


def digest_of(context: Context, *more: str) -> str:
    """Twelve hexadecimal digits that change when a file of the context, or one of the other texts, does."""
    digest = hashlib.sha256()
    for name in sorted(context):
        content = context[name]
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).digest())
    for text in more:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()[:12]


def _start(*arguments: str, stderr: int = subprocess.STDOUT) -> "subprocess.Popen[bytes]":
    try:
        command = ["docker", *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
    except FileNotFoundError:
        raise BuildError("docker is not installed here; see https://docs.docker.com/engine/install/") from None


class _Sender(threading.Thread):
    """Writes the context, while somebody else reads what the builder says."""

    def __init__(self, context: Context, builder: "subprocess.Popen[bytes]") -> None:
        super().__init__(daemon=True)
        self._context = context
        self._builder = builder
        self.error: OSError | None = None
        self.start()

    def run(self) -> None:
        assert self._builder.stdin is not None  # noqa: S101 (it is a pipe)
        try:
            with self._builder.stdin as pipe, tarfile.open(fileobj=pipe, mode="w|") as archive:
                for name in sorted(self._context):
                    _add(archive, name, self._context[name])
        except BrokenPipeError:
            # It ended early, and says itself why.
            return
        except OSError as error:
            self.error = error
            self._builder.kill()


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    """Add a file that is the same whoever made it and when, so that the builder knows it again."""
    entry = tarfile.TarInfo(name)
    if isinstance(content, bytes):
        entry.mode, entry.size = 0o644, len(content)
        archive.addfile(entry, io.BytesIO(content))
        return
    with content.open("rb") as file:
        status = os.fstat(file.fileno())
        entry.mode, entry.size = 0o755 if status.st_mode & 0o100 else 0o644, status.st_size
        archive.addfile(entry, file)
