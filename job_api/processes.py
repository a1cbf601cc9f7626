"""Several API processes on one socket and one database: spawn, watch, start again, stop.

The parent serves nothing itself. It owns the socket and, where it is embedded, the database, which it alone starts,
migrates, brings back and stops. Its children end when it is gone. uvicorn's own supervisor is not used: it starts a
dead child again at once and without end, ends them all when one cannot start (the database may be failing over), and
leaves the children of a killed parent on the port.
"""

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from pydantic import SecretStr

from job_api import migrations
from job_api.db import check_external
from job_api.embedded import EmbeddedPostgres
from job_api.server import GRACEFUL_SECONDS, begin_log, say_address, serve
from job_api.settings import Settings, StartupError

log = logging.getLogger(__name__)

READY = ""
CANNOT_START = 3
LOOK_SECONDS = 0.25
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
# A process that served for this long was well; its next end is its first.
WELL_SECONDS = 60.0
STOP_SECONDS = GRACEFUL_SECONDS + 10
METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"

_SPAWN = multiprocessing.get_context("spawn")


def serve_all(settings: Settings, listener: socket.socket, *, access_log: bool = False) -> None:
    """Serve by `settings.processes` processes until SIGTERM or SIGINT.

    Raises:
        StartupError: no process can start; says why in a sentence.
    """
    embedded = None if settings.database_url else EmbeddedPostgres(settings.data_dir)
    stopping = threading.Event()
    if embedded is not None:
        embedded.start()
    try:
        if embedded is not None:
            migrations.upgrade(embedded.url)
            settings = settings.model_copy(update={"database_url": SecretStr(embedded.url)})
            threading.Thread(target=embedded.keep_running, args=(stopping,), daemon=True).start()
        if settings.database_url is None:
            raise RuntimeError("neither a URL nor an embedded database")
        asyncio.run(check_external(settings.database_url.get_secret_value(), settings))
        with _metrics_directory():
            _Parent(settings, listener, access_log=access_log).run()
    finally:
        stopping.set()
        if embedded is not None:
            embedded.stop()


@contextmanager
def _metrics_directory() -> Any:
    """A directory in which the processes add up their metrics; prometheus_client finds it by the environment."""
    directory = tempfile.mkdtemp(prefix="job-api-metrics-")
    os.environ[METRICS_DIRECTORY] = directory
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Child:
    """One API process, started again and again."""

    def __init__(self, number: int, arguments: tuple[Any, ...]) -> None:
        self.number = number
        self.reason: str | None = None
        self.ends = 0
        self.due_at: float | None = time.monotonic()
        self._arguments = arguments
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._ready_at: float | None = None

    def spawn(self) -> None:
        """Start it."""
        self.due_at, self.reason, self._ready_at = None, None, None
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_run_child, args=(theirs, *self._arguments), name=f"api-{self.number}")
        # Ctrl-C goes to all processes of a terminal, and only the parent shall heed it: what is blocked stays so.
        # The first start of all brings multiprocessing's own tracker, which would let the signal through again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    @property
    def sources(self) -> list[Any]:
        """What to wait on for news of it."""
        if self._process is None or self._pipe is None:
            return []
        return [self._process.sentinel] if self._pipe.closed else [self._process.sentinel, self._pipe]

    @property
    def pid(self) -> int | None:
        """Of its process, if it has one."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has a process that has not ended."""
        return self._process is not None and self._process.exitcode is None

    def hear(self) -> bool:
        """Take in what it says of its start; whether it serves since."""
        if self._pipe is None or self._pipe.closed:
            return False
        began = False
        try:
            while self._pipe.poll():
                said = self._pipe.recv()
                if said == READY:
                    self._ready_at, began = time.monotonic(), True
                else:
                    self.reason = said
        except (EOFError, OSError):
            self._pipe.close()
        return began

    def reap(self) -> str | None:
        """Note its end, if it has ended, and when it is due again; returns what to say of it."""
        if self._process is None or self._process.exitcode is None:
            return None
        self.hear()
        now = time.monotonic()
        self.reason = self.reason or _meaning(self._process.exitcode)
        if self._ready_at is not None and now - self._ready_at > WELL_SECONDS:
            self.ends = 0
        self.ends += 1
        seconds = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** (self.ends - 1))
        self.due_at = now + seconds
        happened = "cannot start" if self._ready_at is None else "has ended"
        said = f"API process {self.number} (pid {self._process.pid}) {happened}: {self.reason}"
        self._forget()
        return f"{said}; it is started again in {seconds:.1f} s"

    def terminate(self) -> None:
        """Tell it to end."""
        if self._process is not None:
            self._process.terminate()

    def end(self, deadline: float) -> None:
        """Wait for its end, and kill it at the deadline."""
        if self._process is None:
            return
        self._process.join(max(deadline - time.monotonic(), 0))
        if self._process.exitcode is None:
            log.warning("API process %d (pid %d) does not end and is killed", self.number, self._process.pid)
            self._process.kill()
            self._process.join()
        self._forget()

    def _forget(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.close()
        self._process = self._pipe = None


class _Parent:
    def __init__(self, settings: Settings, listener: socket.socket, *, access_log: bool) -> None:
        self._listener = listener
        arguments = (settings, listener, access_log)
        self._children = [_Child(number, arguments) for number in range(1, settings.processes + 1)]
        self._serving = False
        self._signals: list[int] = []

    def run(self) -> None:
        """Keep the children running until a signal."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while not self._signals:
                for child in self._children:
                    self._look_after(child)
                if not self._serving and all(child.ends for child in self._children):
                    raise StartupError(next(child.reason for child in self._children if child.reason))
                wait([source for child in self._children for source in child.sources], LOOK_SECONDS)
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)

    def _look_after(self, child: _Child) -> None:
        if child.hear():
            log.info("API process %d (pid %d) serves", child.number, child.pid)
            if not self._serving:
                self._serving = True
                say_address(self._listener, len(self._children))
        ended = child.reap()
        if ended is not None and self._serving:
            log.error("%s", ended)
        # Before any of them serves, one that cannot start is not tried again: the others will not fare better.
        if child.due_at is not None and child.due_at <= time.monotonic() and (self._serving or not child.ends):
            child.spawn()

    def _stop(self) -> None:
        # Nobody is to connect to a service that ends.
        self._listener.close()
        heard = len(self._signals)
        for child in self._children:
            child.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(child.running for child in self._children):
            if signal.SIGINT in self._signals[heard:]:
                deadline = time.monotonic()
            wait([child.sources[0] for child in self._children if child.running], LOOK_SECONDS)
        for child in self._children:
            child.end(deadline)


def _meaning(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed (exit -9), possible out of memory"
    if code < 0:
        return f"ended by {signal.Signals(-code).name} (exit {code})"
    return f"exit {code}"


def _run_child(pipe: Connection, settings: Settings, listener: socket.socket, access_log: bool) -> None:
    """What a child does; says by the pipe that it serves, or why it cannot."""
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    begin_log("%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s")
    # The parent says that the service runs, and where.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    try:
        serve(settings, listener, ready=lambda: pipe.send(READY), access_log=access_log, alone=False)
    except StartupError as why:
        pipe.send(str(why))
        raise SystemExit(CANNOT_START) from None


def _end_with_parent(pipe: Connection) -> None:
    """End this process when the parent's end of the pipe is gone: nobody would watch over it or the database."""
    with suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGTERM)
