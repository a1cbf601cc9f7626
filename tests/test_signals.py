"""A worker that is told to end by its group and by its parent at once."""

import signal
import time

from tests.plugins.fleet import Corpus, WorkerProcess, WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import LOAD_SECONDS, wait_for

PROJECT = "patents"


def working(service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter) -> WorkerProcess:
    """A worker that holds leases."""
    admin = service.client("admin")
    admin.put_project(PROJECT, paced_corpus.project)
    admin.add_jobs(PROJECT, paced_corpus.directories)
    worker = start_worker(service.root, service.token("worker"), once=False)
    wait_for(lambda: next(admin.results(PROJECT), None) is not None, LOAD_SECONDS)
    return worker


def test_the_same_signal_from_the_group_and_from_a_parent_ends_a_worker_in_order(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    worker = working(service, paced_corpus, start_worker)
    for _ in range(5):
        if worker.process.poll() is None:
            worker.send(signal.SIGTERM)
            # Signals that wait together are one; these come one by one.
            time.sleep(0.01)
    assert worker.wait() == 0, worker.log
    assert service.client("admin").project(PROJECT).jobs.claimed == 0
