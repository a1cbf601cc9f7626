"""Claiming, reading, recognising and posting side by side: directories of any size, few held, in their order."""

import itertools
import shutil
from pathlib import Path

from job_api.schemas import ProjectSettings
from tests.plugins.fleet import Corpus, WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import wait_for
from uworker.worker import MOST_HELD

PROJECT = "patents"
SMALL_DIRECTORIES = 150
PLAN = {"processes": "1", "threads_per_process": "2"}


def test_small_directories_are_claimed_several_at_once_and_few_are_held(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    """A claim for each would keep the recognisers waiting, where the way to the service is long."""
    directory, image = next(iter(corpus.smiles))
    names = [f"{number:03}" for number in range(SMALL_DIRECTORIES)]
    for name in names:
        (tmp_path / "source" / name).mkdir(parents=True)
        shutil.copyfile(corpus.root / directory / image, tmp_path / "source" / name / "image.png")
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=(tmp_path / "source").as_uri()))
    admin.add_jobs(PROJECT, names)
    worker = start_worker(service.root, service.token("worker"), **PLAN)
    held: set[int] = set()

    def finished() -> bool:
        jobs = admin.project(PROJECT).jobs
        held.add(jobs.claimed)
        return jobs.unfinished == 0

    wait_for(finished, 120)
    assert worker.wait() == 0, worker.log
    assert admin.project(PROJECT).jobs.completed == SMALL_DIRECTORIES
    assert max(held) <= 2 * MOST_HELD
    [claims] = service.sql("SELECT count(DISTINCT claim_key) AS claims, count(*) AS jobs FROM attempts")
    assert claims["jobs"] == SMALL_DIRECTORIES
    assert claims["claims"] < SMALL_DIRECTORIES * 0.8


def test_directories_are_finished_in_order_and_none_is_claimed_long_before_its_turn(
    service: RunningService, long_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=long_corpus.source))
    admin.add_jobs(PROJECT, long_corpus.directories[:6])
    worker = start_worker(service.root, service.token("worker"), **PLAN)
    assert worker.wait() == 0, worker.log
    attempts = service.sql("SELECT job_id, claimed_at, ended_at FROM attempts ORDER BY ended_at")
    assert [attempt["job_id"] for attempt in attempts] == sorted(attempt["job_id"] for attempt in attempts)
    assert len(attempts) == 6
    # The next is claimed before one ends, so that nobody waits for it; the one after that is not.
    for one, following in itertools.pairwise(attempts):
        assert following["claimed_at"] < one["ended_at"], "the recognisers ran dry between two directories"
    for one, later in zip(attempts, attempts[2:], strict=False):
        assert later["claimed_at"] > one["ended_at"], "too much is held at once"
