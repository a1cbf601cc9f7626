"""Finding directories to add: those directly below a place, and the patterns that choose among names, of images too.

One level is listed and nothing below it: 200,000 images are not walked to find the 4,099 directories they lie in.
`stores` is imported when a place comes in: who adds the rows of a file does not wait for what speaks to object storage.
"""

import fnmatch
import glob
import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from job_api.apart import begin
from job_api.terminal import printable

if TYPE_CHECKING:
    from job_api.stores import Location

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class CannotList(Exception):
    """A place makes no sense, cannot be listed, or has no directory; says what was looked at and what to do."""


# --- places ---


def as_url(place: str) -> str:
    """The URL of a place in its canonical spelling; a path becomes a `file://` URL, a relative one is resolved first.

    Raises:
        CannotList: it is empty, of a kind that is not known, or holds a credential, which everybody would see.
    """
    from job_api.stores import BadLocation, locate  # noqa: PLC0415 - see above

    if not place.strip():
        raise CannotList("the place where the directories lie is an empty text; give a URL or a path")
    if _URL.match(place) is None:
        path = Path(place).expanduser()
        # An absolute path stays as it is: a link in it may lead elsewhere on the workers' machines.
        place = str(path if path.is_absolute() and ".." not in path.parts else path.resolve())
    try:
        return locate(place).url
    except BadLocation as error:
        raise CannotList(str(error)) from None


def same_place(url: str, other: str) -> bool:
    """Whether two URLs are spellings of one place."""
    return url == other or _canonical(url) == _canonical(other)


def _canonical(url: str) -> str:
    try:
        return as_url(url)
    except CannotList:
        return url


# --- listing ---


def list_directories(url: str) -> list[str]:
    """Names of the directories directly below a place, sorted; at least one.

    Raises:
        CannotList: there is none, or the place cannot be listed.
    """
    from job_api.stores import StoreError, locate, open_listing  # noqa: PLC0415 - see above

    try:
        location = locate(url)
        store = open_listing(location)
        names = begin(store.directories).result()
        loose = None if names else begin(lambda: next(store.objects(""), None)).result()
    except StoreError as error:
        raise CannotList(str(error)) from None
    if not names:
        raise _no_directory(location, loose.key if loose else None)
    return names


def _no_directory(location: "Location", loose: str | None) -> CannotList:
    """What is wrong with a place without directories; with a file in it, it may be the directory that was meant."""
    place, name = location.url, location.prefix.rpartition("/")[2]
    above = place.rpartition("/")[0]
    if location.kind == "file":
        place = f"/{location.prefix}"
        above = str(Path(place).parent)
    if loose is None:
        return CannotList(f"there is no directory to add: nothing lies below {place}; is it spelled as it should be?")
    found = f"there is no directory to add: {place} holds files, such as '{printable(loose, 80)}', and no directory"
    if not name:
        return CannotList(f"{found}; a job is a directory, so move them into one")
    choice = f"--list {shlex.quote(above)} --include {shlex.quote(glob.escape(name))}"
    return CannotList(f"{found}; to add it as one job: {choice}")


# --- choosing ---


class Choice:
    """Which names are wanted: what an `include` pattern matches, or all where there is none, and no `exclude` one.

    Patterns are the shell's (`*`, `?`, `[abc]`, `[!abc]`), for the whole name and the same on every machine: upper and
    lower case differ, `*` goes across slashes and leading dots, and an accented letter is one however it is encoded.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = [_Pattern(f"--include {shlex.quote(text)}", text) for text in include]
        self._exclude = [_Pattern(f"--exclude {shlex.quote(text)}", text) for text in exclude]

    def __bool__(self) -> bool:
        """Whether there is any pattern."""
        return bool(self._include or self._exclude)

    def wants(self, name: str) -> bool:
        """Whether a name is wanted."""
        # Each pattern is tried, so that one that never matches is found out.
        included = [pattern.matches(name) for pattern in self._include]
        excluded = [pattern.matches(name) for pattern in self._exclude]
        return (any(included) or not included) and not any(excluded)

    def unmatched(self) -> Iterator[str]:
        """The options whose pattern has matched no name so far."""
        return (pattern.option for pattern in (*self._include, *self._exclude) if not pattern.matched)


class ImageChoice:
    """Which images of a directory are wanted, by patterns as those of a `Choice`.

    A pattern with a slash is for an image's path below the directory, one without for its file name alone.

    Raises:
        ValueError: a pattern can match no image; says which, and why.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include = [_PathPattern(text) for text in include]
        self._exclude = [_PathPattern(text) for text in exclude]

    def wants(self, image: str) -> bool:
        """Whether an image is wanted."""
        return (not self._include or any(p.matches(image) for p in self._include)) and not any(
            p.matches(image) for p in self._exclude
        )


class _PathPattern:
    def __init__(self, text: str) -> None:
        if text.startswith("/") or text.endswith("/") or {"..", "."} & set(text.removeprefix("./").split("/")):
            raise ValueError(
                f"{text!r} matches no image: it is for an image's path below its directory, such as 'left/*.png'"
            )
        self._is_for_path = "/" in text
        self._pattern = _Pattern("", text)

    def matches(self, image: str) -> bool:
        return self._pattern.matches(image if self._is_for_path else image.rpartition("/")[2])


class _Pattern:
    def __init__(self, option: str, text: str) -> None:
        self.option = option
        self.matched = False
        self._match = re.compile(fnmatch.translate(_comparable(text))).match

    def matches(self, name: str) -> bool:
        if self._match(_comparable(name)) is None:
            return False
        self.matched = True
        return True


def _comparable(name: str) -> str:
    """A name, or a pattern, as a job's directory is named: without a leading `./` and trailing slashes."""
    return unicodedata.normalize("NFC", name.removeprefix("./").rstrip("/"))
