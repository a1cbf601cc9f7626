"""One recogniser process as its supervisor sees it: started, spoken to, listened to, ended. Knows nothing of retries.

Three threads serve each child, so that nothing that it does or leaves undone can stall the supervisor: one reads what
it prints, one reads its messages, one sends to it.
"""

import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

EXIT_CANNOT_LOAD = 3
"""As in recogniser.py: the engine will not load, and another try would end the same."""

_MAX_LINE_BYTES = 8192
_EXIT_SECONDS = 2.0
_LAST_WORDS_SECONDS = 1.0
# All else stays with the parent, which holds tokens and storage keys.
_PASSED_ON = frozenset({"HOME", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "PATH", "TEMP", "TMP", "TMPDIR", "TZ"})
_PASSED_ON_PREFIXES = ("CUDA_", "KMP_", "LC_", "MALLOC_", "NVIDIA_", "OMP_", "ROCR_", "TF_", "XLA_")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    """What a child said, and when (monotonic seconds) it was heard."""

    child: "Child"
    content: dict[str, Any]
    heard_at: float


@dataclass(frozen=True)
class Gone:
    """A child has ended and is reaped; the last that is heard of it."""

    child: "Child"
    exit_code: int


class Wake:
    """Something else wants the supervisor's attention."""


Events = queue.SimpleQueue[Message | Gone | Wake]


class Child:
    """A running recogniser process. What it says, and at last its end, appear in `events`.

    Attributes:
        pid: Its process id.
    """

    def __init__(self, config: dict[str, Any], home: Path, events: Events, on_line: Callable[[str, int], None]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "uworker.recogniser", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env=environment(home),
                )
            except OSError:
                ours.close()
                raise
        self.pid = self._process.pid
        self._socket = ours
        self._connection = Connection(os.dup(ours.fileno()))
        self._events = events
        self._on_line = on_line
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._outbox.put(json.dumps(config).encode())
        name = f"recogniser-{self.pid}"
        self._output = threading.Thread(target=self._read_output, name=f"{name}-output", daemon=True)
        self._sender = threading.Thread(target=self._send_outbox, name=f"{name}-sender", daemon=True)
        self._receiver = threading.Thread(target=self._receive, name=f"{name}-receiver", daemon=True)
        for thread in (self._output, self._sender, self._receiver):
            thread.start()

    def give(self, task_id: int, data: bytes, *, more: bool) -> None:
        """Hand over an image, of whose unit `more` follow; returns at once, whatever the child does."""
        self._outbox.put(json.dumps({"task_id": task_id} | ({"more": True} if more else {})).encode())
        self._outbox.put(data)

    def close(self) -> None:
        """Have the child end at once by itself."""
        self._shut(socket.SHUT_WR)

    def kill(self) -> None:
        """Kill the child; its `Gone` follows."""
        self._process.kill()
        # Should something that the child started still hold its end of the socket, the receiver must not wait for that.
        self._shut(socket.SHUT_RDWR)

    def join(self, timeout_seconds: float) -> bool:
        """Wait until the child is gone and reaped, and tell whether it is."""
        self._receiver.join(max(timeout_seconds, 0))
        return not self._receiver.is_alive()

    def _shut(self, how: int) -> None:
        try:
            self._socket.shutdown(how)
        except OSError:
            return  # closed already, by the receiver or by the child's end

    def _read_output(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 (says so to the type checker)
        with self._process.stdout as pipe:
            while line := pipe.readline(_MAX_LINE_BYTES):
                text = line.decode(errors="replace").rstrip()
                try:
                    if text:
                        self._on_line(text, self.pid)
                except Exception:  # noqa: BLE001 (going on reading matters more: a full pipe stalls the child)
                    _log.exception("a line of recogniser %d could not be passed on", self.pid)

    def _send_outbox(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self._connection.send_bytes(message)
        except OSError:
            return  # the child is gone or going, which the receiver sees too

    def _receive(self) -> None:
        try:
            while True:
                content = json.loads(self._connection.recv_bytes())
                self._events.put(Message(self, content, time.monotonic()))
        except (EOFError, OSError, ValueError):
            exit_code = self._reap()
        self._shut(socket.SHUT_RDWR)
        self._outbox.put(None)
        self._sender.join()
        self._connection.close()
        self._socket.close()
        # Lets the child's last words come before the news of its end, as far as nobody else holds the pipe.
        self._output.join(_LAST_WORDS_SECONDS)
        self._events.put(Gone(self, exit_code))

    def _reap(self) -> int:
        try:
            return self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a recogniser: what TensorFlow and the dynamic linker need, and no secret.

    It imports from where this process imports, and its weights are below `home`.
    """
    passed = {k: v for k, v in os.environ.items() if k in _PASSED_ON or k.startswith(_PASSED_ON_PREFIXES)}
    return passed | {
        "PYSTOW_HOME": str(home),
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
    }


def describe_exit(exit_code: int) -> str:
    """Say how a process ended: "exit -9, SIGKILL, possible out of memory"."""
    words = [f"exit {exit_code}"]
    if exit_code < 0:
        try:
            words.append(signal.Signals(-exit_code).name)
        except ValueError:
            words.append("unknown signal")
    if exit_code == -signal.SIGKILL:
        words.append("possible out of memory")
    return ", ".join(words)
