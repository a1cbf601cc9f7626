"""The reading thread: which images it reads, and that it waits for a service that is away."""

import threading
from pathlib import Path

import pytest

from job_api.client import ApiError, Client, LeaseLost, NotFound, Unreachable
from tests.plugins.holder import LEASE
from tests.scripted import Answer, problem, serving
from tests.serving import wait_for
from uworker import asking
from uworker.away import MAX_FAULTS, Patience
from uworker.holding import Holding
from uworker.reader import Reader
from uworker.settings import WorkerSettings


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / "a" / name).write_bytes(b"bytes of " + name.encode())
    return tmp_path


def reader_of(root: str, source: Path, changed: threading.Event) -> tuple[Reader, Holding]:
    settings = WorkerSettings(job_api_root=root, source_root=source)
    reader = Reader(Client(root, token="t", retry_seconds=0), settings, changed.set)
    return reader, Holding(LEASE.model_copy(update={"results_count": 1}), "w")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=0),
        Answer(404, "<html>default backend - 404</html>"),
        Answer(500, "<html>out of order</html>"),
        Answer(200, "<html>log in to this network</html>"),
        problem(429, "too-many-requests"),
        problem(500, "internal"),
        problem(401, "unauthenticated"),
    ],
)
def test_a_job_waits_until_it_is_known_which_of_its_images_are_done(
    images: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that failed for it would be charged for the service's absence."""
    monkeypatch.setattr(asking, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(asking, "LOOK_AGAIN_SECONDS", 0.02)
    with serving([answer, Answer(body={"items": ["2.png"]})]) as server:
        reader, holding = reader_of(server.root, images, threading.Event())
        reader.start()
        reader.add(holding)
        wait_for(lambda: reader.images_ahead() == 2 and holding.image_count == 3)
        wait_for(lambda: len(server.asked) == 2)
        names = [taken.task.name for taken in (reader.take(), reader.take()) if taken is not None]
        reader.stop()
    assert names == ["1.png", "3.png"]
    assert holding.failure is None
    assert holding.image_count == 3


def test_trouble_of_the_services_own_is_waited_out_for_minutes_and_its_absence_for_ever() -> None:
    away, fault = Unreachable("no route"), ApiError(500, "urn:decimer-jobs:internal", "a defect")
    patience = Patience("job 1 waits")
    assert all(patience.bears(fault) for _ in range(MAX_FAULTS - 1))
    assert all(patience.bears(away) for _ in range(2 * MAX_FAULTS))
    assert all(patience.bears(fault) for _ in range(MAX_FAULTS - 1)), "it was away since"
    patience.renew()
    assert all(patience.bears(fault) for _ in range(MAX_FAULTS - 1)), "it has given something since"
    assert not patience.bears(fault)


@pytest.mark.parametrize("error", [LeaseLost, NotFound])
def test_an_answer_that_is_meant_for_the_job_is_not_waited_out(error: type[ApiError]) -> None:
    assert not Patience("job 1 waits").bears(error(404, "about:blank", "no such job"))


def test_a_lease_that_is_lost_meanwhile_is_waited_for_no_longer(images: Path) -> None:
    with serving([Answer(status=0)]) as server:
        changed = threading.Event()
        reader, holding = reader_of(server.root, images, changed)
        reader.start()
        reader.add(holding)
        wait_for(lambda: len(server.asked) == 1)
        changed.clear()
        holding.lose()
        assert changed.wait(30), "the job is over for the reader"
        assert reader.images_ahead() == 0
        reader.stop()
    assert holding.failure is None


def test_a_request_that_makes_no_sense_fails_the_job(images: Path) -> None:
    with serving([problem(422, "invalid-request", "no such thing")]) as server:
        reader, holding = reader_of(server.root, images, threading.Event())
        reader.start()
        reader.add(holding)
        wait_for(lambda: holding.failure is not None)
        reader.stop()
    assert holding.failure is not None
    assert (holding.failure.reason, holding.failure.retryable) == ("service", True)


def test_images_that_are_not_given_to_the_engine_wait_for_room_for_their_rows(images: Path) -> None:
    """Or a directory of files that are too large would fill the memory while nobody takes their rows."""
    settings = WorkerSettings(job_api_root="http://service", source_root=images, max_image_bytes=5)
    room, asked = threading.Event(), threading.Event()

    def may_add() -> bool:
        asked.set()
        return room.is_set()

    reader = Reader(Client("http://service", token="t"), settings, lambda: None, may_add)
    holding, lost = Holding(LEASE, "w"), Holding(LEASE, "w")
    reader.start()
    reader.add(lost)
    assert asked.wait(30)
    lost.lose()
    reader.add(holding)
    asked.clear()
    assert asked.wait(30)
    assert holding.rows_waiting() == 0
    room.set()
    wait_for(lambda: (batch := holding.next_batch(flush=True)) is not None and batch.ending is not None)
    assert holding.rows_waiting() == 3
    assert lost.rows_waiting() == 0
    reader.stop()
