"""Equal bytes are recognised once while a worker has them, and each image has its row all the same."""

from pathlib import Path

import pytest

from job_api.schemas import JobState, ProjectSettings
from tests import engines
from tests.engines import picture
from tests.plugins.apart import EngineStarter
from tests.plugins.fleet import WorkerStarter
from tests.plugins.holder import LEASE
from tests.plugins.service import RunningService
from uworker import twins
from uworker.holding import Holding
from uworker.readings import ReadImage
from uworker.tasks import Finished, ImageTask
from uworker.twins import Twins

PLAN = {"processes": "1", "threads_per_process": "1"}


@pytest.mark.parametrize("apart", [False, True])
def test_copies_are_recognised_once_and_a_deadly_one_costs_as_many_processes_as_one_image(
    service: RunningService, start_worker: WorkerStarter, start_engine: EngineStarter, tmp_path: Path, apart: bool
) -> None:
    folder, tally = tmp_path / "source" / "a", tmp_path / "tally"
    folder.mkdir(parents=True)
    codes = {"good": 3, "poison": engines.KILL}
    for name, code in codes.items():
        for number in range(4):
            (folder / f"{name} {number}.png").write_bytes(picture(code))
    admin = service.client("admin")
    options = {"tally": str(tally), "seconds": 0.02}
    project = ProjectSettings(source=(tmp_path / "source").as_uri(), engine="pixel", engine_options=options)
    admin.put_project("patents", project)
    admin.add_jobs("patents", ["a"])
    where = {"engine_socket": str(start_engine(**PLAN).wait_listening().socket)} if apart else PLAN
    worker = start_worker(service.root, service.token("worker"), **where)
    assert worker.wait() == 0, worker.log
    [job] = admin.jobs("patents")
    assert (job.state, job.image_count, job.failures) == (JobState.COMPLETED, 8, 0)
    rows = list(admin.job_results("patents", job.id))
    assert {(row.image.partition(" ")[0], row.status, row.smiles) for row in rows} == {
        ("good", "recognised", "CCC"),
        ("poison", "crashed", None),
    }
    assert len({row.image for row in rows}) == 8
    assert len({(row.image_sha256, row.confidence, row.inchikey) for row in rows}) == 2
    # With others in hand, and alone.
    assert sorted(tally.read_text().split()) == sorted(["3", str(engines.KILL), str(engines.KILL)])
    took = sorted(row.duration_ms or 0 for row in rows if row.smiles)
    assert took[:3] == [0, 0, 0]
    assert took[3] >= 20


class Bench:
    """Twins, and jobs of which some are held."""

    def __init__(self) -> None:
        self.held: list[Holding] = []
        self.twins = Twins(lambda holding: holding in self.held)
        self._task_id = 0

    def job(self, engine: str = "pixel") -> Holding:
        self.held.append(Holding(LEASE.model_copy(update={"engine": engine}), "w"))
        return self.held[-1]

    def image(self, holding: Holding, content: str = "x") -> ReadImage:
        self._task_id += 1
        return ReadImage(holding, ImageTask(self._task_id, f"{self._task_id}.png", b""), content)

    def finish(self, image: ReadImage, status: str = "recognised") -> list[Finished]:
        return self.twins.finish(Finished(image.task.task_id, {"status": status, "duration_ms": 7}))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def ids(reports: list[Finished]) -> list[int]:
    return [report.task_id for report in reports]


def test_only_the_same_bytes_for_the_same_engine_wait_for_each_other(bench: Bench) -> None:
    job, other_engine = bench.job(), bench.job("decimer")
    first = bench.image(job)
    assert not bench.twins.may_join(first)
    assert not bench.twins.joins(first)
    assert not bench.twins.may_join(bench.image(job, "y"))
    assert not bench.twins.joins(bench.image(job, "y"))
    assert not bench.twins.joins(bench.image(other_engine))
    second, third = bench.image(bench.job()), bench.image(job)
    assert bench.twins.may_join(second)
    assert bench.twins.joins(second)
    assert bench.twins.joins(third)
    copies = bench.finish(first, "crashed")
    assert copies == [Finished(i.task.task_id, {"status": "crashed", "duration_ms": 0}) for i in (second, third)], (
        "also what killed a process"
    )
    assert bench.finish(first) == []


def test_an_image_that_others_wait_for_outlives_its_job(bench: Bench) -> None:
    lost, kept = bench.job(), bench.job()
    first, second, third = bench.image(lost), bench.image(lost), bench.image(kept)
    assert [bench.twins.joins(image) for image in (first, second, third)] == [False, True, True]
    gone = {first.task.task_id, second.task.task_id}
    assert bench.twins.forget(gone) == {second.task.task_id}, "the recognisers go on with the first"
    fourth = bench.image(kept)
    assert bench.twins.joins(fourth)
    assert ids(bench.finish(first)) == [third.task.task_id, fourth.task.task_id]


def test_an_image_that_nobody_waits_for_is_forgotten_and_the_next_is_recognised(bench: Bench) -> None:
    lost, kept = bench.job(), bench.job()
    first, second = bench.image(lost), bench.image(lost)
    assert [bench.twins.joins(image) for image in (first, second)] == [False, True]
    both = {first.task.task_id, second.task.task_id}
    assert bench.twins.forget(both) == both
    third, fourth = bench.image(kept), bench.image(kept)
    assert [bench.twins.joins(image) for image in (third, fourth)] == [False, True]
    assert ids(bench.finish(third)) == [fourth.task.task_id]


def test_an_answer_is_remembered_as_long_as_its_job_is_held(bench: Bench) -> None:
    job = bench.job()
    first = bench.image(job)
    assert not bench.twins.joins(first)
    later = bench.image(bench.job())
    assert bench.twins.answer(later) is None
    bench.finish(first)
    assert not bench.twins.may_join(later)
    assert bench.twins.answer(later) == Finished(later.task.task_id, {"status": "recognised", "duration_ms": 0})
    assert bench.twins.answer(bench.image(bench.job("decimer"))) is None
    bench.held.remove(job)
    assert bench.twins.answer(later) is None
    assert not bench.twins.joins(later), "as after a job was run again"


@pytest.mark.parametrize("status", ["engine_error", "timeout", "crashed"])
def test_what_may_pass_is_tried_again(bench: Bench, status: str) -> None:
    job = bench.job()
    first, again = bench.image(job), bench.image(job)
    assert not bench.twins.joins(first)
    bench.finish(first, status)
    assert bench.twins.answer(again) is None
    assert not bench.twins.joins(again)


def test_neither_those_that_wait_nor_what_is_remembered_are_without_bound(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins, "MAX_WAITING", 2)
    monkeypatch.setattr(twins, "MAX_ANSWERS", 2)
    job = bench.job()
    images = [bench.image(job) for _ in range(4)]
    assert [bench.twins.joins(image) for image in images[:3]] == [False, True, True]
    assert not bench.twins.may_join(images[3])
    assert not bench.twins.joins(images[3])
    assert bench.finish(images[3]) == [], "it was recognised by itself"
    assert len(bench.finish(images[0])) == 2
    for image in (bench.image(job, "y"), bench.image(job, "z")):
        assert not bench.twins.joins(image)
        bench.finish(image)
    assert [bench.twins.answer(bench.image(job, content)) is None for content in "xyz"] == [True, False, False]
