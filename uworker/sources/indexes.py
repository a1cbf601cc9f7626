"""What a web server's index of a directory lists: HTML, as nginx, Apache, lighttpd, Caddy or Python write it, or JSON.

Only what lies directly in the directory is taken from its index, whatever the page links to: a page of another origin,
of a folder above, or of the same folder sorted otherwise is none of it. Asks nobody; the bytes come from web.py.
"""

import codecs
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from uworker.images import SourceError
from uworker.sources.allow import DEFAULT_PORTS, segments_of

# The parser goes through what it cannot end yet again with each piece: the pieces are large, and no page has a tag, a
# script or a comment of that length.
PIECE_BYTES = 64_000
MAX_UNPARSED_CHARS = 256_000
# As nearly all links of an index are: a name below the page, with nothing in it that an address could be cut at.
PLAIN_LINK = re.compile(r"[\w%()~!$&'*,;=@+-][\w%()~!$&'*,;=@+.-]*/?")
TITLES = ("index of", "directory listing", "listing of")


class NoIndex(SourceError):
    """The web server shows no index of the directory, or none that can be used."""

    reason = "no-index"
    retryable = False


@dataclass(frozen=True)
class Entry:
    """A file or folder directly in a directory: its name, decoded, and its size where the index says it."""

    name: str
    is_folder: bool
    size: int | None = None


class IndexPage:
    """Reads an index piece by piece.

    Args:
        url: the directory's own, with a slash at its end.
        media_type: what the server calls the page, such as text/html.

    Raises:
        NoIndex: this is no kind of page.
    """

    def __init__(self, url: str, media_type: str) -> None:
        if media_type not in ("text/html", "application/xhtml+xml", "application/json"):
            raise NoIndex(f"it is {media_type or 'of no type'}, not a page")
        self._json = media_type == "application/json"
        # Names are percent-encoded as a rule; raw bytes that are no UTF-8 are kept as those of local file names are.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._links = _Links(url)
        self._text: list[str] = []
        self._piece = bytearray()

    @property
    def has_entries(self) -> bool:
        """Whether anything was found so far; it may be in what is not looked at yet."""
        return bool(self._links.found)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the page.

        Raises:
            NoIndex: this is no page that a server would write.
        """
        self._piece += data
        if len(self._piece) >= PIECE_BYTES:
            self._parse()

    def _parse(self) -> None:
        text = self._decoder.decode(bytes(self._piece))
        self._piece.clear()
        if self._json:
            self._text.append(text)
            return
        try:
            self._links.feed(text)
        except AssertionError:
            # The parser's way of saying that a declaration is broken.
            raise NoIndex("it is no sound HTML") from None
        if len(self._links.rawdata) > MAX_UNPARSED_CHARS:
            raise NoIndex("it is no sound HTML")

    def entries(self) -> list[Entry]:
        """What was listed, each once, in the order of the paths below the directory.

        Raises:
            NoIndex: it was no index.
        """
        self._parse()
        if self._json:
            found = _json_entries("".join(self._text))
        else:
            # The parser is not closed: what it could not end is no link, and it would take its time to find that out.
            if not self._links.is_index:
                raise NoIndex("it is a page, but no list of files")
            found = self._links.found
        return [found[path] for path in sorted(found)]


class _Links(HTMLParser):
    """Collects the links of a page to what lies directly below it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.found: dict[str, Entry] = {}
        self.is_index = False
        self._base = url
        self._page = urlsplit(url)
        self._own = segments_of(self._page.path)
        self._in_title = False

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
        is_folder = path.endswith("/")
        self.found[name + "/" * is_folder] = Entry(name, is_folder)


def _origin(link: SplitResult) -> tuple[str, str | None, int | None]:
    return link.scheme, link.hostname, link.port or DEFAULT_PORTS.get(link.scheme)


def _json_entries(text: str) -> dict[str, Entry]:
    """The entries, by their paths, of nginx's `autoindex_format json` and of Caddy's `file_server browse`."""
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        raise NoIndex("it is no sound JSON") from None
    if listed is None:
        # Caddy's empty directory.
        return {}
    if not isinstance(listed, list):
        raise NoIndex("its JSON is no list of files")
    entries = [entry for item in listed if (entry := _json_entry(item)) is not None]
    return {entry.name + "/" * entry.is_folder: entry for entry in entries}


def _json_entry(item: Any) -> Entry | None:
    """An entry, unless it is none of a file or folder directly in the directory."""
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str):
        raise NoIndex("its JSON is no list of files")
    # Caddy has a link, too, and loses bytes that are no UTF-8 in the name.
    link = item.get("url")
    try:
        path = link if isinstance(link, str) else quote(name, errors="surrogateescape")
        segments = segments_of(path.removeprefix("./"))
    except (ValueError, UnicodeError):
        return None
    if path.startswith("/") or len(segments) != 1 or not segments[0]:
        return None
    is_folder = item.get("type") == "directory" or item.get("is_dir") is True
    size = item.get("size")
    return Entry(segments[0], is_folder, size if type(size) is int and size >= 0 and not is_folder else None)
