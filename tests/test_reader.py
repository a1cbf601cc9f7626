"""The reading thread: which images it reads, and that it waits for a service that is away."""

import threading
from pathlib import Path

import pytest

from job_api.client import Client
from tests.plugins.holder import LEASE
from tests.scripted import Answer, serving
from tests.serving import wait_for
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


def test_a_job_waits_until_it_is_known_which_of_its_images_are_done(images: Path) -> None:
    """A job that failed for it would be charged for the service's absence."""
    with serving([Answer(status=0), Answer(body={"items": ["2.png"]})]) as server:
        reader, holding = reader_of(server.root, images, threading.Event())
        reader.start()
        reader.add(holding)
        wait_for(lambda: reader.images_ahead() == 2 and reader.peek() is not None)
        wait_for(lambda: len(server.asked) == 2)
        names = [taken.task.name for taken in (reader.take(), reader.take()) if taken is not None]
        reader.stop()
    assert names == ["1.png", "3.png"]
    assert holding.failure is None
    assert holding.image_count == 3


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
