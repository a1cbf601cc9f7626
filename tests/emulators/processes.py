"""Starts a server as a process of its own, on a free port, and ends it with whoever started it."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60.0
LAST_WORDS_CHARS = 2000
_LEASH = Path(__file__).with_name("leash.py")


class NoServer(Exception):
    """A server does not start; the message has its last words."""


@dataclass(frozen=True)
class ServerProcess:
    """A server that answers.

    Args:
        address: such as `http://127.0.0.1:40123`, as it told it itself.
    """

    address: str
    pid: int

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.address.rpartition(":")[2])


@contextmanager
def run_server(
    command: Sequence[str],
    told: str,
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    stop_seconds: float = 0.0,
) -> Iterator[ServerProcess]:
    """A running server; at the end nothing of it is left.

    Args:
        command: must have it listen on a port of its own choice, for one that we chose could be taken by another.
        told: what it prints when it listens, a pattern whose group is its address.
        environment: variables besides those of this process.
        directory: what it works in.
        stop_seconds: how long it may take to end in an orderly way; by default what it holds is thrown away.

    Raises:
        NoServer: it ended, or took too long.
    """
    with (
        tempfile.NamedTemporaryFile(prefix="emulator-", suffix=".log") as log,
        subprocess.Popen(
            [sys.executable, "-ES", str(_LEASH), str(os.getpid()), *command],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield ServerProcess(_await_address(process, Path(log.name), told), process.pid)
        finally:
            _end(process, stop_seconds)


def _end(process: "subprocess.Popen[bytes]", stop_seconds: float) -> None:
    if stop_seconds and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(stop_seconds)
    process.kill()


def _await_address(process: "subprocess.Popen[bytes]", log_file: Path, told: str) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(told, log_file.read_text(errors="replace")):
            return found[1]
        time.sleep(0.02)
    words = log_file.read_text(errors="replace")[-LAST_WORDS_CHARS:]
    raise NoServer(f"{process.args!r} does not start: {words}")
