"""What a web server's index of a directory lists: HTML, as nginx, Apache, lighttpd, Caddy or Python write it, or JSON.

Only what lies directly in the directory is taken from its index, whatever the page links to: a page of another origin,
of a folder above, or of the same folder sorted otherwise is none of it. Asks nobody; the bytes
come from who did: the worker, and websites.py.
"""

import codecs
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpx

from job_api.locations import DEFAULT_PORTS, segments_of

# The parsers go through what they cannot end yet again with each piece: the pieces are large, and no page has a tag, a
# script, a comment or an entry of that length.
PIECE_BYTES = 64_000
MAX_UNPARSED_CHARS = 256_000
# As nearly all links of an index are: a name below the page, with nothing in it that an address could be cut at.
PLAIN_LINK = re.compile(r"[\w%()~!$&'*,;=@+-][\w%()~!$&'*,;=@+.-]*/?")
TITLES = ("index of", "directory listing", "listing of")
BETWEEN_ITEMS = re.compile(r"[ \t\r\n,]*")


class BadIndex(Exception):
    """What the web server shows is no index, or none that can be used; says what it is."""


class TooMuch(Exception):
    """An index lists more than may be taken from it."""


class Listing(NamedTuple):
    """What lies directly in a directory: names in the order of their paths, and sizes in bytes of those that have one.

    Names are decoded; those of folders end in a slash, which no other name has in it.
    """

    names: list[str]
    sizes: dict[str, int]


class IndexPage:
    """Reads an index piece by piece; keeps the names that are wanted, and not the page.

    Args:
        url: the directory's own, with a slash at its end.
        media_type: what the server calls the page, such as text/html.
        is_wanted: which names are kept; those of folders end in a slash.
        max_entries: how many are kept at most.

    Attributes:
        size: of the page in bytes, so far.

    Raises:
        BadIndex: this is no kind of page.
    """

    def __init__(self, url: str, media_type: str, is_wanted: Callable[[str], bool], max_entries: int) -> None:
        if media_type not in ("text/html", "application/xhtml+xml", "application/json"):
            raise BadIndex(f"it is {media_type or 'of no type'}, not a page")
        # Names are percent-encoded as a rule; raw bytes that are no UTF-8 are kept as those of local file names are.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._is_wanted = is_wanted
        self._max_entries = max_entries
        self._names = set[str]()
        self._sizes: dict[str, int] = {}
        self._parser = _Items(self._keep) if media_type == "application/json" else _Links(url, self._keep)
        self._piece = bytearray()
        self.size = 0

    def _keep(self, name: str, size: int | None = None) -> None:
        if not self._is_wanted(name):
            return
        self._names.add(name)
        if size is not None:
            self._sizes[name] = size
        if len(self._names) > self._max_entries:
            raise TooMuch

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the page.

        Raises:
            BadIndex: this is no page that a server would write.
            TooMuch: it lists more than may be kept.
        """
        self.size += len(data)
        self._piece += data
        if len(self._piece) >= PIECE_BYTES:
            self._parse()

    def _parse(self) -> None:
        self._parser.feed(self._decoder.decode(bytes(self._piece)))
        self._piece.clear()

    def listing(self) -> Listing:
        """What was listed and is wanted, each once; to be asked for at the page's end.

        Raises:
            BadIndex: it was no index.
            TooMuch: it lists more than may be kept.
        """
        self._parse()
        self._parser.require_index()
        names = sorted(self._names)
        # The parser knows this page, and this page the parser: they go with the garbage, and that may be late.
        self._names.clear()
        return Listing(names, self._sizes)


class _Links(HTMLParser):
    """Collects the links of a page to what lies directly below it."""

    def __init__(self, url: str, keep: Callable[[str], None]) -> None:
        super().__init__()
        self._found = keep
        self.is_index = False
        self._base = url
        self._page = urlsplit(url)
        self._own = segments_of(self._page.path)
        self._in_title = False

    def feed(self, data: str) -> None:
        """Take the next of the page."""
        try:
            super().feed(data)
        except AssertionError:
            # The parser's way of saying that a declaration is broken.
            raise BadIndex("it is no sound HTML") from None
        if len(self.rawdata) > MAX_UNPARSED_CHARS:
            raise BadIndex("it is no sound HTML")

    def require_index(self) -> None:
        """Say whether this was an index, at the page's end.

        The parser is not closed: what it could not end is no link, and it would take its time to find that out.
        """
        if not self.is_index:
            raise BadIndex("it is a page, but no list of files")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag in ("title", "h1")
        if tag not in ("a", "base"):
            return
        href = dict(attrs).get("href")
        if href is None:
            return
        try:
            if tag == "base":
                self._base = urljoin(self._base, href.strip())
            elif self._base == self._page.geturl() and PLAIN_LINK.fullmatch(href):
                self._keep(segments_of(href)[0], href)
            else:
                self._take(urlsplit(urljoin(self._base, href.strip())))
        except ValueError:
            # It is no address, or one that may lead elsewhere: not to a file of this directory.
            return

    def handle_data(self, data: str) -> None:
        if self._in_title and data.strip().lower().startswith(TITLES):
            self.is_index = True

    def _take(self, link: SplitResult) -> None:
        if link.query or _origin(link) != _origin(self._page):
            return
        segments = segments_of(link.path)
        if self._own and segments == self._own[:-1] and link.path.endswith("/"):
            # The way up, which an empty directory's index has, too.
            self.is_index = True
        if len(segments) == len(self._own) + 1 and segments[:-1] == self._own and segments[-1]:
            self._keep(segments[-1], link.path)

    def _keep(self, name: str, path: str) -> None:
        self.is_index = True
        self._found(name + "/" * path.endswith("/"))


def _origin(link: SplitResult) -> tuple[str, str | None, int | None]:
    return link.scheme, link.hostname, link.port or DEFAULT_PORTS.get(link.scheme)


class _Items:
    """Collects the entries of nginx's `autoindex_format json` and of Caddy's `file_server browse`: one list of objects.

    They are taken one by one as they come: as a whole a list takes many times the bytes of its text.
    """

    def __init__(self, keep: Callable[[str, int | None], None]) -> None:
        self._keep = keep
        self._decoder = json.JSONDecoder()
        self._rest = ""
        self._began = self._ended = False

    def feed(self, data: str) -> None:
        """Take the next of the page."""
        text, at = (self._rest + data).lstrip(), 0
        if not self._began and text.startswith("["):
            self._began, at = True, 1
        while self._began and not self._ended:
            between = BETWEEN_ITEMS.match(text, at)
            at = between.end() if between else at
            if text.startswith("]", at):
                self._ended, at = True, at + 1
                break
            try:
                item, at = self._decoder.raw_decode(text, at)
            except ValueError:
                # It goes on in the next piece.
                break
            except RecursionError:
                raise BadIndex("it is no sound JSON") from None
            self._take(item)
        self._rest = text[at:]
        if len(self._rest) > MAX_UNPARSED_CHARS:
            raise BadIndex("it is no sound JSON")

    def require_index(self) -> None:
        """Say whether this was an index, at the page's end."""
        # Caddy's empty directory is null.
        if not self._began and self._rest.strip() != "null":
            raise BadIndex("its JSON is no list of files")
        if self._began and (self._rest.strip() or not self._ended):
            raise BadIndex("it is no sound JSON")

    def _take(self, item: Any) -> None:
        """Keep an item, unless it is none of a file or folder directly in the directory."""
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise BadIndex("its JSON is no list of files")
        # Caddy has a link, too, and loses bytes that are no UTF-8 in the name.
        link = item.get("url")
        try:
            path = link if isinstance(link, str) else quote(name, errors="surrogateescape")
            segments = segments_of(path.removeprefix("./"))
        except (ValueError, UnicodeError):
            return
        if path.startswith("/") or len(segments) != 1 or not segments[0]:
            return
        is_folder = item.get("type") == "directory" or item.get("is_dir") is True
        size = item.get("size")
        has_size = type(size) is int and size >= 0 and not is_folder
        self._keep(segments[0] + "/" * is_folder, size if has_size else None)


def base_of(answer: httpx.Response) -> str:
    """The URL that the names in an index are below."""
    return str(answer.url.copy_with(query=None, fragment=None)).rstrip("/") + "/"


def index_page(answer: httpx.Response, is_wanted: Callable[[str], bool] = bool, max_entries: int = 0) -> IndexPage:
    """A reader of an answer's index, that of any name says it is too much. See `IndexPage`."""
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return IndexPage(base_of(answer), media_type, is_wanted, max_entries)
