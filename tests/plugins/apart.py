"""Engines apart as real processes, each at a socket of its own; nothing of them is left at the end."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests import engines
from tests.plugins.fleet import running_children
from tests.serving import wait_for


@dataclass
class EngineProcess:
    """A `uworker engine` and its recognisers."""

    process: psutil.Popen
    log_file: Path
    socket: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """The recogniser processes that run now."""
        return running_children(self.process.pid)

    def wait_listening(self) -> "EngineProcess":
        wait_for(lambda: "listening at" in self.log or self.process.poll() is not None)
        return self

    def wait(self, seconds: float = 30) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return int(self.process.wait(seconds) or 0)
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            raise AssertionError(f"the engine did not end in {seconds} s:\n{self.log}") from None

    def kill(self) -> None:
        """Kill it as the kernel kills a container that is out of memory: at once, and with all that is in it."""
        children = self.children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(30)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, 30)


EngineStarter = Callable[..., EngineProcess]


@pytest.fixture
def engine_socket() -> Iterator[Path]:
    """Where the engine of a test listens: not below tmp_path, for a socket's path is short."""
    folder = Path(tempfile.mkdtemp(prefix="dj-engine-"))
    yield folder / "engine.sock"
    shutil.rmtree(folder)


@pytest.fixture
def start_engine(tmp_path: Path, engine_socket: Path) -> Iterator[EngineStarter]:
    """Starts engines that know the tests' own engine as `pixel`: `start_engine(**settings)`."""
    register = tmp_path / "register"
    register.mkdir()
    (register / "sitecustomize.py").write_text(
        f"import uworker.engines\nuworker.engines._LOADERS['pixel'] = {engines.NAME!r}\n"
    )
    started: list[EngineProcess] = []

    def start(**settings: str) -> EngineProcess:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("UWORKER_", "JOB_API_"))}
        given = {"engine_socket": str(engine_socket), "weights_home": str(tmp_path), **settings}
        environment = clean | {f"UWORKER_{name.upper()}": value for name, value in given.items()}
        environment["PYTHONPATH"] = os.pathsep.join([str(register), str(Path(__file__).parents[2])])
        log_file = tmp_path / f"engine-{len(started)}-{time.monotonic_ns()}.log"
        with log_file.open("wb") as log:
            process = psutil.Popen(
                [sys.executable, "-m", "uworker", "engine"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        started.append(EngineProcess(process, log_file, Path(given["engine_socket"])))
        return started[-1]

    yield start
    for engine in started:
        engine.kill()
