"""Supervisors of real recogniser processes, with what they said."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from job_api.schemas import NewResult
from tests import engines
from tests.engines import picture
from uworker.supervisor import EngineReady, Finished, ImageTask, RecogniserConfig, Report, Supervisor

DEADLINE_SECONDS = 90.0


@dataclass
class Watched:
    """A supervisor with what it said."""

    supervisor: Supervisor
    lines: list[str]
    logs: list[str]
    pids: set[int] = field(default_factory=set)
    reports: list[Report] = field(default_factory=list)

    def poll_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not done():
            assert time.monotonic() < deadline, (self.reports, self.logs, self.lines)
            self.reports += self.supervisor.poll(0.05)
            self.pids |= set(self.supervisor.pids())

    def wait_ready(self, processes: int = 1) -> None:
        self.poll_until(lambda: sum(isinstance(r, EngineReady) for r in self.reports) >= processes)

    def finish(self, count: int) -> dict[int, dict[str, Any]]:
        """Poll until `count` images are finished; each once, each a valid row."""
        self.poll_until(lambda: len(self.finished) >= count)
        self.reports += self.supervisor.poll(0)
        rows = {finished.task_id: finished.row for finished in self.finished}
        assert len(self.finished) == len(rows) == count
        for row in rows.values():
            NewResult.model_validate({"image": "a.png", **row})
        return rows

    @property
    def finished(self) -> list[Finished]:
        return [report for report in self.reports if isinstance(report, Finished)]

    def submit(self, *codes: int, first: int = 0) -> None:
        for task_id, code in enumerate(codes, start=first):
            self.supervisor.submit(ImageTask(task_id, f"{task_id}.png", picture(code)))


Supervise = Callable[..., Watched]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Start supervisors of the test engine (or another), and have none of their processes left at the end."""
    started: list[Watched] = []

    def start(*, processes: int = 1, threads: int = 1, timeout: float = 60, **overrides: Any) -> Watched:
        config = RecogniserConfig(
            engine=overrides.get("engine", engines.NAME),
            engine_options=overrides.get("options", {}),
            threads=threads,
            weights_home=overrides.get("home", tmp_path),
            max_pixels=64_000_000,
            image_timeout_seconds=timeout,
            load_timeout_seconds=overrides.get("load_timeout", 120),
            end_timeout_seconds=overrides.get("end_timeout", 60),
        )
        lines: list[str] = []
        logs: list[str] = []
        supervisor = Supervisor(
            config,
            processes,
            lambda line, _: lines.append(line),
            lambda _, text: logs.append(text),
            fixed=overrides.get("fixed", True),
        )
        watched = Watched(supervisor, lines, logs)
        started.append(watched)
        supervisor.start()
        watched.pids |= set(supervisor.pids())
        return watched

    yield start
    for watched in started:
        watched.pids |= set(watched.supervisor.pids())
        watched.supervisor.stop(0.5)
        assert watched.supervisor.pids() == []
        assert [pid for pid in watched.pids if psutil.pid_exists(pid)] == []


def noted(path: Path) -> list[list[int]]:
    """The codes of each batch that the engine has had."""
    return [[int(code) for code in line.split()] for line in path.read_text().splitlines()]


def begun(path: Path) -> int:
    """How often a thread has begun with images."""
    return path.read_text().count("+") if path.exists() else 0


def most_at_work(path: Path, code: int | None = None) -> int:
    """How many threads of all processes were at work at once, at most; `code`: when one began with such an image."""
    most, now = 0, Counter[str]()
    killed = set()
    for line in path.read_text().splitlines():
        sign, pid, *codes = line.split()
        if sign == "x":
            killed.add(pid)
        if pid in killed:
            now.pop(pid, None)
            continue
        now[pid] += 1 if sign == "+" else -1
        if sign == "+" and (code is None or str(code) in codes):
            most = max(most, now.total())
    assert now.total() == 0
    return most
