"""What this worker may read: `UWORKER_SOURCE_ALLOW`, and what goes without it. Asks no network and reads no file.

A project's source is chosen by whoever may set up a project, and read with this machine's rights. So it is judged
here before anything is opened: by whole parts of its path, decoded once. Which addresses a host may have is judged
here too, and looked up in guard.py.
"""

import ipaddress
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from job_api.locations import DEFAULT_PORTS, locate, segments_of
from job_api.stores import BadLocation
from uworker.images import SourceNotAllowed

SETTING = "UWORKER_SOURCE_ALLOW"
# What Python's tables take for public, in some versions: where Azure and Oracle answer their virtual machines, partly
# with secrets, and relays of 6to4.
INSIDE = [ipaddress.ip_network(net) for net in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24")]
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Place:
    """Where a remote URL points, spelt so that equal places are equal.

    Attributes:
        scheme: in lower case.
        authority: host and port, or container or bucket.
        segments: the parts of its path, decoded once.
    """

    scheme: str
    authority: tuple[str, int | None]
    segments: tuple[str, ...]

    @property
    def origin(self) -> tuple[str, tuple[str, int | None]]:
        """Who is asked."""
        return self.scheme, self.authority

    def holds(self, other: "Place") -> bool:
        """Whether the other is this place, or lies below it."""
        return self.origin == other.origin and other.segments[: len(self.segments)] == self.segments


def place_of(url: str) -> Place:
    """Read a remote URL; a query and a fragment are left out.

    Raises:
        ValueError: it is none, or has a login in it; the message does not show the URL.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in DEFAULT_PORTS:
        # The port or account, and upper and lower case, are part of the name there.
        return Place(scheme, (parts.netloc, None), segments_of(parts.path))
    if "@" in parts.netloc:
        raise ValueError("it has a login in it")
    try:
        address = httpx.URL(scheme=scheme, host=parts.hostname or "", port=parts.port)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    if not address.host:
        raise ValueError("it has no host")
    host = address.raw_host.decode("ascii").lower()
    return Place(scheme, (host, address.port or DEFAULT_PORTS[scheme]), segments_of(parts.path))


def check_entry(entry: str) -> str:
    """Look at an entry of the setting.

    Raises:
        ValueError: it is neither an absolute folder nor a URL that a source may have; says what is.
    """
    try:
        location = locate(entry)
    except BadLocation as error:
        raise ValueError(str(error)) from None
    if location.kind != "file":
        place_of(location.url)
    return entry


class Allowance:
    """What one worker may read, for its life. May be asked by several threads at once.

    Args:
        entries: of the setting: folders and URLs, checked.
        bound: whether the worker works on one project only.
    """

    def __init__(self, entries: Sequence[str], *, bound: bool) -> None:
        located = [locate(entry) for entry in entries]
        self._listed = bool(entries)
        self._folders = [Path(os.path.realpath("/" + place.prefix)) for place in located if place.kind == "file"]
        self._places = [place_of(place.url) for place in located if place.kind != "file"]
        self._hosts = {place.authority for place in self._places if place.scheme in DEFAULT_PORTS}
        self._bound = bound
        self._lock = threading.Lock()
        self._has_begun = False
        self._begun_with: Place | None = None

    def admit_folder(self, folder: Path) -> None:
        """Let a source be read that is a local folder.

        Raises:
            SourceNotAllowed: says what to set.
        """
        self._begin(None)
        real = Path(os.path.realpath(folder))
        if self._listed and not any(real.is_relative_to(allowed) for allowed in self._folders):
            raise SourceNotAllowed(f"the project's source {folder} lies in none of the folders in {SETTING}")

    def admit(self, url: str) -> None:
        """Let a source be read that is remote.

        Raises:
            SourceNotAllowed: says what to set.
        """
        try:
            place = place_of(url)
        except ValueError as error:
            raise SourceNotAllowed(f"the project's source {url} is not read: {error}") from None
        self._begin(place)
        if self.permits(place):
            return
        if self._listed:
            said = f"lies below no entry of this worker's {SETTING}; add {url} if it may read there, after a comma"
        elif self._bound:
            said = f"is not the one that this worker began with; start it anew, or set {SETTING}={url} on it"
        else:
            said = (
                "is remote, and UWORKER_JOB_API_PROJECT is not set: a worker of no project in particular reads such "
                f"sources only where it is told to; set that, or {SETTING}={url}, on it"
            )
        raise SourceNotAllowed(f"the project's source {url} {said}")

    def _begin(self, place: Place | None) -> None:
        with self._lock:
            if not self._has_begun:
                self._has_begun, self._begun_with = True, place

    def permits(self, place: Place) -> bool:
        """Whether a remote place may be read: by the setting, or without it because the worker began with it."""
        if self._listed:
            return any(allowed.holds(place) for allowed in self._places)
        return self._bound and self._begun_with is not None and self._begun_with.holds(place)

    def names(self, host: str, port: int) -> bool:
        """Whether the setting names this very host, so that it may have an address that is not public."""
        return (host.lower(), port) in self._hosts


def is_public(address: str) -> bool:
    """Whether an IP address, as text, is one of the public Internet: no machine, network or cloud of one's own."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found.sixtofour is not None or found.teredo is not None or found.is_site_local:
            return False
    special = (
        found.is_multicast or found.is_reserved or found.is_unspecified or found.is_loopback or found.is_link_local
    )
    return found.is_global and not special and not any(found in net for net in INSIDE)
