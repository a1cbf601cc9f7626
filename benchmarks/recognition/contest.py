"""Measures an engine by itself, in one process or several, on images that are given out one by one or in batches."""

import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.recognition.contestant import NUMBER_BYTES
from benchmarks.recognition.outcome import Outcome
from benchmarks.recognition.watch import Watch
from benchmarks.stage import ROOT, BenchmarkError
from uworker.prepared.files import find_prepared

LOAD_SECONDS = 600.0
IMAGE_SECONDS = 120.0
LOOK_SECONDS = 1.0
LAST_WORDS_CHARS = 2000


@dataclass(frozen=True)
class Layout:
    """How many processes, and how many images each recognises at once.

    Args:
        one_core_per_image: TensorFlow uses one thread for each image; otherwise what it does by itself.
        prepared: the prepared model, without TensorFlow; otherwise the `decimer` package.
        batched: each thread takes several images at once, as many as the engine reads together.
    """

    processes: int
    threads: int
    one_core_per_image: bool = True
    prepared: bool = False
    batched: bool = False

    @classmethod
    def parse(cls, text: str) -> "Layout | None":
        """Read "2x4", two processes of four threads; None for anything else."""
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
        return found and cls(int(found[1]), int(found[2]))


def compete(layout: Layout, home: Path, images: list[Path]) -> Outcome:
    """Recognise the images, each once.

    Args:
        layout: processes and threads.
        home: what `PYSTOW_HOME` names.
        images: files; the first is recognised once more by each process, beforehand, to be warm.

    Raises:
        BenchmarkError: a process ended before its time, took too long, or has loaded another model.
    """
    prepared = _prepared_below(home) if layout.prepared else None
    with tempfile.NamedTemporaryFile("w") as listed, tempfile.TemporaryFile() as log, ExitStack() as stack:
        json.dump(list(map(str, images)), listed)
        listed.flush()
        tasks_out, tasks_in = os.pipe()
        reports_out, reports_in = os.pipe()
        reports = stack.enter_context(os.fdopen(reports_out, "rb", buffering=0))
        tasks = stack.enter_context(os.fdopen(tasks_in, "wb", buffering=0))
        started_at = time.monotonic()
        try:
            processes = [
                stack.enter_context(
                    _contestant(_setting(layout, prepared), home, Path(listed.name), (tasks_out, reports_in, log))
                )
                for _ in range(layout.processes)
            ]
        finally:
            os.close(tasks_out)
            os.close(reports_in)
        with Watch(lambda: [process.pid for process in processes]) as watch:
            heard = _Hearing(reports, processes, log)
            loaded = heard.take(layout.processes, LOAD_SECONDS)
            ready_at = time.monotonic()
            tasks.write(b"".join(number.to_bytes(NUMBER_BYTES, "big") for number in range(len(images))))
            # They wait for more until the watch is over, so that its last sample finds them however quick they were.
            done = heard.take(len(images), IMAGE_SECONDS * len(images))
    check_loaded(layout, prepared, loaded)
    if sorted(report["image"] for report in done) != list(range(len(images))):
        raise BenchmarkError("not every image was recognised once")
    began, ended = min(report["began"] for report in done), max(report["ended"] for report in done)
    return Outcome(
        len(images),
        ended - began,
        ready_at - started_at,
        watch.peak_bytes,
        watch.shares(began, ended),
        sum(report["characters"] for report in done),
        max(report["at_once"] for report in done),
    )


def check_loaded(layout: Layout, prepared: str | None, reports: list[dict[str, Any]]) -> None:
    """See that each process has loaded the model that is measured: the prepared one of that digest, or TensorFlow's.

    Raises:
        BenchmarkError: some have not, and their figures would be another's.
    """
    if any((report["prepared"], report["tensorflow"]) != (prepared, not layout.prepared) for report in reports):
        raise BenchmarkError(f"{layout} has loaded another model: {reports}")


def check_length(outcome: Outcome, tokens: int) -> None:
    """See that each answer had as many tokens, so that all do the same work.

    Raises:
        BenchmarkError: they had not.
    """
    if outcome.characters != tokens * outcome.images:
        raise BenchmarkError(f"answers had {outcome.characters} tokens in all, not {outcome.images} times {tokens}")


def _prepared_below(home: Path) -> str:
    """The digest of the prepared model."""
    found = find_prepared(home, hand_drawn=False)
    if found is None:
        raise BenchmarkError(f"there is no prepared model below {home}")
    return found.sha256


def _setting(layout: Layout, prepared: str | None) -> dict[str, Any]:
    return {
        "threads": layout.threads,
        "one_core_per_image": layout.one_core_per_image,
        "prepared": prepared,
        "batched": layout.batched,
        "readers": layout.processes * layout.threads,
    }


@contextmanager
def _contestant(
    setting: dict[str, Any], home: Path, images: Path, streams: tuple[int, int, IO[bytes]]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that reads tasks and writes reports and a log, killed at the end where it is still there."""
    tasks, reports, log = streams
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.recognition.contestant", json.dumps(setting), str(images)],
        cwd=ROOT,
        env={**os.environ, "PYSTOW_HOME": str(home), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=tasks,
        stdout=reports,
        stderr=log,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class _Hearing:
    """Takes what the processes report, a line at a time."""

    def __init__(self, reports: IO[bytes], processes: list["subprocess.Popen[bytes]"], log: IO[bytes]) -> None:
        self._reports = reports
        self._processes = processes
        self._log = log
        self._unread = b""

    def take(self, number: int, seconds: float) -> list[dict[str, Any]]:
        """Wait for as many reports.

        Raises:
            BenchmarkError: they did not come in time, or a process has failed.
        """
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._reports, selectors.EVENT_READ)
            while self._unread.count(b"\n") < number:
                ended = False
                if selector.select(LOOK_SECONDS):
                    more = os.read(self._reports.fileno(), 65536)
                    self._unread, ended = self._unread + more, not more
                if ended or any(process.poll() for process in self._processes):
                    raise BenchmarkError(f"a process without the worker ended: {self._last_words()}")
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{number} reports did not come in {seconds:.0f} s: {self._last_words()}")
        *lines, self._unread = self._unread.split(b"\n", maxsplit=number)
        return [json.loads(line) for line in lines]

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-LAST_WORDS_CHARS:]
