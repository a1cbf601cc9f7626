"""Faults on the way to object storage, made by a relay: what passes is borne, what stays is told in bounded time."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from job_api.stores import Denied, Store, StoredObject, Unavailable, open_store
from tests.emulators.buckets import Bucket
from tests.emulators.relay import Answer, Cut, Hang, Relay, Reset

DATA = os.urandom(300_000)
KEY = "a (b 2001)/output/ü #1.png"
# When a storage that stays away is given up, and what the last try may take beyond that.
PATIENCE_SECONDS, BOUND_SECONDS = 8.0, 40.0
ENOUGH_BYTES = 10**6
OF_ITS_KIND = r"^GET .*output"


@dataclass
class Scene:
    """A bucket with an object in it, as it is seen through a relay."""

    bucket: Bucket
    relay: Relay
    store: Store

    def read(self) -> bytes | int:
        return self.store.read(KEY, ENOUGH_BYTES)


@pytest.fixture
def scene(bucket: Bucket, relay_to: Callable[[str], Relay], monkeypatch: pytest.MonkeyPatch) -> Scene:
    """On a store of each kind."""
    for name in list(os.environ):
        if name.startswith(("AZURE_", "AWS_", "GOOGLE_", "STORAGE_")):
            monkeypatch.delenv(name)
    relay = relay_to(bucket.emulator.server)
    bucket.fill({KEY: DATA, "other/1.png": b"1"})
    for name, value in bucket.behind(relay.address).environment.items():
        monkeypatch.setenv(name, value)
    return Scene(bucket, relay, open_store(bucket.url))


@pytest.mark.parametrize("fault", [Answer(503), Answer(500), Answer(429), Reset(), Cut()], ids=str)
def test_what_passes_is_tried_again(scene: Scene, fault: Answer | Reset | Cut) -> None:
    scene.relay.plan(fault, times=2, matching=OF_ITS_KIND)
    assert scene.read() == DATA
    assert scene.relay.count(OF_ITS_KIND) == 3


@pytest.mark.parametrize("fault", [Answer(503), Reset()], ids=str)
def test_a_listing_is_tried_again(scene: Scene, fault: Answer | Reset) -> None:
    scene.relay.plan(fault, times=2)
    assert scene.store.directories() == ["a (b 2001)", "other"]
    scene.relay.plan(fault, times=2)
    assert list(scene.store.objects("a (b 2001)")) == [StoredObject(KEY, len(DATA))]


def test_a_listing_that_breaks_off_is_not_taken_for_a_short_one(scene: Scene) -> None:
    """A job of it would be completed without the images that were to come."""
    for list_all in (scene.store.directories, lambda: list(scene.store.objects(""))):
        scene.relay.plan(Cut())
        with pytest.raises(Unavailable):
            list_all()
    assert len(list(scene.store.objects(""))) == 2


@pytest.mark.parametrize("fault", [Answer(503), Reset()], ids=str)
def test_what_is_written_is_written_whole(scene: Scene, fault: Answer | Reset) -> None:
    scene.relay.plan(fault, times=2, matching="^PUT ")
    scene.store.write("made/ü #2.json", DATA)
    assert scene.bucket.content()["made/ü #2.json"] == DATA


@pytest.mark.parametrize("status", [429, 503])
def test_throttling_is_waited_out(scene: Scene, status: int) -> None:
    """Requests in a burst would have it go on."""
    scene.relay.plan(Answer(status, retry_after=2), times=3, matching=OF_ITS_KIND)
    began = time.monotonic()
    assert scene.read() == DATA
    assert scene.relay.count(OF_ITS_KIND) == 4
    # The library has pauses of its own, that grow, and does not ask how long the server wants them to be.
    assert time.monotonic() - began > 0.55


def test_a_refusal_is_not_tried_again(scene: Scene) -> None:
    scene.relay.plan(Answer(403), times=100)
    with pytest.raises(Denied):
        scene.store.directories()
    assert scene.relay.count() == 1


# All of them at once, for each stays until the store gives up; on one kind of store, for the library does it for all.
@pytest.mark.parametrize("bucket", ["azurite"], indirect=True)
def test_what_stays_is_told_in_bounded_time_and_never_taken_for_the_image(
    scene: Scene, relay_to: Callable[[str], Relay], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_through(fault: Answer | Reset | Cut | Hang) -> Callable[[], float]:
        relay = relay_to(scene.bucket.emulator.server)
        relay.plan(fault, times=10**6)
        for name, value in scene.bucket.behind(relay.address).environment.items():
            monkeypatch.setenv(name, value)
        store = open_store(scene.bucket.url, PATIENCE_SECONDS)

        def read() -> float:
            began = time.monotonic()
            with pytest.raises(Unavailable):
                store.read(KEY, ENOUGH_BYTES)
            return time.monotonic() - began

        return read

    faults = (Answer(503), Answer(429, retry_after=1), Reset(), Cut(), Cut(hang=True), Hang())
    reads = [read_through(fault) for fault in faults]
    with ThreadPoolExecutor(len(reads)) as threads:
        took = list(threads.map(lambda read: read(), reads))
    assert max(took) < BOUND_SECONDS, dict(zip(faults, took, strict=True))
