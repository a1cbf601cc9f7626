"""A relay before an HTTP/1.1 server: it delays each request, counts them, and answers badly where a test wants that.

Bytes go through as they come, and the Host header with them, so that signatures which cover it hold when the client
knows the server by the relay's address. `python -m tests.emulators.relay ADDRESS DELAY_SECONDS` is one in a process of
its own; at COUNT_PATH it tells how many requests there were.
"""

import asyncio
import contextlib
import re
import socket
import struct
import sys
import threading
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

COUNT_PATH = "/.relay/count"
PIECE_BYTES = 65_536
START_SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    """Answers by itself; the server is not asked."""

    status: int
    retry_after: int | str | None = None
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def bytes(self) -> bytes:
        """The whole answer."""
        lines = [f"HTTP/1.1 {self.status} Out of the relay", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.retry_after is not None:
            lines.append(f"Retry-After: {self.retry_after}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass(frozen=True)
class Reset:
    """Breaks the connection off without an answer."""


@dataclass(frozen=True)
class Hang:
    """Takes the request and never answers."""


@dataclass(frozen=True)
class Cut:
    """Passes on the head of the server's answer and a part of its body, then ends the connection or falls silent."""

    share: float = 0.5
    hang: bool = False


Fault = Answer | Reset | Hang | Cut


@dataclass
class _Planned:
    fault: Fault
    times: int
    matching: re.Pattern[str]


@dataclass
class _Framing:
    """How long a body is: a number of bytes, in chunks, or until the connection ends."""

    length: int | None
    chunked: bool = False

    @classmethod
    def of_request(cls, head: bytes) -> "_Framing":
        framing = cls._said(head)
        return framing or cls(0)

    @classmethod
    def of_answer(cls, head: bytes, method: str) -> "_Framing":
        status = int(head.split(b" ", 2)[1])
        if method == "HEAD" or status < 200 or status in (204, 304):
            return cls(0)
        return cls._said(head) or cls(None)

    @classmethod
    def _said(cls, head: bytes) -> "_Framing | None":
        length = None
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"transfer-encoding" and b"chunked" in value.lower():
                return cls(None, chunked=True)
            if name.lower() == b"content-length":
                length = int(value)
        return None if length is None else cls(length)

    async def pieces(self, reader: StreamReader) -> AsyncIterator[bytes]:
        """The body as it comes, chunk sizes and all.

        Raises:
            IncompleteReadError: it ended before its time.
        """
        if self.chunked:
            async for piece in _chunks(reader):
                yield piece
        elif self.length is None:
            while piece := await reader.read(PIECE_BYTES):
                yield piece
        else:
            async for piece in _exactly(reader, self.length):
                yield piece


async def _exactly(reader: StreamReader, length: int) -> AsyncIterator[bytes]:
    while length:
        piece = await reader.read(min(length, PIECE_BYTES))
        if not piece:
            raise IncompleteReadError(b"", length)
        length -= len(piece)
        yield piece


async def _chunks(reader: StreamReader) -> AsyncIterator[bytes]:
    size = 1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        yield line
        if size:
            async for piece in _exactly(reader, size + 2):
                yield piece
    # What may follow the last chunk, and the empty line.
    line = b""
    while line != b"\r\n":
        line = await reader.readuntil(b"\r\n")
        yield line


async def _read_head(reader: StreamReader) -> bytes | None:
    """The lines up to the empty one; None when the connection has ended."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except IncompleteReadError as error:
        if error.partial:
            raise
        return None


@dataclass
class Relay:
    """A relay; its methods may be called from any thread.

    Args:
        server: the address of the server behind it.
        delay_seconds: how long each request waits before it is passed on.
    """

    server: str
    delay_seconds: float = 0.0
    address: str = ""
    seen: list[str] = field(default_factory=list)
    """Requests as they came, such as `GET /bucket/key?query`."""
    most_waiting: int = 0
    """The most requests that had no answer yet at one moment."""
    _waiting: int = 0
    _planned: list[_Planned] = field(default_factory=list)
    _tasks: set[asyncio.Task[None] | None] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, fault: Fault, *, times: int = 1, matching: str = "", after: int = 0) -> None:
        """Have the next requests that match meet a fault; faults wait in line where several match.

        Args:
            fault: what befalls them.
            times: how many.
            matching: a pattern to be found in `GET /bucket/key?query`.
            after: how many that match pass unharmed before.
        """
        pattern = re.compile(matching)
        with self._lock:
            if after:
                self._planned.append(_Planned(_UNHARMED, after, pattern))
            self._planned.append(_Planned(fault, times, pattern))

    def heal(self) -> None:
        """Forget all faults that are planned."""
        with self._lock:
            self._planned.clear()

    def count(self, matching: str = "") -> int:
        """How many requests of this kind there were."""
        return sum(re.search(matching, line) is not None for line in list(self.seen))

    def _note(self, line: str) -> Fault | None:
        with self._lock:
            self.seen.append(line)
            for planned in self._planned:
                if planned.matching.search(line):
                    planned.times -= 1
                    if not planned.times:
                        self._planned.remove(planned)
                    return None if planned.fault is _UNHARMED else planned.fault
        return None

    async def listen(self) -> asyncio.Server:
        """Begin to relay, in the running loop, on a free port of 127.0.0.1."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        # Nothing else keeps one that hangs when its client has left, and asyncio complains of what is swept away.
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            while await connection.pass_on():
                pass
        except (OSError, IncompleteReadError):
            pass  # one side has gone; the other hears of it by the end of its connection
        except asyncio.CancelledError:
            pass  # the relay ends
        finally:
            self._tasks.discard(task)
            connection.close()

    @contextmanager
    def _one_more_waits(self) -> Iterator[None]:
        self._waiting += 1
        self.most_waiting = max(self.most_waiting, self._waiting)
        try:
            yield
        finally:
            self._waiting -= 1


# Stands for no fault among those that wait in line.
_UNHARMED = Answer(0)


class _Connection:
    """A connection of a client, and the one to the server that belongs to it."""

    def __init__(self, relay: Relay, reader: StreamReader, writer: StreamWriter) -> None:
        self._relay = relay
        self._reader, self._writer = reader, writer
        self._server: tuple[StreamReader, StreamWriter] | None = None

    async def pass_on(self) -> bool:
        """Relay one request; returns whether another may follow."""
        head = await _read_head(self._reader)
        if head is None:
            return False
        method, target, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)
        if target == COUNT_PATH:
            self._writer.write(Answer(200, body=str(len(self._relay.seen)).encode()).bytes())
            return True
        with self._relay._one_more_waits():
            fault = self._relay._note(f"{method} {target}")
            await asyncio.sleep(self._relay.delay_seconds)
            return await self._meet(head, method, fault)

    async def _meet(self, head: bytes, method: str, fault: Fault | None) -> bool:
        body = _Framing.of_request(head)
        match fault:
            case Reset():
                self._break_off()
                return False
            case Hang():
                # Until the client goes. What nobody else knows of would be waited for by a task that nobody keeps.
                while await self._reader.read(PIECE_BYTES):
                    pass
                return False
            case Answer():
                if b"100-continue" in head.lower():
                    self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                async for _ in body.pieces(self._reader):
                    pass
                self._writer.write(fault.bytes())
                await self._writer.drain()
                return True
        return await self._ask(head, method, body, fault)

    async def _ask(self, head: bytes, method: str, body: _Framing, cut: Fault | None) -> bool:
        reader, writer = await self._connect()
        writer.write(head)
        # While its answer is awaited: it may want to be told to send on, or refuse before it has seen all.
        sending = asyncio.ensure_future(self._send(body, writer))
        try:
            answer = await _read_head(reader)
            while answer is not None and answer.split(b" ", 2)[1].startswith(b"1"):
                self._writer.write(answer)
                answer = await _read_head(reader)
            if answer is None:
                return False
            self._writer.write(answer)
            framing = _Framing.of_answer(answer, method)
            if isinstance(cut, Cut):
                return await self._pass_a_part(framing, reader, cut)
            async for piece in framing.pieces(reader):
                self._writer.write(piece)
                await self._writer.drain()
            await self._writer.drain()
            ends = framing.length is None and not framing.chunked
            return sending.done() and not ends and b"\r\nconnection: close" not in answer.lower()
        finally:
            sending.cancel()
            with contextlib.suppress(OSError, IncompleteReadError, asyncio.CancelledError):
                await sending

    async def _send(self, body: _Framing, writer: StreamWriter) -> None:
        async for piece in body.pieces(self._reader):
            writer.write(piece)
            await writer.drain()
        await writer.drain()

    async def _pass_a_part(self, framing: _Framing, reader: StreamReader, cut: Cut) -> bool:
        left = None if framing.length is None else int(framing.length * cut.share)
        async for piece in framing.pieces(reader):
            # Of a body whose length nobody has said, a part of what came first.
            left = int(len(piece) * cut.share) if left is None else left
            self._writer.write(piece[:left])
            left -= len(piece[:left])
            if not left:
                break
        await self._writer.drain()
        while cut.hang and await self._reader.read(PIECE_BYTES):
            pass
        return False

    async def _connect(self) -> tuple[StreamReader, StreamWriter]:
        """The connection to the server; a new one where the server has ended the one that was."""
        if self._server is not None and self._server[0].at_eof():
            self._server[1].close()
            self._server = None
        if self._server is None:
            address = urlsplit(self._relay.server)
            self._server = await asyncio.open_connection(address.hostname, address.port)
        return self._server

    def _break_off(self) -> None:
        # Without a word of farewell: the client is told that the connection was reset.
        end = self._writer.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()
        if self._server is not None:
            self._server[1].close()


@contextmanager
def run_relay(server: str, delay_seconds: float = 0.0) -> Iterator[Relay]:
    """A relay in a thread of this process."""
    relay = Relay(server, delay_seconds)
    ready, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=_run, args=(loop, relay, ready, over), name="relay", daemon=True)
    thread.start()
    try:
        if not ready.wait(START_SECONDS):
            raise RuntimeError("the relay does not start")
        yield relay
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(START_SECONDS)


def _run(loop: asyncio.AbstractEventLoop, relay: Relay, ready: threading.Event, over: asyncio.Event) -> None:
    async def relay_until_over() -> None:
        server = await relay.listen()
        ready.set()
        await over.wait()
        server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(relay_until_over())


async def _relay_for_ever(server: str, delay_seconds: float) -> None:
    relay = Relay(server, delay_seconds)
    listening = await relay.listen()
    sys.stdout.write(f"relaying at {relay.address}\n")
    sys.stdout.flush()
    await listening.serve_forever()


if __name__ == "__main__":
    import uvloop

    # It takes processor time from what is measured.
    uvloop.run(_relay_for_ever(sys.argv[1], float(sys.argv[2])))
