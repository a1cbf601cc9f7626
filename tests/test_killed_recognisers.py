"""Recognisers killed again and again, as by a system that is out of memory: every image has its row, once."""

from collections import Counter

import psutil

from job_api.schemas import ProjectSettings
from tests.plugins.fleet import Corpus, WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import wait_for

PROJECT = "patents"
# An image that was in a dead process's hands is tried alone; it must not happen to be killed again just then.
ROWS_BETWEEN_DEATHS = 60


def test_recognisers_killed_in_the_middle_cost_no_image(
    service: RunningService, long_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=long_corpus.source))
    directories = long_corpus.directories[:8]
    smiles = {key: value for key, value in long_corpus.smiles.items() if key[0] in directories}
    admin.add_jobs(PROJECT, directories)
    worker = start_worker(service.root, service.token("worker"), processes="2", threads_per_process="1")
    killed: set[int] = set()
    rows = 0
    while rows + ROWS_BETWEEN_DEATHS < len(smiles):
        wait_for(lambda: admin.project(PROJECT).images.stored >= rows + ROWS_BETWEEN_DEATHS, 120)  # noqa: B023
        rows = admin.project(PROJECT).images.stored
        busiest = max(worker.children(), key=lambda child: sum(child.cpu_times()[:2]))
        killed.add(busiest.pid)
        busiest.kill()
    assert worker.wait() == 0, worker.log
    assert len(killed) >= 3
    assert worker.log.count("exit -9, SIGKILL, possible out of memory") == len(killed)
    found = list(admin.results(PROJECT))
    assert Counter((row["directory"], row["image"]) for row in found) == Counter(smiles.keys())
    right = [row["smiles"] == smiles[row["directory"], row["image"]] for row in found]
    assert all(right), worker.log
    assert not [pid for pid in killed if psutil.pid_exists(pid)]
    service.assert_counters_equal_recount()
