"""What a worker and an engine apart from it say to each other: JSON messages over a Unix socket, never pickled.

Whole messages are framed by `multiprocessing.connection.Connection`, as those of recogniser processes are; behind an
`Image` follows a frame with the file's bytes. Both begin with a `Hello`. Whatever does not fit ends the connection and
nothing else. Nobody waits for a send: each side has a thread that sends.
"""

import os
import queue
import socket
import struct
import threading
from multiprocessing.connection import Connection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from job_api.schemas import EngineRun, LogLevel, MachineLoad
from job_api.version import VERSION
from uworker.settings import MAX_IMAGE_BYTES_APART

PROTOCOL = 1
"""Rises with every change that the other side must know of."""

MAX_MESSAGE_BYTES = 1_000_000
HELLO_SECONDS = 10.0

# Of what can be done without (log lines, the state): what is behind this many others is dropped.
_MOST_BEHIND = 2_000


class Said(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True)


class Hello(Said):
    """The first message of each side. Its fields must stay as they are, so that different versions can refuse."""

    kind: Literal["hello"] = "hello"
    protocol: int = PROTOCOL
    version: Annotated[str, Field(max_length=100)] = VERSION
    about: Annotated[str, Field(max_length=300)]
    """The worker's id; how the engine plans to work."""


class Refused(Said):
    """The engine's answer to a worker that it does not take, in words; the connection ends."""

    kind: Literal["refused"] = "refused"
    message: Annotated[str, Field(max_length=1_000)]


class Load(Said):
    """The worker wants the recognisers of an engine; the fields of `tasks.EngineOrder`, and its number here."""

    kind: Literal["load"] = "load"
    order: int
    engine: Annotated[str, Field(max_length=200)]
    engine_options: dict[str, Any]
    max_pixels: Annotated[int, Field(gt=0)]
    image_timeout_seconds: Annotated[float, Field(gt=0)]
    weights_sha256: str | None


class Image(Said):
    """An image to recognise; its bytes are the next frame."""

    kind: Literal["image"] = "image"
    task_id: int
    name: Annotated[str, Field(max_length=10_000)]
    solo: bool = False


class Forget(Said):
    """Nobody wants these images any more."""

    kind: Literal["forget"] = "forget"
    task_ids: list[int]


class State(Said):
    """Said at each change and once a second: how many images the worker may have here, and how the engine is.

    `capacity` and `batched_capacity` are the fields of a `tasks.Room`.

    A second is also how soon an engine is missed that says nothing any more.
    """

    kind: Literal["state"] = "state"
    capacity: Annotated[int, Field(ge=0)]
    batched_capacity: Annotated[int, Field(ge=0)] = 0
    """Not more than the other where nobody says it, as engines of before do not."""
    threads: Annotated[int, Field(ge=0)]
    load: MachineLoad


class Ready(Said):
    """A recogniser has loaded the engine of that order."""

    kind: Literal["ready"] = "ready"
    order: int
    run: EngineRun


class Fault(Said):
    """As `tasks.Fault`."""

    kind: str
    traceback: str


class Finished(Said):
    """What became of an image, as `tasks.Finished`; the worker checks the row when it takes it."""

    kind: Literal["finished"] = "finished"
    task_id: int
    row: dict[str, Any]
    fault: Fault | None = None


class CannotLoad(Said):
    """The engine of that order cannot be loaded; `weights`: for want of its weights."""

    kind: Literal["cannot_load"] = "cannot_load"
    order: int
    message: str
    weights: bool


class Log(Said):
    """A line for the worker's log; `children`: printed by a recogniser."""

    kind: Literal["log"] = "log"
    level: LogLevel
    message: str
    children: bool


class Leaving(Said):
    """The engine ends because it was told to; what it has in its hands is not to blame."""

    kind: Literal["leaving"] = "leaving"


FromWorker = Load | Image | Forget
FromEngine = State | Ready | Finished | CannotLoad | Log | Leaving

_Greeting: TypeAdapter[Hello | Refused] = TypeAdapter(Annotated[Hello | Refused, Field(discriminator="kind")])
_FromWorker: TypeAdapter[FromWorker] = TypeAdapter(Annotated[FromWorker, Field(discriminator="kind")])
_FromEngine: TypeAdapter[FromEngine] = TypeAdapter(Annotated[FromEngine, Field(discriminator="kind")])


class Wire:
    """One connection. One thread receives; any may send."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._connection = Connection(os.dup(connected.fileno()))
        self._outbox: queue.SimpleQueue[tuple[bytes, bytes | None] | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_outbox, name="engine-sender", daemon=True)
        self._sender.start()

    def be_patient(self, seconds: float) -> None:
        """Let `receive…` raise TimeoutError when nothing has come for so long."""
        whole = int(seconds)
        value = struct.pack("ll", whole, int((seconds - whole) * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)

    def send(self, message: Said, data: bytes | None = None) -> None:
        """Send a message, and a frame of bytes behind it; returns at once, whatever the other side does."""
        self._outbox.put((message.model_dump_json().encode(), data))

    def offer(self, message: Said) -> bool:
        """Send a message that can be done without, unless the other side is far behind; returns whether it is sent."""
        if self._outbox.qsize() >= _MOST_BEHIND:
            return False
        self.send(message)
        return True

    def receive_greeting(self) -> Hello | Refused:
        """Return the first message of the other side.

        Raises:
            OSError, EOFError, ValueError: it went away, said nothing for too long, or something else.
        """
        return _Greeting.validate_json(self._receive(MAX_MESSAGE_BYTES))

    def receive_from_worker(self) -> FromWorker:
        """Return a worker's next message; raises as `receive_greeting`."""
        return _FromWorker.validate_json(self._receive(MAX_MESSAGE_BYTES))

    def receive_from_engine(self) -> FromEngine:
        """Return an engine's next message; raises as `receive_greeting`."""
        return _FromEngine.validate_json(self._receive(MAX_MESSAGE_BYTES))

    def receive_data(self) -> bytes:
        """Return the bytes behind an `Image`; raises as `receive_greeting`."""
        return self._receive(MAX_IMAGE_BYTES_APART)

    def _receive(self, most_bytes: int) -> bytes:
        try:
            return self._connection.recv_bytes(most_bytes)
        except BlockingIOError:
            raise TimeoutError("it says nothing any more") from None

    def close(self, flush_seconds: float = 0) -> None:
        """End the connection, having sent what is to be sent where that takes no longer than so long."""
        self._outbox.put(None)
        if flush_seconds:
            self._sender.join(flush_seconds)
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other side was first

    def dispose(self) -> None:
        """Give back the descriptors; by the thread that receives, when it is done."""
        self.close()
        self._sender.join()
        self._connection.close()
        self._socket.close()

    def _send_outbox(self) -> None:
        try:
            while (item := self._outbox.get()) is not None:
                message, data = item
                self._connection.send_bytes(message)
                if data is not None:
                    self._connection.send_bytes(data)
        except OSError:
            return  # the other side is gone, which the receiver sees too


def mismatch(worker: Hello, engine: Hello) -> str | None:
    """Say in words why these two cannot work together, and which of them to update; None where they can."""
    if worker.protocol == engine.protocol:
        return None
    old = "worker" if worker.protocol < engine.protocol else "engine"
    return (
        f"the worker ({worker.version}) speaks version {worker.protocol} of the protocol, "
        f"the engine ({engine.version}) version {engine.protocol}: update the {old}'s image"
    )
