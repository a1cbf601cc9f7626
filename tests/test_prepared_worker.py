"""Workers choose the model: rows say which one answered, and the shipped one does where the prepared one may not."""

import os
from pathlib import Path
from typing import Any

import pytest

from job_api.schemas import ProjectSettings
from tests.plugins.fleet import WorkerStarter
from tests.plugins.replica import Replica, copy_home
from tests.plugins.service import RunningService
from tests.test_prepared_files import PLACE, change_json
from uworker.prepared.files import REPORT, Prepared, find_prepared
from uworker.weights import AS_SHIPPED_IS_WANTED

# The first of them may have to wait for the replica, which on a busy machine takes minutes.
pytestmark = pytest.mark.timeout(600)

IMAGES = 5
PLAN = {"processes": "1", "threads_per_process": "2"}
# Nothing listens there.
OFFLINE = "http://127.0.0.1:9"


@pytest.fixture
def source(prepared_replica: Replica, tmp_path: Path) -> Path:
    """A directory "a" with some of the samples, named by their numbers."""
    folder = tmp_path / "source"
    (folder / "a").mkdir(parents=True)
    for number, image in enumerate(prepared_replica.images[:IMAGES]):
        os.link(image, folder / "a" / f"{number}{image.suffix}")
    return folder


def prepared(home: Path, *, hand_drawn: bool = False) -> Prepared:
    found = find_prepared(home, hand_drawn=hand_drawn)
    assert found is not None
    return found


def submit(service: RunningService, source: Path, project: str, **options: Any) -> None:
    admin = service.client("admin")
    admin.put_project(project, ProjectSettings(source=source.as_uri(), engine_options=options))
    admin.add_jobs(project, ["a"])


def assert_rows(service: RunningService, replica: Replica, project: str, kind: str, digest: str | None) -> None:
    weights = prepared(replica.home, hand_drawn=kind == "hand-drawn").about.weights_sha256
    rows = {int(Path(row["image"]).stem): row for row in service.client("admin").results(project)}
    assert sorted(rows) == list(range(IMAGES))
    for number, row in rows.items():
        assert row["status"] == "recognised"
        assert row["smiles"] == replica.answers[kind][number].smiles
        assert (row["prepared"], row["weights_sha256"], row["engine_version"]) == (digest, weights, "2.8.1")


def test_rows_say_which_model_made_them(
    service: RunningService, start_worker: WorkerStarter, prepared_replica: Replica, source: Path
) -> None:
    """As a project wants it, one after the other in the same worker: prepared, shipped, and hand-drawn prepared."""
    home = prepared_replica.home
    submit(service, source, "prepared")
    submit(service, source, "shipped", prepared=False)
    submit(service, source, "drawn", hand_drawn=True, prepared=True)
    worker = start_worker(service.root, service.token("worker"), weights_home=str(home), **PLAN)
    assert worker.wait() == 0, worker.log
    digest, drawn = prepared(home).sha256, prepared(home, hand_drawn=True).sha256
    assert_rows(service, prepared_replica, "prepared", "printed", digest)
    assert_rows(service, prepared_replica, "shipped", "printed", None)
    assert_rows(service, prepared_replica, "drawn", "hand-drawn", drawn)
    assert worker.log.count(f"prepared model: sha256 {digest}") == 1
    assert worker.log.count(f"prepared model: sha256 {drawn}") == 1
    assert worker.log.count("DECIMER runs as it is shipped") == 1
    assert "is turned off by UWORKER_PREPARED or the project's engine_options" in worker.log


@pytest.mark.parametrize("said", ["false", 0])
def test_a_project_that_says_neither_true_nor_false_is_refused(
    service: RunningService, start_worker: WorkerStarter, prepared_replica: Replica, source: Path, said: object
) -> None:
    submit(service, source, "odd", prepared=said)
    worker = start_worker(service.root, service.token("worker"), weights_home=str(prepared_replica.home), **PLAN)
    assert worker.wait() != 0
    assert f"decimer's option prepared is true or false, not {said!r}" in worker.log
    assert list(service.client("admin").results("odd")) == []


def test_a_model_that_was_not_proved_is_not_used_and_it_is_said_once(
    service: RunningService, start_worker: WorkerStarter, prepared_replica: Replica, source: Path, tmp_path: Path
) -> None:
    home = copy_home(prepared_replica.home, tmp_path / "home")
    change_json(home / PLACE / REPORT, proved=False, reason="the model is not built as DECIMER's: it is a cat")
    submit(service, source, "patents")
    worker = start_worker(service.root, service.token("worker"), weights_home=str(home), **PLAN)
    assert worker.wait() == 0, worker.log
    assert_rows(service, prepared_replica, "patents", "printed", None)
    assert worker.log.count("DECIMER runs as it is shipped") == 1
    assert "was not proved to give the same answers: the model is not built as DECIMER's: it is a cat" in worker.log


def test_a_prepared_model_is_enough_and_nothing_is_downloaded(
    service: RunningService,
    start_worker: WorkerStarter,
    prepared_replica: Replica,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = tmp_path / "home"
    place = home / "DECIMER-V2"
    copy_home(prepared_replica.home / PLACE, place / "DECIMER_prepared")
    digest = prepared(home).sha256
    monkeypatch.setenv("HTTPS_PROXY", OFFLINE)
    submit(service, source, "patents")
    worker = start_worker(service.root, service.token("worker"), weights_home=str(home), **PLAN)
    assert worker.wait() == 0, worker.log
    assert_rows(service, prepared_replica, "patents", "printed", digest)
    assert [file.name for file in place.iterdir()] == ["DECIMER_prepared"]
    # As shipped it cannot be had.
    submit(service, source, "shipped", prepared=False)
    worker = start_worker(service.root, service.token("worker"), weights_home=str(home), **PLAN)
    assert worker.wait() != 0
    assert AS_SHIPPED_IS_WANTED in worker.log
    assert "cannot be downloaded" in worker.log
    assert list(service.client("admin").results("shipped")) == []


def test_a_machine_may_turn_it_off(
    service: RunningService, start_worker: WorkerStarter, prepared_replica: Replica, source: Path
) -> None:
    submit(service, source, "patents")
    settings = {"weights_home": str(prepared_replica.home), "prepared": "false"}
    worker = start_worker(service.root, service.token("worker"), **settings, **PLAN)
    assert worker.wait() == 0, worker.log
    assert_rows(service, prepared_replica, "patents", "printed", None)
    assert worker.log.count("DECIMER runs as it is shipped") == 1
