"""Images that failed are in the log with their job and their name, and a million of them flood nobody."""

import logging
from pathlib import Path
from typing import Any

import pytest

from job_api.schemas import ProjectSettings
from tests import engines
from tests.plugins.fleet import WorkerStarter
from tests.plugins.holder import LEASE
from tests.plugins.service import RunningService
from uworker.faults import MAX_KINDS, FaultLog
from uworker.holding import Holding
from uworker.tasks import Fault, Finished

FAULT = Fault("ValueError at engine.py:7", "Traceback (most recent call last):\nValueError: odd\n")
FAILED = {"status": "engine_error", "error_message": "ValueError: odd"}


@pytest.fixture
def holding() -> Holding:
    return Holding(LEASE, "w-1")


def note(faults: FaultLog, holding: Holding, row: dict[str, Any], fault: Fault | None = None, times: int = 1) -> None:
    for _ in range(times):
        faults.note(holding, "a.png", Finished(1, row, fault))


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno == logging.WARNING]


def test_the_first_of_a_kind_is_a_warning_with_job_image_and_traceback(
    holding: Holding, caplog: pytest.LogCaptureFixture
) -> None:
    note(FaultLog(), holding, FAILED, FAULT)
    [record] = warnings(caplog)
    assert record.getMessage() == "job 17: a.png: ValueError: odd"
    assert vars(record)["lease"] is LEASE
    assert vars(record)["image"] == "a.png"
    assert vars(record)["traceback"] == FAULT.traceback


def test_equal_faults_are_warned_of_ever_more_rarely_and_counted(
    holding: Holding, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "uworker.faults")
    note(FaultLog(), holding, FAILED, FAULT, times=1_500)
    assert [record.getMessage() for record in warnings(caplog)] == [
        "job 17: a.png: ValueError: odd",
        "job 17: a.png: ValueError: odd (for the 10th time)",
        "job 17: a.png: ValueError: odd (for the 100th time)",
        "job 17: a.png: ValueError: odd (for the 1000th time)",
    ]
    assert len(caplog.records) == 1_500, "whoever wants all of them sees them at DEBUG"


def test_another_kind_is_not_hidden_by_the_first(holding: Holding, caplog: pytest.LogCaptureFixture) -> None:
    faults = FaultLog()
    note(faults, holding, FAILED, FAULT, times=9)
    note(faults, holding, FAILED, Fault("KeyError at engine.py:9", "Traceback"))
    assert len(warnings(caplog)) == 2


def test_kinds_without_end_do_not_fill_the_memory(holding: Holding) -> None:
    faults = FaultLog()
    for number in range(2 * MAX_KINDS + 1):
        note(faults, holding, FAILED, Fault(str(number), ""))
    assert len(faults._seen) <= MAX_KINDS


def test_a_batch_that_failed_is_told_of_though_its_images_went_well(
    holding: Holding, caplog: pytest.LogCaptureFixture
) -> None:
    note(FaultLog(), holding, {"status": "recognised", "smiles": "C"}, FAULT)
    [record] = caplog.records
    assert "a.png: its batch failed, and each of its images was tried alone" in record.getMessage()


@pytest.mark.parametrize("status", ["crashed", "timeout"])
def test_an_image_that_cost_its_process_is_always_named(
    holding: Holding, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    note(FaultLog(), holding, {"status": status, "error_message": "exit -9"}, times=12)
    assert [record.getMessage() for record in warnings(caplog)] == [f"job 17: a.png: {status}, exit -9"] * 12
    assert all(vars(record)["lease"] is LEASE and vars(record)["image"] == "a.png" for record in caplog.records)


@pytest.mark.parametrize("status", ["recognised", "blank", "unreadable", "engine_error"])
def test_what_raised_nothing_is_a_matter_for_its_row_alone(
    holding: Holding, caplog: pytest.LogCaptureFixture, status: str
) -> None:
    note(FaultLog(), holding, {"status": status, "error_message": "so it is"})
    assert caplog.records == []


def test_images_that_fail_are_found_in_the_central_log(
    service: RunningService, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    files = {"odd.png": engines.RAISE, "odd too.png": engines.RAISE, "poison.png": engines.KILL, "good.png": 3}
    (tmp_path / "root" / "a").mkdir(parents=True)
    for name, code in files.items():
        (tmp_path / "root" / "a" / name).write_bytes(engines.picture(code) + name.encode())
    admin = service.client("admin")
    admin.put_project("patents", ProjectSettings(source=(tmp_path / "root").as_uri(), engine="pixel"))
    admin.add_jobs("patents", ["a"])
    worker = start_worker(service.root, service.token("worker"), threads_per_process="1")
    assert worker.wait() == 0, worker.log
    statuses = {row["image"]: row["status"] for row in admin.results("patents")}
    failed = {"odd.png": "engine_error", "odd too.png": "engine_error", "poison.png": "crashed"}
    assert statuses == failed | {"good.png": "recognised"}
    [seen] = admin.workers()
    wanted = {"job_id": 1, "worker_id": seen.id, "level": "warning"}
    lines = [line for line in admin.logs("patents", **wanted) if line.image]
    assert list(admin.logs("patents", **wanted | {"worker_id": "another"})) == []
    assert {(line.job_id, line.lease_seq, line.worker_id) for line in lines} == {(1, 1, seen.id)}
    [raised] = [line for line in lines if line.traceback]
    assert raised.image in ("odd.png", "odd too.png")
    assert raised.traceback is not None
    assert "ValueError: invalid literal for int() with base 10: 'the reason'" in raised.traceback
    [poison] = [line for line in lines if not line.traceback]
    assert poison.image == "poison.png"
    assert "possible out of memory" in poison.message
    assert worker.log.count(" WARNING job 1: odd") == 1, "the second of a kind is no warning any more"
