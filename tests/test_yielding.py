"""A real worker on a real machine: what it says of both, and how it makes room for another program."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from job_api.client import Client
from job_api.schemas import MachineLoad, ProjectSettings
from tests.plugins.fleet import Corpus, WorkerProcess, WorkerStarter
from tests.plugins.service import RunningService
from uworker.machine import Sampler, read_machine
from uworker.scaling import HOUSEKEEPING_CORES

PROJECT = "patents"
DEADLINE_SECONDS = 90.0
YIELDS = "1 recogniser process, 1 thread: another program uses"
BEATING = pytest.mark.service(lease_seconds=60, heartbeat_seconds=1)


def wait_calmly(condition: Callable[[], object], what: Callable[[], object]) -> None:
    """Wait without using up the processor, which is what these tests are about."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what()
        pause.wait(0.5)


@contextmanager
def busy_program() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def start(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, **settings: str
) -> tuple[Client, WorkerProcess]:
    """A worker that has loaded its recognisers, and stays."""
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=corpus.source))
    admin.add_jobs(PROJECT, corpus.directories)
    worker = start_worker(service.root, service.token("worker", fresh=True), once=False, **settings)
    wait_calmly(lambda: "a recogniser is ready" in worker.log, lambda: worker.log)
    return admin, worker


def load_of(admin: Client) -> MachineLoad:
    [seen] = admin.workers()
    return seen.load or MachineLoad()


def others_cores(worker: WorkerProcess, seconds: float = 6.0) -> float:
    """Cores that this machine's other programs use, as seen from here."""
    sampler = Sampler()
    pids = [worker.process.pid, *(child.pid for child in worker.children())]
    end = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < end:
        sampler.sample(time.monotonic(), pids)
        pause.wait(0.5)
    assert sampler.load is not None
    return sampler.load.others_cores


@BEATING
def test_the_service_shows_what_a_workers_machine_does(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin, worker = start(service, corpus, start_worker)
    wait_calmly(lambda: admin.project(PROJECT).jobs.unfinished == 0, lambda: worker.log)

    def is_at_work() -> bool:
        # The machine is looked at once a second, the speed with each word: one may tell of a recogniser sooner.
        told = load_of(admin)
        return (told.images_per_second or 0) > 0 and (told.threads or 0) > 0 and (told.cpu_percent or 0) > 0

    wait_calmly(is_at_work, lambda: load_of(admin))
    load = load_of(admin)
    assert load.processes == len(worker.children()) == 1
    assert load.threads is not None
    assert load.threads <= max(4, len(os.sched_getaffinity(0)))
    assert load.cpu_percent is not None
    assert load.cpu_percent <= 100
    assert load.memory_percent is not None

    def is_the_machines() -> bool:
        machine, told = read_machine(), load_of(admin).memory_percent
        return bool(told == pytest.approx(100 * machine.memory_used_bytes / machine.memory_bytes, abs=15))

    # Its figure is of some seconds, in which other programs come and go.
    wait_calmly(is_the_machines, lambda: load_of(admin))


@BEATING
def test_processes_that_were_set_are_all_started_and_shown(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin, worker = start(service, corpus, start_worker, processes="2", threads_per_process="1")
    wait_calmly(lambda: worker.log.count("a recogniser is ready") == 2, lambda: worker.log)
    wait_calmly(lambda: load_of(admin).processes == 2, lambda: load_of(admin))
    assert len(worker.children()) == 2
    assert "2 recogniser processes with 1 thread (as set)" in worker.log


@BEATING
@pytest.mark.alone
@pytest.mark.timeout(480)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has one thread, however little is left of it")
def test_a_worker_yields_to_another_program_and_takes_back_what_that_leaves(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    # One process, so that nothing but the other program changes the number of threads.
    cores = len(os.sched_getaffinity(0))
    admin, worker = start(service, corpus, start_worker, processes="1", threads_per_process=str(cores))
    with ExitStack() as programs:
        for _ in range(cores):
            programs.enter_context(busy_program())
        wait_calmly(lambda: YIELDS in worker.log, lambda: worker.log)
        wait_calmly(lambda: load_of(admin).threads == 1, lambda: load_of(admin))
        assert worker.children()[0].status() != psutil.STATUS_ZOMBIE, "it keeps the engine it has loaded"
        yielded = worker.log.rindex(YIELDS)

    def grown() -> bool:
        return (load_of(admin).threads or 0) > 1

    # Fewer images at once, but they are all done.
    wait_calmly(lambda: admin.project(PROJECT).jobs.unfinished == 0, lambda: worker.log)
    try:
        wait_calmly(grown, lambda: worker.log)
    except AssertionError:
        if others_cores(worker) < HOUSEKEEPING_CORES:
            raise
        pytest.skip("other programs keep this machine busy, so that nothing is left to be taken back")
    assert "threads: " in worker.log[yielded + len(YIELDS) :]
    assert worker.log.count("a recogniser is ready") == 1
