"""Where results files are written: into a project's source, beside the images, whole or not at all."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Protocol

from job_api.locations import SCHEMES
from job_api.schemas import Lease
from job_api.stores import BadKey, Denied, Store, StoreError
from uworker.images import SourceError, SourceNotAllowed, StorageFault
from uworker.results_file import FILE_NAME
from uworker.settings import WorkerSettings
from uworker.sources import Sources
from uworker.sources.local import LocalSource
from uworker.sources.objects import ObjectSource

MAX_WHOLE_BYTES = 5_000_000
NOT_PERMITTED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# What file systems say that know no fsync of a directory.
NO_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
ADVICE = (
    "let the workers write there, or turn results_file off for the project (PUT /v4/PROJECT with "
    '{"results_file": false})'
)
NO_WEB = f"{FILE_NAME} cannot be written to a web server, which is this project's source; {ADVICE}"


class SourceReadOnly(SourceError):
    """Nothing can ever be written there."""

    reason = "source-read-only"
    retryable = False


class Target(Protocol):
    """A source that can be written to."""

    def write(self, lease: Lease, chunks: Iterable[bytes]) -> None:
        """Write the results file of a lease's directory, whole or not at all; one that is there is replaced.

        Whatever `chunks` raises comes through, and nothing is written then.

        Raises:
            StorageFault: it cannot be written now; says what to do.
            SourceNotAllowed: the directory leads out of the source.
        """


def require_writable(lease: Lease, settings: WorkerSettings) -> None:
    """Refuse a job whose results file could never be written, before its images are recognised.

    Raises:
        SourceReadOnly: it could not.
    """
    on_the_web = SCHEMES.get(lease.source.partition(":")[0].lower()) == "http"
    if lease.results_file and on_the_web and settings.source_root is None:
        raise SourceReadOnly(NO_WEB)


def open_target(lease: Lease, sources: Sources) -> Target:
    """Where the results file of a lease goes: to where its images are read, with what they are read with.

    Raises:
        SourceError: the worker may not go there, or does not know how, or nothing can be written there.
    """
    match sources.open(lease.source):
        case LocalSource() as source:
            return LocalTarget(Path(source.root))
        case ObjectSource() as source:
            return StoreTarget(source.store)
        case _:
            raise SourceReadOnly(NO_WEB)


class StoreTarget:
    """Object storage.

    Args:
        store: a container or bucket, or a folder in it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, lease: Lease, chunks: Iterable[bytes]) -> None:
        """See `Target`. An object takes its place when its last byte has arrived, and not before."""
        try:
            self._store.write(f"{lease.directory}/{FILE_NAME}", _whole_if_small(chunks))
        except StoreError as error:
            advice = f"; {ADVICE}" if isinstance(error, Denied | BadKey) else ""
            raise StorageFault(f"{FILE_NAME} cannot be written: {error}{advice}") from None


def _whole_if_small(chunks: Iterable[bytes]) -> bytes | Iterable[bytes]:
    """What is small as a whole: that is one request, and in pieces it would be three."""
    begun, rest, size = list[bytes](), iter(chunks), 0
    for chunk in rest:
        begun.append(chunk)
        size += len(chunk)
        if size > MAX_WHOLE_BYTES:
            return chain(begun, rest)
    return b"".join(begun)


class LocalTarget:
    """Directories of this machine, or mounted on it. Nothing outside the root is written, links included.

    Args:
        root: the directory that the jobs' directories lie in.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)

    def write(self, lease: Lease, chunks: Iterable[bytes]) -> None:
        """See `Target`. The file gets the mode of any new file; it is on disk when this returns."""
        try:
            with self._opened(lease.directory) as folder:
                _clear_up(folder, lease)
                _write(folder, _partial_name(lease.job_id, lease.lease_seq), chunks)
        except OSError as error:
            raise self._fault(lease.directory, error) from error

    @contextmanager
    def _opened(self, directory: str) -> Iterator[int]:
        """A directory below the root, opened step by step and never through a link that is put there meanwhile."""
        real = os.path.realpath(os.path.join(self._root, directory))  # noqa: PTH118
        if real != self._root and not real.startswith(self._root.rstrip("/") + "/"):
            raise SourceNotAllowed(f"the directory {directory!r} is a link that leads out of the source")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        folder = os.open(self._root, flags)
        try:
            for name in Path(real).relative_to(self._root).parts:
                inner = os.open(name, flags, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def _fault(self, directory: str, error: OSError) -> StorageFault:
        where = os.path.join(self._root, directory, FILE_NAME)  # noqa: PTH118
        advice = f"; {ADVICE}" if error.errno in NOT_PERMITTED else ""
        return StorageFault(f"{where} cannot be written: {error.strerror or error}{advice}")


def _partial_name(job_id: int, lease_seq: int | str) -> str:
    """The name of the file while it is not whole: hidden, and nobody else's."""
    return f".{FILE_NAME}.{job_id}-{lease_seq}"


def _clear_up(folder: int, lease: Lease) -> None:
    """Remove what earlier leases of this job left when their workers were killed; never what a later one writes."""
    beginning = _partial_name(lease.job_id, "")
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(beginning)]
    for name in names:
        lease_seq = name.removeprefix(beginning)
        if lease_seq.isdecimal() and int(lease_seq) <= lease.lease_seq:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)


def _write(folder: int, partial: str, chunks: Iterable[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    # The process's umask takes away from this mode what it does for any file.
    with os.fdopen(os.open(partial, flags, 0o666, dir_fd=folder), "wb") as file:
        try:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            # In the place of what is there, also of a link, which is not followed.
            os.rename(partial, FILE_NAME, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial, dir_fd=folder)
            raise
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
