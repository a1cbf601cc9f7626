"""What the clients of one load share: the plan, when to stop, and what they have done."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import NamedTuple


class Unexpected(Exception):
    """An answer that a load did not expect; its figure would mean nothing."""


@dataclass(frozen=True)
class Plan:
    """What to play, and where.

    Args:
        script: name of a script in `scripts.SCRIPTS`.
        clients: how many play it, each on a connection of its own.
        seconds: length of the window that is measured, after `warm_up` seconds; None: from the first request until
            all scripts have come to their end.
        size: how much a script that ends by itself shall do, in its own unit.
        columns: of an export, with commas between; empty: the usual ones.
        save_as: a file that takes an export; without one its rows are only counted.
        pids: processes whose processor time is asked for, by name.
    """

    script: str
    host: str
    port: int
    token: str
    project: str
    clients: int = 1
    seconds: float | None = None
    warm_up: float = 0.0
    size: int = 0
    export_format: str = "csv"
    columns: str = ""
    gzip: bool = False
    save_as: str | None = None
    pids: dict[str, int | None] = field(default_factory=dict)

    def head(self, method: str, path: str, body_bytes: int | None = None) -> bytes:
        """The head of a request."""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Authorization: Bearer {self.token}",
            f"Accept-Encoding: {'gzip' if self.gzip else 'identity'}",
        ]
        if body_bytes is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {body_bytes}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass
class Report:
    """What a load did inside its window.

    Args:
        units: cycles, claims, rows: what the script counts.
        milliseconds: how long one step of the script took, at percentiles.
        processor_seconds: what each process used.
        lines: lines of an export, those of a header included.
        received_bytes: bytes of an export as they came over the wire, its framing excepted.
    """

    units: int
    seconds: float
    per_second: float
    milliseconds: dict[str, float]
    processor_seconds: dict[str, float]
    lines: int
    received_bytes: int


class Answer(NamedTuple):
    """An answer of the service."""

    status: int
    body: bytes


@dataclass
class Load:
    """A load that plays."""

    running: int
    over: bool = False
    lines: int = 0
    received_bytes: int = 0
    _done: list[tuple[float, int, float]] = field(default_factory=list)
    _error: Exception | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, began: float, units: int = 1) -> None:
        """A client has done something that it began at `began`."""
        now = time.perf_counter()
        self._done.append((now, units, now - began))

    def has_done(self, began: float) -> bool:
        """Whether anything was done since a moment."""
        return bool(self._done) and self._done[-1][0] >= began

    def end_one(self, error: Exception | None = None) -> None:
        """A client has come to its end; one that failed ends the load."""
        self.running -= 1
        self._error = self._error or error
        if self.running == 0 or error is not None:
            self._ended.set()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until all clients have ended, or for `seconds`.

        Raises:
            Unexpected: a client got an answer that it did not expect, or lost its connection.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            pass
        if self._error is not None:
            raise self._error

    def report(self, began: float, ended: float, processor_seconds: dict[str, float]) -> Report:
        """What was done between two moments."""
        inside = [(units, seconds) for moment, units, seconds in self._done if began <= moment <= ended]
        units = sum(units for units, _ in inside)
        times = sorted(seconds for _, seconds in inside)
        percentiles = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        milliseconds = {
            name: round(1000 * times[min(int(share * len(times)), len(times) - 1)], 2)
            for name, share in percentiles.items()
            if times
        }
        seconds = ended - began
        return Report(units, seconds, units / seconds, milliseconds, processor_seconds, self.lines, self.received_bytes)
