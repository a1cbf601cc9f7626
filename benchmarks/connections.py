"""The connections of the load generator: HTTP/1.1 with as little work as can be."""

import asyncio
import zlib
from typing import BinaryIO

import httptools

from benchmarks.load import Answer, Load, Plan, Unexpected
from benchmarks.scripts import Script


class Connection(asyncio.Protocol):
    """One client on one connection: each answer makes its script say the next request."""

    def __init__(self, script: Script, load: Load) -> None:
        self._script = script
        self._load = load
        self._over = False
        self._body: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        # It makes its bodies now, before any clock runs.
        next(script)
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say the first request."""
        self._transport = transport  # type: ignore[assignment] # a TCP connection can be written to
        self._advance(None)

    def data_received(self, data: bytes) -> None:
        """Take a piece of an answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(Unexpected(f"an answer was no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail, unless the script was through."""
        if not self._over:
            self._end(Unexpected(f"the service closed a connection ({exc})"))

    def on_message_begin(self) -> None:
        """Begin an answer."""
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of an answer's body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Give a whole answer to the script."""
        self._advance(Answer(self._parser.get_status_code(), b"".join(self._body)))

    def count_packed(self) -> None:
        """Count what is only counted when the clock no longer runs.

        Raises:
            Unexpected: it is not what was asked for.
        """

    def _advance(self, answer: Answer | None) -> None:
        if self._transport is None or self._over:
            return
        try:
            request = self._script.send(answer)
        except StopIteration:
            self._end(None)
        except Exception as error:  # noqa: BLE001 - the event loop would only log it
            self._end(error if isinstance(error, Unexpected) else Unexpected(repr(error)))
        else:
            self._transport.write(request)

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over = True
            self._load.end_one(error)
            if self._transport is not None:
                self._transport.close()


class Download(Connection):
    """A connection whose answer is too large to be kept: its lines are counted, and a file may take it."""

    def __init__(self, script: Script, load: Load, plan: Plan, file: BinaryIO | None) -> None:
        super().__init__(script, load)
        self._file = file
        self._counted = not plan.gzip
        self._packed: list[bytes] = []

    def on_body(self, body: bytes) -> None:
        """Count a piece."""
        self._load.received_bytes += len(body)
        if self._counted:
            self._load.lines += body.count(b"\n")
        else:
            self._packed.append(body)
        if self._file is not None:
            self._file.write(body)

    def count_packed(self) -> None:
        """Count what came compressed."""
        if not self._packed:
            return
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        try:
            for piece in self._packed:
                self._load.lines += unpacker.decompress(piece).count(b"\n")
        except zlib.error as error:
            raise Unexpected(f"the export is not compressed as was asked: {error}") from None
        if not unpacker.eof:
            raise Unexpected("the compressed export was cut short")
