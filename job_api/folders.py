"""What lies in a directory of this machine, or mounted on it. obstore's own listing skips names like `a.png#1`."""

import os
from collections.abc import Iterator
from pathlib import Path

from job_api.locations import Location
from job_api.stores import BadKey, ContainerNotThere, Denied, Listing, StoredObject, StoreError, Unavailable


class FolderListing(Listing):
    """See `Listing`. Links to files are followed, and links to folders where those are asked for by name."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._root = Path("/", location.prefix)

    def directories(self) -> list[str]:
        """See `Listing`."""
        try:
            with os.scandir(self._root) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except OSError as error:
            raise _fault(error, self._root) from None

    def objects(self, directory: str) -> Iterator[StoredObject]:
        """See `Listing`."""
        if not self._root.is_dir():
            raise ContainerNotThere(f"there is no directory {self._root}; is it mounted?")
        top = self._path(directory)
        try:
            yield from _walk(top, directory + "/" if directory else "")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _fault(error, top) from None

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


def _fault(error: OSError, path: Path) -> StoreError:
    reason = error.strerror or type(error).__name__
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return ContainerNotThere(f"there is no directory {path}; is it mounted?")
        case PermissionError():
            return Denied(f"{path}: {reason}; let this user read there")
        case _:
            return Unavailable(f"{path}: {reason}")
