"""A directory of this machine, or mounted on it, as a store. obstore's own passes over names such as `a.png#1`."""

import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from job_api.locations import Location
from job_api.stores import BadKey, ContainerNotThere, Denied, NotThere, Store, StoredObject, StoreError, Unavailable


class FolderStore(Store):
    """See `Store`. Links to files are followed, and links to folders where those are asked for by name."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._root = Path("/", location.prefix)

    def directories(self) -> list[str]:
        """See `Store`."""
        try:
            with os.scandir(self._root) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except OSError as error:
            raise _fault(error, self._root, root=True) from None

    def objects(self, directory: str) -> Iterator[StoredObject]:
        """See `Store`."""
        if not self._root.is_dir():
            raise ContainerNotThere(f"there is no directory {self._root}; is it mounted?")
        top = self._path(directory)
        try:
            yield from _walk(top, directory + "/" if directory else "")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _fault(error, top) from None

    def read(self, key: str, max_bytes: int) -> bytes | int:
        """See `Store`."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return size if size > max_bytes else file.read(max_bytes + 1)
        except OSError as error:
            raise _fault(error, path) from None

    def write(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """See `Store`."""
        path = self._path(key)
        part = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as file:
                    for piece in [data] if isinstance(data, bytes) else data:
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise _fault(error, path) from None

    def _path(self, key: str) -> Path:
        if key and ("\0" in key or any(part in ("", ".", "..") for part in key.split("/"))):
            raise BadKey(f"{key!r} cannot be the name of a file or directory here: it has empty, '.' or '..' parts")
        return self._root / key


def _walk(folder: Path, key: str) -> Iterator[StoredObject]:
    """Files below a folder in the order of their keys: a folder sorts as its name with a slash."""
    with os.scandir(folder) as entries:
        found = sorted((e.name + "/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in entries)
    for name, entry in found:
        try:
            if name.endswith("/"):
                yield from _walk(Path(entry.path), key + name)
            elif entry.is_file():
                yield StoredObject(key + name, entry.stat().st_size)
        except FileNotFoundError:
            continue  # it has gone since its folder was listed


def _fault(error: OSError, path: Path, *, root: bool = False) -> StoreError:
    reason = error.strerror or type(error).__name__
    match error:
        case FileNotFoundError() | NotADirectoryError() if root:
            return ContainerNotThere(f"there is no directory {path}; is it mounted?")
        case FileNotFoundError() | NotADirectoryError():
            return NotThere(f"there is no {path}")
        case PermissionError():
            return Denied(f"{path}: {reason}; let this user read and write there")
        case _:
            return Unavailable(f"{path}: {reason}")
