"""Recognisers killed again and again, as by a system that is out of memory: every image has its row, once."""

import signal
from collections import Counter

import psutil

from tests.plugins.fleet import Corpus, WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import LOAD_SECONDS, wait_for

PROJECT = "patents"
READY, KILLED = "a recogniser is ready", "exit -9, SIGKILL, possible out of memory"
DEATHS = 4


def test_recognisers_killed_in_the_middle_cost_no_image(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = service.client("admin")
    # Slow enough that there is work left for the last of them, however long each takes to start.
    slow = paced_corpus.project.model_copy(update={"engine_options": {"seconds": 0.15}})
    admin.put_project(PROJECT, slow)
    admin.add_jobs(PROJECT, paced_corpus.directories)
    plan = {"processes": "2", "threads_per_process": "1"}
    worker = start_worker(service.root, service.token("worker"), once=False, **plan)

    def completed() -> int:
        return admin.project(PROJECT).jobs.completed

    killed: set[int] = set()
    for deaths in range(DEATHS):
        # The images that were in a dead process's hands are tried alone, once there is another: they are not to be
        # killed again just then, and are through when more jobs have come to their end.
        wait_for(lambda: worker.log.count(READY) >= 2 + deaths, LOAD_SECONDS)  # noqa: B023
        before = completed()
        wait_for(lambda: completed() > before)  # noqa: B023
        victim = max(worker.children(), key=lambda child: child.pid)
        killed.add(victim.pid)
        victim.kill()
        wait_for(lambda: worker.log.count(KILLED) == len(killed))
    wait_for(lambda: completed() == len(paced_corpus.directories))
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert len(killed) == DEATHS
    assert "images in its hands" in worker.log
    assert sum("possible out of memory" in line.message for line in admin.logs(level="error")) == DEATHS
    rows = list(admin.results(PROJECT))
    assert Counter((row["directory"], row["image"]) for row in rows) == Counter(paced_corpus.smiles.keys())
    wrong = [row for row in rows if row["smiles"] != paced_corpus.smiles[row["directory"], row["image"]]]
    assert wrong == [], worker.log
    assert all(job.failures == 0 for job in admin.jobs(PROJECT))
    assert not [pid for pid in killed if psutil.pid_exists(pid)]
    service.assert_counters_equal_recount()
