"""Workers as real processes, on a source of their own; nothing of them is left at the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from job_api.schemas import ProjectSettings
from tests import engines
from tests.plugins.model import DrawnSamples

END_SECONDS = 400.0


def running_children(pid: int) -> list[psutil.Process]:
    """Children that have not ended."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            with suppress(psutil.NoSuchProcess):
                if child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
    return found


@dataclass
class WorkerProcess:
    """A `uworker` and its recognisers."""

    process: "subprocess.Popen[bytes]"
    log_file: Path
    token: str = field(repr=False)

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """The recogniser processes that run now."""
        return running_children(self.process.pid)

    def wait(self, seconds: float = END_SECONDS) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end in {seconds} s:\n{self.log}") from None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """Kill it and what it started."""
        children = self.children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        for child in children:
            child.wait(30)


WorkerStarter = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(tmp_path: Path, miniature_home: Path) -> Iterator[WorkerStarter]:
    """Starts workers with the miniature model: `start_worker(root, token, once=True, **settings)`.

    They know the engine of `tests.engines`, too, for projects that want "pixel".
    """
    started: list[WorkerProcess] = []
    known = tmp_path / "known to workers"
    known.mkdir()
    register = f"import uworker.engines\nuworker.engines._LOADERS['pixel'] = {engines.NAME!r}\n"
    (known / "sitecustomize.py").write_text(register)

    def start(
        root: str, token: str, *, once: bool = True, python_path: Path | None = None, **settings: str
    ) -> WorkerProcess:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("UWORKER_", "JOB_API_"))}
        given = {"job_api_root": root, "job_api_token": token, "weights_home": str(miniature_home)}
        # Where the tests themselves run in a cloud, its notices are none of theirs.
        given |= {"spool_dir": str(tmp_path / "spool"), "eviction": "off", **settings}
        environment = clean | {f"UWORKER_{name.upper()}": value for name, value in given.items()}
        inherited = [path for path in (clean.get("PYTHONPATH"),) if path]
        environment["PYTHONPATH"] = os.pathsep.join([str(python_path or known), *inherited])
        log_file = tmp_path / f"worker-{len(started)}.log"
        command = [sys.executable, "-m", "uworker", *(["--once"] if once else [])]
        with log_file.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        worker = WorkerProcess(process, log_file, token)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.end()


@dataclass
class Corpus:
    """Directories of images below `root`, and what each image is: (directory, image) -> SMILES."""

    root: Path
    smiles: dict[tuple[str, str], str]
    engine: str = "decimer"
    engine_options: dict[str, Any] = field(default_factory=dict)

    @property
    def project(self) -> ProjectSettings:
        """A project of these images."""
        return ProjectSettings(source=self.source, engine=self.engine, engine_options=self.engine_options)

    @property
    def directories(self) -> list[str]:
        return sorted({directory for directory, _ in self.smiles})

    @property
    def source(self) -> str:
        return self.root.as_uri()

    def part(self, directories: int) -> "Corpus":
        """The first directories of it alone."""
        kept = self.directories[:directories]
        return replace(self, smiles={key: smiles for key, smiles in self.smiles.items() if key[0] in kept})


@pytest.fixture
def corpus(samples: DrawnSamples) -> Corpus:
    """The sample directories as they were drawn; never to be changed."""
    return Corpus(samples.root, {(item.directory, item.image): item.smiles for item in samples.items})


@pytest.fixture
def long_corpus(tmp_path: Path, samples: DrawnSamples) -> Corpus:
    """Directories enough to be killed in the middle of: 12 of 42 images each."""
    root, smiles = tmp_path / "long corpus", {}
    for number in range(12):
        directory = f"{number:02} (copy)"
        for place, item in enumerate(samples.items):
            image = f"{place:02}/sequence{item.path.suffix}"
            target = root / directory / image
            target.parent.mkdir(parents=True)
            # A worker recognises equal bytes once.
            target.write_bytes(item.path.read_bytes() + f"{number}, {place}".encode())
            smiles[directory, image] = item.smiles
    return Corpus(root, smiles)


@pytest.fixture
def paced_corpus(tmp_path: Path) -> Corpus:
    """As `long_corpus`, for an engine that takes its time and next to no core: where all that is asked is what becomes
    of jobs, TensorFlow need not be loaded for it.
    """
    root, smiles = tmp_path / "paced corpus", {}
    for number in range(12):
        for place in range(42):
            directory, image, atoms = f"{number:02} (copy)", f"{place:02}/sequence.png", 1 + (7 * number + place) % 50
            target = root / directory / image
            target.parent.mkdir(parents=True)
            target.write_bytes(engines.picture(atoms) + f"{number}, {place}".encode())
            smiles[directory, image] = "C" * atoms
    return Corpus(root, smiles, "pixel", {"seconds": 0.04})
