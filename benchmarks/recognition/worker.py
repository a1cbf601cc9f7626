"""Measures the worker as people run it: a real service, jobs added by the client, `uworker --once`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.recognition.outcome import Outcome
from benchmarks.recognition.pictures import Pictures
from benchmarks.recognition.watch import Watch
from benchmarks.stage import ROOT, BenchmarkError, Stage, open_stage
from job_api.schemas import ProjectSettings

PROJECT = "recognition"
STOP_SECONDS = 25.0
SECONDS_PER_IMAGE = 120.0
LOAD_SECONDS = 600.0
LAST_WORDS_CHARS = 2000


def recognise(
    pictures: Pictures,
    home: Path,
    *,
    source: str | None = None,
    engine: str = "decimer",
    environment: Mapping[str, str] | None = None,
) -> tuple[Outcome, dict[str, Any]]:
    """Have a worker do all pictures' directories; returns also what else there is to be told.

    The clock runs from the beginning of the first image, which is a job of its own so that its row is stored as soon
    as it is done, until the last row is stored. A job's last row always is stored at once.

    Args:
        pictures: what is recognised.
        home: where the engine's weights are.
        source: URL of where the pictures are; their root if None.
        engine: the project's.
        environment: variables for the worker, besides those that it needs.

    Raises:
        BenchmarkError: the worker failed, or some image was not recognised by the engine.
    """
    with open_stage() as stage:
        with stage.client() as client:
            client.put_project(PROJECT, ProjectSettings(source=source or pictures.root.as_uri(), engine=engine))
            client.add_jobs(PROJECT, pictures.directories)
        log_file = stage.directory / "worker.log"
        started_at = time.time()
        with (
            Watch(lambda: [stage.service_pid]) as service,
            _worker(stage, home, log_file, environment or {}) as worker,
            Watch(lambda: [worker.pid]) as watch,
        ):
            _await(worker, log_file, len(pictures.files))
        ended_at = time.time()
        with stage.client() as client:
            rows = list(client.results(PROJECT))
        plan = next((line for line in log_file.read_text().splitlines() if "loading the engine" in line), "")
    _check(rows, pictures)
    stored_at = [datetime.fromisoformat(row["processed_at"]).timestamp() for row in rows]
    began = min(at - row["duration_ms"] / 1000 for at, row in zip(stored_at, rows, strict=True))
    ended = max(stored_at)
    # The database's clock is this machine's.
    behind = time.time() - time.monotonic()
    outcome = Outcome(
        len(rows), ended - began, began - started_at, watch.peak_bytes, watch.shares(began - behind, ended - behind)
    )
    return outcome, {
        "plan": plan.partition("loading the engine ")[2],
        "ending_seconds": round(ended_at - ended, 2),
        "service_peak_mb": round(service.peak_bytes / 1e6),
        "service_cores": round(service.shares(began - behind, ended - behind).watched, 4),
        "rows_by_status": {status: sum(row["status"] == status for row in rows) for status in _statuses(rows)},
        "prepared": sorted({str(row["prepared"]) for row in rows}),
    }


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of a service or a worker."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("JOB_API_", "UWORKER_"))}


@contextmanager
def _worker(stage: Stage, home: Path, log_file: Path, given: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    environment = clean_environment() | {
        "UWORKER_JOB_API_ROOT": stage.root,
        "UWORKER_JOB_API_TOKEN": stage.worker_token,
        "UWORKER_JOB_API_PROJECT": PROJECT,
        "UWORKER_WEIGHTS_HOME": str(home),
        **given,
    }
    with log_file.open("w") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "uworker", "--once"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        yield worker
    finally:
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _await(worker: "subprocess.Popen[bytes]", log_file: Path, images: int) -> None:
    try:
        exit_code = worker.wait(LOAD_SECONDS + SECONDS_PER_IMAGE * images)
    except subprocess.TimeoutExpired:
        exit_code = None
    if exit_code != 0:
        words = log_file.read_text()[-LAST_WORDS_CHARS:]
        raise BenchmarkError(f"the worker ended with {exit_code}: {words}")


def _statuses(rows: list[dict[str, Any]]) -> list[str]:
    return sorted({row["status"] for row in rows})


def _check(rows: list[dict[str, Any]], pictures: Pictures) -> None:
    wanted = sorted(file.relative_to(pictures.root).as_posix() for file in pictures.files)
    if sorted(f"{row['directory']}/{row['image']}" for row in rows) != wanted:
        raise BenchmarkError(f"{len(wanted)} images were to be recognised, and there are {len(rows)} rows")
    # Anything else did not come from the engine, and would make the worker look fast.
    if wrong := [row for row in rows if row["status"] != "recognised"]:
        raise BenchmarkError(f"{len(wrong)} images were not recognised, the first: {wrong[0]}")
