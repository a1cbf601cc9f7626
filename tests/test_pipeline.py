"""Claiming, reading, recognising and posting side by side: directories of any size, few held, in their order."""

import itertools
from pathlib import Path

from job_api.schemas import ProjectSettings
from tests import engines
from tests.engines import picture
from tests.plugins.fleet import Corpus, WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import LOAD_SECONDS, wait_for
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
        target = tmp_path / "source" / name / "image.png"
        target.parent.mkdir(parents=True)
        # A worker recognises equal bytes once.
        target.write_bytes((corpus.root / directory / image).read_bytes() + name.encode())
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=(tmp_path / "source").as_uri()))
    admin.add_jobs(PROJECT, names)
    worker = start_worker(service.root, service.token("worker"), **PLAN)
    held: set[int] = set()

    def finished() -> bool:
        jobs = admin.project(PROJECT).jobs
        held.add(jobs.claimed)
        return jobs.unfinished == 0

    wait_for(finished, LOAD_SECONDS)
    assert worker.wait() == 0, worker.log
    assert admin.project(PROJECT).jobs.completed == SMALL_DIRECTORIES
    assert max(held) <= 2 * MOST_HELD
    [claims] = service.sql("SELECT count(DISTINCT claim_key) AS claims, count(*) AS jobs FROM attempts")
    assert claims["jobs"] == SMALL_DIRECTORIES
    assert claims["claims"] < SMALL_DIRECTORIES * 0.8


def test_directories_of_one_image_fill_the_batches_of_an_engine(
    service: RunningService, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    gate, batches = tmp_path / "gate", tmp_path / "batches"
    names = [f"{number:02}" for number in range(30)]
    for name in names:
        target = tmp_path / "source" / name / "image.png"
        target.parent.mkdir(parents=True)
        target.write_bytes(picture(engines.GATE) + name.encode())
    options = {"max_batch": 8, "gate": str(gate), "batches": str(batches)}
    project = ProjectSettings(source=(tmp_path / "source").as_uri(), engine="pixel", engine_options=options)
    admin = service.client("admin")
    admin.put_project(PROJECT, project)
    admin.add_jobs(PROJECT, names)
    worker = start_worker(service.root, service.token("worker"), processes="1", threads_per_process="1")
    # Two batches are in hand, and some images read ahead.
    wait_for(lambda: admin.project(PROJECT).jobs.claimed >= 2 * 8 + 1, LOAD_SECONDS)
    assert admin.project(PROJECT).jobs.claimed < len(names)
    gate.touch()
    assert worker.wait() == 0, worker.log
    assert admin.project(PROJECT).images.recognised == len(names)
    assert max(len(line.split()) for line in batches.read_text().splitlines()) == 8


def test_directories_are_finished_in_order_and_none_is_claimed_long_before_its_turn(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = service.client("admin")
    # Twenty images each, for which a claim may come a second late on a busy machine.
    changes = {"image_include": ["[01]?/*"], "engine_options": {"seconds": 0.25}}
    admin.put_project(PROJECT, paced_corpus.project.model_copy(update=changes))
    admin.add_jobs(PROJECT, paced_corpus.directories[:5])
    worker = start_worker(service.root, service.token("worker"), **PLAN)
    assert worker.wait() == 0, worker.log
    assert admin.project(PROJECT).images.recognised == 5 * 20
    attempts = service.sql("SELECT job_id, claimed_at, ended_at FROM attempts ORDER BY ended_at")
    assert [attempt["job_id"] for attempt in attempts] == sorted(attempt["job_id"] for attempt in attempts)
    assert len(attempts) == 5
    # The next is claimed before one ends, so that nobody waits for it; the one after that is not.
    for one, following in itertools.pairwise(attempts):
        assert following["claimed_at"] < one["ended_at"], "the recognisers ran dry between two directories"
    for one, later in zip(attempts, attempts[2:], strict=False):
        assert later["claimed_at"] > one["ended_at"], "too much is held at once"
