"""The engine's socket: who may come in, one at a time, and what they say.

A connection has a thread that greets and then reads; whoever garbles is hung up on, and nobody else is touched.
"""

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uworker.apart.wire import HELLO_SECONDS, FromWorker, Hello, Image, Refused, Wire, mismatch

log = logging.getLogger(__name__)

# Connections that are greeted at once, and messages of a worker that are ahead of the main loop: images may be large.
MOST_GREETED, MOST_AHEAD = 16, 8
# When there is no descriptor or memory for another connection.
PAUSE_SECONDS = 1.0
MODE_MASK = 0o117
"""What is taken from the socket's mode: it is for its owner and the group."""


class DoorError(Exception):
    """The engine cannot listen; the message says what to do."""


@dataclass(frozen=True)
class Joined:
    """A worker is connected."""

    wire: Wire
    hello: Hello


@dataclass(frozen=True)
class Message:
    """It says something; `data` are the bytes of an image."""

    wire: Wire
    content: FromWorker
    data: bytes


@dataclass(frozen=True)
class Left:
    """It is gone, and why; nobody else comes in before `admit_next`."""

    wire: Wire
    why: str


class Door:
    """Listens.

    Args:
        path: where the socket is made.
        about: told to each worker: what the engine plans.
        wake: called when there is an event; from any thread.

    Attributes:
        events: what happens, in its order.

    Raises:
        DoorError: it cannot listen there.
    """

    def __init__(self, path: Path, *, about: str, wake: Callable[[], None]) -> None:
        self._path = path
        self._hello = Hello(about=about)
        self._wake = wake
        self.events: queue.Queue[Joined | Message | Left] = queue.Queue(MOST_AHEAD)
        self._lock = threading.Lock()
        self._inside: str | None = None
        self._refused_last = ""
        self._greeted = threading.BoundedSemaphore(MOST_GREETED)
        self._closing = threading.Event()
        self._socket = _listen(path)

    def start(self) -> None:
        """Let workers in."""
        threading.Thread(target=self._accept, name="door", daemon=True).start()

    def admit_next(self) -> None:
        """The worker that left is forgotten."""
        with self._lock:
            self._inside = None

    def show_life(self) -> None:
        """Give the socket the present time, for health checks: they must not connect, for one worker at a time may."""
        # Without the file nobody finds the engine, and that is what the checks see then.
        with contextlib.suppress(OSError):
            os.utime(self._path)

    def close(self) -> None:
        """Listen no more."""
        self._closing.set()
        self._path.unlink(missing_ok=True)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._socket.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                log.error("no worker can be let in: %s; it is tried again", error.strerror or error)  # noqa: TRY400 (it says what is wrong)
                self._closing.wait(PAUSE_SECONDS)
                continue
            if not self._greeted.acquire(blocking=False):
                connected.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connected,), name="door-reader", daemon=True).start()
            except RuntimeError as error:
                self._turn_away(connected, error)

    def _serve(self, connected: socket.socket) -> None:
        try:
            wire = Wire(connected)
        except (OSError, RuntimeError) as error:
            self._turn_away(connected, error)
            return
        try:
            hello = self._let_in(wire)
            if hello is not None:
                self._put(Joined(wire, hello))
                self._put(Left(wire, self._read(wire)))
        finally:
            wire.dispose()

    def _turn_away(self, connected: socket.socket, error: Exception) -> None:
        """There is no thread or no descriptor for it; there may be later."""
        log.error("a connection is refused: %s", error)
        connected.close()
        self._greeted.release()

    def _let_in(self, wire: Wire) -> Hello | None:
        # Also for somebody who says his part byte by byte.
        patience = threading.Timer(HELLO_SECONDS, wire.close)
        try:
            patience.start()
            return self._greet(wire)
        except (OSError, EOFError, ValueError) as error:
            # Somebody may try for ever; a mistake is seen in the log all the same.
            log.debug("a connection ended before it was one of a worker: %s", error)
            return None
        finally:
            patience.cancel()
            self._greeted.release()

    def _greet(self, wire: Wire) -> Hello | None:
        """Let a worker in, or tell it why not."""
        hello = wire.receive_greeting()
        if isinstance(hello, Refused):
            return None
        why = mismatch(worker=hello, engine=self._hello)
        with self._lock:
            if why is None and self._inside is not None:
                why = f"it recognises for the worker {self._inside}, and for one at a time"
            if why is None:
                self._inside = hello.about
        if why is None:
            wire.send(self._hello)
            return hello
        if hello.about != self._refused_last:
            # Once for each, since it comes again and again.
            log.warning("the worker %s is refused: %s", hello.about, why)
            self._refused_last = hello.about
        wire.send(Refused(message=why))
        wire.close(HELLO_SECONDS)
        return None

    def _read(self, wire: Wire) -> str:
        """Read until the connection ends; returns why it did."""
        try:
            while True:
                message = wire.receive_from_worker()
                data = wire.receive_data() if isinstance(message, Image) else b""
                self._put(Message(wire, message, data))
        except EOFError:
            return "it hung up"
        except ValueError:
            return "it says what no worker says"
        except OSError as error:
            return error.strerror or str(error)
        except Exception as error:
            # Such as no memory for an image. Whatever it is: who has not left lets nobody else in.
            log.exception("reading from a worker failed")
            return f"reading from it failed: {type(error).__name__}"

    def _put(self, event: Joined | Message | Left) -> None:
        self.events.put(event)
        self._wake()


def _listen(path: Path) -> socket.socket:
    """Make the socket; one that an engine left there that is gone is replaced."""
    if path.is_socket() and _is_alive(path):
        raise DoorError(f"another engine listens at {path}; stop it, or set UWORKER_ENGINE_SOCKET to another")
    listening = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            path.unlink()
        before = os.umask(MODE_MASK)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen()
    except OSError as error:
        listening.close()
        raise DoorError(
            f"no socket can be made at {path}: {error.strerror or error}; "
            "let UWORKER_ENGINE_SOCKET name one in a folder that is there and may be written"
        ) from None
    return listening


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # as when it is there and too busy
    return True
