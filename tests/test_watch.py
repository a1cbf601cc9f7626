"""`job-api status --watch` as a real process: on a terminal, in a pipe, and while the service is away."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from job_api.client import Client
from job_api.schemas import ProjectSettings
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService
from tests.scripted import Answer, Asked, problem, serving
from tests.serving import PROGRAM

PROJECT = "patents"
END_SECONDS = 60
ROWS, COLUMNS = 30, 100


@pytest.fixture
def admin(service: RunningService) -> Client:
    client = service.client("admin")
    client.put_project(PROJECT, ProjectSettings(source="file:///data"))
    client.add_jobs(PROJECT, ["Name (Author 1999) [R1]", "second"])
    return client


@pytest.fixture
def worker(service: RunningService) -> Holder:
    return Holder(service.client("worker"))


@dataclass
class Watching:
    """A watching process and what it has said so far."""

    process: "subprocess.Popen[bytes]"
    read: Callable[[], bytes]
    said: bytes = b""
    seen: int = 0

    def until(self, text: str) -> str:
        """Read on until it says something new; returns all that was new up to there."""
        while (found := self.said.find(text.encode(), self.seen)) < 0:
            more = self.read()
            assert more, self.said.decode()
            self.said += more
        before, self.seen = self.seen, found + len(text.encode())
        return self.said[before : self.seen].decode(errors="replace")

    def rest(self) -> str:
        """Read on until it ends."""
        while more := self.read():
            self.said += more
        return self.said[self.seen :].decode(errors="replace")


@contextmanager
def watching(root: str, token: str, *names: str, terminal: bool = False) -> Iterator[Watching]:
    """Run `status --watch`, with a terminal or a pipe as its standard output."""
    env = os.environ | {"JOB_API_ROOT": root, "JOB_API_TOKEN": token, "TERM": "xterm-256color"}
    ours, theirs = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def read() -> bytes:
        try:
            return os.read(ours, 65536)
        except OSError:
            # A terminal that nobody has any more.
            return b""

    # A program inherits an ignored SIGINT, which tests in the background have.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = [PROGRAM, "status", *names, "--watch", "--interval", "0.5"]
        process = subprocess.Popen(command, env=env, stdout=theirs, stderr=theirs)
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(theirs)
    late = threading.Timer(END_SECONDS, process.kill)
    late.start()
    try:
        yield Watching(process, read)
    finally:
        late.cancel()
        process.kill()
        process.wait()
        os.close(ours)


def test_a_terminal_shows_a_table_that_lives(service: RunningService, admin: Client, worker: Holder) -> None:
    held = worker.one(PROJECT)
    with watching(service.root, service.token("read"), PROJECT, terminal=True) as watch:
        watch.until("2: 1 queued, 0 waiting, 1 claimed, 0 completed")
        watch.until("slowest directories")
        worker.complete(held, 1, "1.png")
        assert "\x1b[" in watch.until("2: 1 queued, 0 waiting, 0 claimed, 1 completed")
        worker.fail(worker.one(PROJECT), retryable=False, reason="no-images")
        # It ends by itself, with the last of it on the screen and the cursor back.
        rest = watch.rest()
        assert "1 completed, 1 failed" in rest
        assert "failing directories" in rest
        assert "no-images" in rest
        assert rest.rindex("\x1b[?25h") > rest.rindex("failing directories")
        assert watch.process.wait(END_SECONDS) == 0


def test_ctrl_c_ends_it_without_a_failure(service: RunningService, admin: Client) -> None:
    with watching(service.root, service.token("read"), terminal=True) as watch:
        watch.until(PROJECT)
        watch.process.send_signal(signal.SIGINT)
        rest = watch.rest()
        assert watch.process.wait(END_SECONDS) == 0
    assert "Traceback" not in rest
    assert "\x1b[?25h" in rest


def test_a_pipe_gets_a_line_for_each_change_also_after_the_service_was_away(
    service: RunningService, admin: Client, worker: Holder
) -> None:
    away = threading.Event()

    def forward(asked: Asked) -> Answer:
        if away.is_set():
            return problem(503, "database-unavailable", "the database is away", Retry_After="30")
        headers = {"Authorization": asked.authorization or ""}
        answer = httpx.request(asked.method, service.root + asked.path, params=asked.query, headers=headers, timeout=20)
        return Answer(answer.status_code, answer.content)

    with serving(forward) as server, watching(server.root, service.token("read")) as watch:
        watch.until("patents: jobs 2: 2 queued")
        asked = len(server.asked)
        away.set()
        watch.until("\n")
        assert "the database is away" in watch.until("\n")
        worker.complete(worker.one(PROJECT), 1, "1.png")
        away.clear()
        watch.until("the service answers again\n")
        watch.until("patents: jobs 2: 1 queued, 0 waiting, 0 claimed, 1 completed")
        worker.complete(worker.one(PROJECT), 1, "1.png")
        watch.rest()
        assert watch.process.wait(END_SECONDS) == 0
        assert len(server.asked) > asked
    assert b"\x1b" not in watch.said
    lines = watch.said.decode().splitlines()
    assert len(lines) == len({line[21:] for line in lines})
    assert "2 completed" in lines[-1]


def test_what_cannot_be_seen_is_told_at_once(service: RunningService, admin: Client) -> None:
    with watching(service.root, service.token("read"), "nothing") as watch:
        assert "HTTP 404" in watch.rest()
        assert watch.process.wait(END_SECONDS) == 1
    with watching("http://127.0.0.1:1", "t", PROJECT) as watch:
        assert "cannot be reached" in watch.rest()
        assert watch.process.wait(END_SECONDS) == 1
