"""The worker's way to its engine: a thread that connects, reads, and connects again, ever more slowly.

What happens goes into a queue; nobody waits for this thread.
"""

import queue
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from uworker.apart.wire import HELLO_SECONDS, FromEngine, Hello, Refused, Wire, mismatch

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.1, 5.0
# An engine that fails each time right after its greeting is not to be asked ten times a second.
STEADY_SECONDS = 5.0


@dataclass(frozen=True)
class Joined:
    """An engine has taken this worker."""

    wire: Wire
    hello: Hello


@dataclass(frozen=True)
class Heard:
    """The engine has said something."""

    wire: Wire
    message: FromEngine


@dataclass(frozen=True)
class Parted:
    """There is no connection, and why; `wire` is the one that was there, `is_absent`: nobody listens."""

    wire: Wire | None
    why: str
    is_absent: bool = False


class Wake:
    """Somebody else wants attention."""


Events = queue.SimpleQueue[Joined | Heard | Parted | Wake]


class RefusedByEngine(Exception):
    """There is an engine, and it does not take this worker; the message says why."""


class Link:
    """Keeps one connection.

    Args:
        path: the engine's socket.
        worker_id: who connects.
        events: told what happens.
        silence_seconds: an engine that says nothing for so long is given up.
    """

    def __init__(self, path: Path, worker_id: str, events: Events, silence_seconds: float) -> None:
        self._path = path
        self._hello = Hello(about=worker_id)
        self._events = events
        self._silence_seconds = silence_seconds
        self._backoff_seconds = FIRST_BACKOFF_SECONDS
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._thread = threading.Thread(target=self._run, name="engine-link", daemon=True)

    def start(self) -> None:
        """Start the thread; may be repeated."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """End the connection, and make no other."""
        with self._lock:
            self._stop.set()
            if self._wire is not None:
                self._wire.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._connect()
            self._stop.wait(self._backoff_seconds)
            self._backoff_seconds = min(self._backoff_seconds * 2, LONGEST_BACKOFF_SECONDS)

    def _connect(self) -> None:
        try:
            connected = socket.socket(socket.AF_UNIX)
            try:
                connected.connect(str(self._path))
                wire = Wire(connected)
            except (OSError, RuntimeError):
                connected.close()
                raise
        except (OSError, RuntimeError) as error:
            absent = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            self._events.put(Parted(None, _reason(error, self._path), absent))
            return
        with self._lock:
            self._wire = wire
            if self._stop.is_set():
                wire.close()
        joined_at, why = None, ""
        try:
            hello = self._greet(wire)
            joined_at = time.monotonic()
            self._events.put(Joined(wire, hello))
            wire.be_patient(self._silence_seconds)
            while not self._stop.is_set():
                self._events.put(Heard(wire, wire.receive_from_engine()))
        except RefusedByEngine as error:
            why = str(error)
        except EOFError:
            why = f"the engine at {self._path} is gone" if joined_at else f"the engine at {self._path} hangs up"
        except TimeoutError:
            why = f"the engine at {self._path} says nothing any more" if joined_at else f"{self._path} does not answer"
        except ValueError:
            why = f"what listens at {self._path} says what no engine says; is it one, and of this version?"
        except OSError as error:
            why = f"the connection to the engine at {self._path} broke: {error.strerror or error}"
        with self._lock:
            self._wire = None
        if joined_at is not None and time.monotonic() >= joined_at + STEADY_SECONDS:
            self._backoff_seconds = FIRST_BACKOFF_SECONDS
        self._events.put(Parted(wire if joined_at else None, why))
        wire.dispose()

    def _greet(self, wire: Wire) -> Hello:
        wire.be_patient(HELLO_SECONDS)
        wire.send(self._hello)
        answer = wire.receive_greeting()
        if isinstance(answer, Refused):
            raise RefusedByEngine(f"the engine at {self._path} does not take this worker: {answer.message}")
        if (why := mismatch(worker=self._hello, engine=answer)) is not None:
            raise RefusedByEngine(why)
        return answer


def _reason(error: OSError | RuntimeError, path: Path) -> str:
    match error:
        case FileNotFoundError():
            return f"there is no engine at {path} yet; is its container started, and the folder shared?"
        case ConnectionRefusedError():
            return f"no engine listens at {path} any more"
        case PermissionError():
            return f"this user may not use {path}; run worker and engine with the same user or group"
        case _:
            return f"the engine at {path} cannot be reached: {getattr(error, 'strerror', None) or error}"
