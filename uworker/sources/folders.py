"""Goes through the folders of one job's directory on a web server, within bounds.

Owns what is held of them: the names of images and folders that are still to come, and of each page nothing else. How a
page is asked for is web.py's matter, and what it lists that of indexes.py.
"""

import posixpath
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from job_api.indexes import BadIndex, TooMuch, base_of, index_page
from uworker.images import IGNORED_DIRECTORIES, IMAGE_ENDINGS, NoImages, SourceError
from uworker.sources.fetching import shown

# Indexes from this size on, of some 30,000 images, are read one at a time: each takes the processor for seconds.
LARGE_BYTES = 4_000_000


@dataclass(frozen=True)
class Bounds:
    """How much is taken of a web server before it is given up: of a job's directory, and of one answer."""

    depth: int = 32
    pages: int = 10_000
    # A million images, in the words of nginx's index, are some 130 MB; their names stay in memory.
    index_bytes: int = 250_000_000
    entries: int = 1_500_000
    answer_seconds: float = 300
    patience_seconds: float = 60
    wait_seconds: float = 600


@dataclass
class Folder:
    """A folder that is being gone through.

    Attributes:
        path: below the job's directory, with a slash at its end unless it is that.
        base: URL that the names are below.
        names: that are still to come, the next one last; those of folders end in a slash.
        sizes: in bytes, by name, where the index says them.
        index_bytes: of its index.
    """

    path: str
    base: str
    names: list[str]
    sizes: dict[str, int]
    index_bytes: int


class NoIndex(SourceError):
    """The web server shows no index of the directory, or none that can be used."""

    reason = "no-index"
    retryable = False


class _LargePage(Exception):
    """An index is so large that it is read alone."""


class Walk:
    """One listing of a directory.

    Args:
        directory: of the job, for messages.
        bounds: of what is taken.
        ask: asks for a URL and makes a folder of the answer; raises NoImages where it is not there.
        content: the body of an answer, in pieces.
        large_pages: held while a large one is read.
    """

    def __init__(
        self,
        directory: str,
        bounds: Bounds,
        ask: Callable[[str, Callable[[httpx.Response], Folder]], Folder],
        content: Callable[[httpx.Response], Iterator[bytes]],
        large_pages: threading.Lock,
    ) -> None:
        self._directory = directory
        self._bounds = bounds
        self._ask = ask
        self._content = content
        self._large_pages = large_pages
        self._pages = self._index_bytes = self._entries = 0

    def images(self, top: str) -> Iterator[tuple[str, str, int | None]]:
        """Paths of images below a folder, their URLs and sizes; a page at a time, in the order of the paths."""
        open_folders = [self._open("", top)]
        while open_folders:
            folder = open_folders[-1]
            if not folder.names:
                open_folders.pop()
                continue
            name = folder.names.pop()
            path, url = folder.path + name, folder.base + quoted(name.rstrip("/"))
            if not name.endswith("/"):
                yield path, url, folder.sizes.pop(name, None)
                continue
            try:
                open_folders.append(self._open(path, url + "/"))
            except NoImages:
                continue  # it has gone since its parent was listed

    def _open(self, path: str, url: str) -> Folder:
        self._pages += 1
        if path.count("/") > self._bounds.depth or self._pages > self._bounds.pages:
            raise NoIndex(
                f"below the directory {self._directory!r} the server lists folders more than {self._bounds.depth} "
                f"deep, or more than {self._bounds.pages} of them; a link may lead round in circles"
            )
        try:
            folder = self._ask(url, lambda answer: self._read(answer, path, min(LARGE_BYTES, self._bytes_left)))
        except _LargePage:
            # Waited for without a connection: the answer would be too late when its turn comes.
            with self._large_pages:
                folder = self._ask(url, lambda answer: self._read(answer, path, self._bytes_left))
        self._index_bytes += folder.index_bytes
        self._entries += len(folder.names)
        return folder

    @property
    def _bytes_left(self) -> int:
        return self._bounds.index_bytes - self._index_bytes

    def _read(self, answer: httpx.Response, path: str, max_bytes: int) -> Folder:
        """What an index lists that is a folder or an image."""
        base = base_of(answer)
        try:
            page = index_page(answer, _is_wanted, self._bounds.entries - self._entries)
            for data in self._content(answer):
                page.feed(data)
                self._require_bounds(page.size, max_bytes)
            names, sizes = page.listing()
        except BadIndex as error:
            raise NoIndex(
                f"what the server shows at {shown(base)} is no index of files ({error}); let it show directory "
                "indexes (nginx: autoindex on; Apache: Options +Indexes), or use another kind of source"
            ) from None
        except TooMuch:
            raise NoIndex(
                f"below the directory {self._directory!r} the server lists more than {self._bounds.entries} images and "
                f"folders, or takes more than {self._bounds.index_bytes} bytes for it: make a job of each folder in "
                "it, or use another kind of source"
            ) from None
        names.reverse()
        return Folder(path, base, names, sizes, page.size)

    def _require_bounds(self, size: int, max_bytes: int) -> None:
        if size > self._bytes_left:
            raise TooMuch
        if size > max_bytes:
            raise _LargePage


def quoted(segment: str) -> str:
    """A part of a path as it stands in a URL."""
    return quote(segment, safe="", errors="surrogateescape")


def _is_wanted(name: str) -> bool:
    """Whether it is an image, or a folder where images may be."""
    if name.startswith(".") or name.rstrip("/") in IGNORED_DIRECTORIES:
        return False
    return name.endswith("/") or posixpath.splitext(name)[1].lower() in IMAGE_ENDINGS
