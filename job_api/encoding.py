"""Exports in formats that PostgreSQL does not write: a child process makes the file of the rows (`formats`).

What the libraries need in memory, and what they might do to a process, concerns the child alone. It is killed when its
export is closed. Reads no rows itself, and knows nothing of HTTP.
"""

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from job_api.errors import FormatUnavailable, InvalidRequest, JobApiError, TooManyRequests
from job_api.export import RETRY_SECONDS, Export
from job_api.formats import About
from job_api.formats.__main__ import EXIT_TOO_MANY_ROWS, EXIT_UNAVAILABLE

log = logging.getLogger(__name__)

MAX_ENCODERS = 3
BLOCK_BYTES = 2**18
# What a child said last, of which the log gets the end.
MAX_SAID_CHARS = 2_000
# The child has no use for the service's own secrets.
_KEPT_BACK = "JOB_API_"


class Encoders:
    """The children of one process: how many may run."""

    def __init__(self) -> None:
        self._running = 0

    async def open(self, export: Export, format_name: str, about: About, place: Path) -> "EncodedExport":
        """Make a file of an export, which is closed with it, and also where this fails; returns when it has begun.

        Args:
            export: rows in JSON, with the columns that the format looks at.
            format_name: the format.
            about: what the file says of itself.
            place: where temporary files go, if that is a folder that can be written to; a zip takes about a third of
                what its rows are as CSV.

        Raises:
            TooManyRequests: as many as may are running.
            FormatUnavailable: what the format takes is not installed.
            InvalidRequest: the format is for fewer rows.
            DatabaseUnavailable: the database went away.
        """
        if self._running >= MAX_ENCODERS:
            await export.close()
            raise TooManyRequests(f"{MAX_ENCODERS} files are being made; try again in a moment", RETRY_SECONDS)
        self._running += 1
        encoded = EncodedExport(self, export)
        try:
            await encoded.begin(format_name, about, place if os.access(place, os.W_OK) else None)
        except BaseException:
            await encoded.close()
            raise
        return encoded

    def ended(self) -> None:
        """A file is made, or given up."""
        self._running -= 1


class EncodedExport:
    """One export as a file."""

    def __init__(self, encoders: Encoders, export: Export) -> None:
        self.until = export.until
        self._encoders = encoders
        self._export = export
        # Emptied when the child is gone, however it went.
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._child: asyncio.subprocess.Process | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._first = b""
        self._blocks = self._stream()
        self._closed = False

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        return self._blocks

    async def begin(self, format_name: str, about: About, place: Path | None) -> None:
        """Start the child, and wait for the first of its file."""
        self._folder = tempfile.TemporaryDirectory(prefix="export-", dir=place)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_KEPT_BACK)}
        with self._said.open("wb") as said:
            self._child = child = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "job_api.formats", format_name),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=said,
                env=environment | {"TMPDIR": self._folder.name},
            )
        self._feeding = asyncio.create_task(self._feed(child, about))
        self._first = await self._read(child)

    async def close(self) -> None:
        """End it, also in the middle."""
        if self._closed:
            return
        self._closed = True
        # Each of these is done, whatever becomes of the others.
        async with AsyncExitStack() as last:
            if self._folder is not None:
                last.push_async_callback(asyncio.to_thread, self._folder.cleanup)
            last.callback(self._encoders.ended)
            last.push_async_callback(self._export.close)
            last.push_async_callback(self._blocks.aclose)
            await self._end_child()

    async def _end_child(self) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.kill()
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        if self._child is not None and self._child.stdout is not None:
            # Read to its end it is closed.
            await self._child.stdout.read()
            await self._child.wait()

    @property
    def _said(self) -> Path:
        if self._folder is None:
            raise RuntimeError("not begun")
        return Path(self._folder.name, "said")

    async def _stream(self) -> AsyncGenerator[bytes, None]:
        if self._child is None:
            raise RuntimeError("not begun")
        if self._first:
            yield self._first
        while block := await self._read(self._child):
            yield block

    async def _read(self, child: asyncio.subprocess.Process) -> bytes:
        """The next of the file; nothing at its end, which is only good where the child says so."""
        if child.stdout is None or self._feeding is None:
            raise RuntimeError("not begun")
        block = await child.stdout.read(BLOCK_BYTES)
        if block:
            return block
        await self._feeding
        code = await child.wait()
        said = self._said.read_text(errors="replace").strip()[-MAX_SAID_CHARS:]
        if code == 0:
            log.info("made a file of results: %s", said)
            return b""
        if code == EXIT_UNAVAILABLE:
            raise FormatUnavailable(f"this service cannot do that: {said}")
        if code == EXIT_TOO_MANY_ROWS:
            raise InvalidRequest(said)
        log.error("the process that makes a file of results ended with %d: %s", code, said)
        raise JobApiError("the file cannot be made; the service's log says why")

    async def _feed(self, child: asyncio.subprocess.Process, about: About) -> None:
        """Hand the rows to the child, as fast as it takes them."""
        if child.stdin is None:
            raise RuntimeError("not begun")
        try:
            await _write(child.stdin, about.model_dump_json().encode() + b"\n")
            async for block in self._export:
                await _write(child.stdin, block)
            child.stdin.close()
        except ConnectionError:
            # It has ended; its exit code says why.
            return
        except BaseException:
            # What it has is not all: it must not come to an end.
            with suppress(ProcessLookupError):
                child.kill()
            raise


async def _write(pipe: asyncio.StreamWriter, block: bytes | memoryview) -> None:
    """Write to a pipe.

    Raises:
        ConnectionError: nobody reads it any more. uvloop has no such word for a pipe that it has closed.
    """
    if pipe.is_closing():
        raise BrokenPipeError
    pipe.write(block)
    await pipe.drain()
