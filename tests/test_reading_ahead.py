"""Reading ahead: many images and jobs at once, in order, within bounds; and what ends it."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from job_api.client import Client
from job_api.schemas import ResultStatus
from tests.plugins.holder import LEASE
from tests.scripted import LATEST_END_SECONDS, Answer, Asked, problem, serving
from tests.serving import wait_for
from tests.storage import HeldStorage, images, numbered
from uworker.holding import Ending, Holding
from uworker.images import DirectoryDenied, ImageFile, NoImages, SourceDenied, StorageFault, Verdict
from uworker.lookahead import (
    MAX_BYTES_AHEAD,
    MAX_IMAGES_AHEAD,
    MAX_LISTED_AHEAD,
    Lookahead,
)
from uworker.reader import JOBS_AT_ONCE, READS_AT_ONCE, Reader
from uworker.readings import GIVE_UP_FAULTS, GIVE_UP_SECONDS, ReadImage
from uworker.settings import WorkerSettings

MAX_IMAGE_BYTES = 100_000_000
Start = Callable[..., Reader]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts readers: `start(storage, *holdings)`, with one storage, or several by the URLs of their sources."""
    started: list[Reader] = []

    def begin(
        storage: HeldStorage | dict[str, HeldStorage], *holdings: Holding, root: str = "http://service"
    ) -> Reader:
        settings = WorkerSettings(job_api_root=root, max_image_bytes=MAX_IMAGE_BYTES)
        client = Client(root, token="t", retry_seconds=0)
        source_of = (lambda url: storage[url]) if isinstance(storage, dict) else storage.source_of
        reader = Reader(client, settings, lambda: None, source_of=source_of)
        started.append(reader)
        reader.start()
        for holding in holdings:
            reader.add(holding)
        return reader

    yield begin
    for reader in started:
        reader.stop()


def job(
    directory: str, number: int = 1, *, engine: str = "decimer", results: int = 0, source: str = LEASE.source
) -> Holding:
    changes = {"job_id": number, "directory": directory, "engine": engine, "results_count": results, "source": source}
    return Holding(LEASE.model_copy(update=changes), "w")


def take(reader: Reader) -> ReadImage:
    wait_for(lambda: reader.peek() is not None)
    image = reader.take()
    assert image is not None
    return image


def take_names(reader: Reader, count: int) -> list[str]:
    return [take(reader).task.name for _ in range(count)]


def finish(image: ReadImage) -> None:
    """What a recogniser does."""
    image.holding.finish(image.task.task_id, image.task.name, {"status": "recognised", "smiles": "C", "confidence": 1})


def recognise(reader: Reader) -> bool:
    """Finish all that is there; False, for there may be more."""
    while (image := reader.take()) is not None:
        finish(image)
    return False


def begun_and_none_on_its_way(storage: HeldStorage, begun: int) -> bool:
    return len(storage.begun) == begun and storage.at_once == 0


def ending(holding: Holding) -> Ending | None:
    return holding.everything_left().ending


def test_reads_are_on_their_way_together_and_handed_out_as_they_come(start: Start) -> None:
    names = numbered(40)
    *earlier, last = names[:READS_AT_ONCE]
    storage = HeldStorage({"a": images(*names)})
    storage.held_reads = {name: threading.Event() for name in names[:READS_AT_ONCE]}
    holding = job("a")
    reader = start(storage, holding)
    wait_for(lambda: storage.at_once == 16)
    # The last one comes first, and all that follow.
    storage.held_reads[last].set()
    wait_for(lambda: storage.at_once == READS_AT_ONCE - 1 and len(storage.begun) == len(names))
    taken = [take(reader) for _ in [last, *names[READS_AT_ONCE:]]]
    assert [image.task.name for image in taken] == [last, *names[READS_AT_ONCE:]], "of those that came, the first"
    assert reader.peek() is None
    for name in reversed(earlier):
        storage.held_reads[name].set()
        taken.append(take(reader))
        assert taken[-1].task.name == name
    assert {image.task.name: image.task.data for image in taken} == {n: b"bytes of " + n.encode() for n in names}
    wait_for(lambda: holding.image_count == len(names))
    for image in taken:
        assert ending(holding) is None
        finish(image)
    wait_for(lambda: ending(holding) is Ending.COMPLETE)
    assert storage.most_at_once == READS_AT_ONCE


def test_one_read_that_does_not_come_keeps_one_place_and_stops_nobody(start: Start) -> None:
    """Neither the images after it in its job, nor the next job."""
    storage = HeldStorage({"a": images(*numbered(500)), "b": images(*numbered(500, 500))})
    storage.held_reads["00000.png"] = threading.Event()
    slow, following = job("a"), job("b", 2)
    reader = start(storage, slow, following)
    wait_for(lambda: recognise(reader) or (ending(following) is Ending.COMPLETE and slow.rows_waiting() == 499))
    wait_for(lambda: reader.images_ahead() == 1)
    assert ending(slow) is None
    storage.held_reads["00000.png"].set()
    wait_for(lambda: recognise(reader) or ending(slow) is Ending.COMPLETE)


def test_no_more_images_are_ahead_than_may_be(start: Start) -> None:
    storage = HeldStorage({"a": images(*numbered(3 * MAX_IMAGES_AHEAD))})
    reader = start(storage, job("a"))
    wait_for(lambda: len(storage.begun) == MAX_IMAGES_AHEAD and storage.at_once == 0)
    take_names(reader, 10)
    wait_for(lambda: len(storage.begun) == MAX_IMAGES_AHEAD + 10)
    assert len(storage.begun) == MAX_IMAGES_AHEAD + 10


def test_bytes_on_their_way_count_as_those_in_memory(start: Start) -> None:
    """Or sixteen images of 100 MB would be in memory at once."""
    size, names = 60_000_000, numbered(12)
    storage = HeldStorage({"a": images(*names, size=size)})
    storage.outcomes = dict.fromkeys(names, bytes(size))
    storage.reads_open.clear()
    reader = start(storage, job("a"))
    fit = MAX_BYTES_AHEAD // size
    wait_for(lambda: storage.at_once == fit)
    storage.reads_open.set()
    for begun in [*range(fit, len(names)), *[len(names)] * fit]:
        wait_for(partial(begun_and_none_on_its_way, storage, begun))
        take(reader)
    assert storage.most_at_once == fit


def test_an_image_larger_than_the_room_has_it_alone(start: Start) -> None:
    names = ["1.png", "2.png", "3.png"]
    storage = HeldStorage({"a": images(*names, size=MAX_BYTES_AHEAD + 1)})
    settings = WorkerSettings(job_api_root="http://service", max_image_bytes=2 * MAX_BYTES_AHEAD)
    reader = Reader(Client("http://service", token="t"), settings, lambda: None, source_of=storage.source_of)
    storage.outcomes = dict.fromkeys(names, bytes(MAX_BYTES_AHEAD + 1))
    reader.start()
    reader.add(job("a"))
    assert take_names(reader, 3) == names
    assert storage.most_at_once == 1
    reader.stop()


def test_images_of_unknown_size_are_taken_for_large_until_some_were_seen(start: Start) -> None:
    storage = HeldStorage({"a": images(*numbered(1000), size=None)})
    storage.reads_open.clear()
    reader = start(storage, job("a"))
    wait_for(lambda: storage.at_once == MAX_BYTES_AHEAD // MAX_IMAGE_BYTES)
    storage.reads_open.set()
    take_names(reader, 500)
    wait_for(partial(begun_and_none_on_its_way, storage, 500 + MAX_IMAGES_AHEAD))
    storage.reads_open.clear()
    take_names(reader, READS_AT_ONCE)
    wait_for(lambda: storage.at_once == READS_AT_ONCE)
    storage.reads_open.set()


def test_sizes_of_a_listing_that_understates_them_are_believed_once(start: Start) -> None:
    """Or its images would be in memory sixteen at a time, however large they are."""
    size, names = 60_000_000, numbered(3 * READS_AT_ONCE)
    storage = HeldStorage({"a": images(*names, size=20)})
    storage.outcomes = dict.fromkeys(names, bytes(size))
    storage.reads_open.clear()
    reader = start(storage, job("a"))
    wait_for(lambda: storage.at_once == READS_AT_ONCE)
    storage.reads_open.set()
    wait_for(lambda: storage.at_once == 0)
    storage.reads_open.clear()
    fit = MAX_BYTES_AHEAD // MAX_IMAGE_BYTES
    wait_for(lambda: reader.take() is None and storage.at_once >= fit)
    with pytest.raises(AssertionError):
        wait_for(lambda: storage.at_once > fit, 1)
    storage.reads_open.set()


def test_a_listing_without_end_is_read_from_its_beginning_on_and_not_run_ahead_of(start: Start) -> None:
    storage = HeldStorage({"a": lambda: (ImageFile(f"{n}.png", "", size=9) for n in itertools.count())})
    holding = job("a")
    reader = start(storage, holding)
    names: list[str] = []
    for handed_out in range(0, 3000, 500):
        wait_for(lambda: reader.images_ahead() >= MAX_LISTED_AHEAD // 2)
        ahead, given = reader.images_ahead(), storage.given
        assert ahead <= MAX_LISTED_AHEAD + MAX_IMAGES_AHEAD
        assert given <= handed_out + MAX_LISTED_AHEAD + MAX_IMAGES_AHEAD + 1
        names += take_names(reader, 500)
    assert len(set(names)) == 3000
    assert set(names) <= {f"{n}.png" for n in range(3000 + MAX_IMAGES_AHEAD)}
    assert ending(holding) is None
    assert reader.jobs_for(10) == 1, "of a job that is not listed to its end nothing is known"


def test_a_job_whose_listing_has_just_begun_counts_as_much_as_others_had(start: Start) -> None:
    """Or more would be claimed while the first page of a large directory is on its way."""
    storage = HeldStorage({"a": images(*numbered(100)), "b": images("1.png")})
    storage.listings_open.clear()
    reader = start(storage, job("a"), job("b", 2))
    wait_for(lambda: sorted(storage.listed) == ["a", "b"])
    assert reader.images_ahead() == 2 * MAX_IMAGES_AHEAD
    storage.listings_open.set()
    wait_for(lambda: reader.images_ahead() == 101)


def test_small_jobs_are_listed_and_read_together_and_begun_in_order(start: Start) -> None:
    names = [f"job {number:02}" for number in range(JOBS_AT_ONCE + 4)]
    storage = HeldStorage({name: images(f"{name}.png") for name in names})
    storage.listings_open.clear()
    holdings = [job(name, number) for number, name in enumerate(names)]
    reader = start(storage, *holdings)
    wait_for(lambda: len(storage.listed) == 16)
    assert sorted(storage.listed) == names[:JOBS_AT_ONCE]
    storage.reads_open.clear()
    storage.listings_open.set()
    wait_for(lambda: storage.at_once == READS_AT_ONCE)
    storage.reads_open.set()
    for image in [take(reader) for _ in names]:
        finish(image)
    wait_for(lambda: all(ending(holding) is Ending.COMPLETE for holding in holdings))
    assert [holding.image_count for holding in holdings] == [1] * len(names)
    wait_for(lambda: reader.images_ahead() == 0)
    assert reader.jobs_for(10) == 10


def test_a_later_job_goes_on_where_an_earlier_one_waits_for_its_storage(start: Start) -> None:
    storage = HeldStorage({"slow": images("slow 1.png", "slow 2.png"), "quick": images("quick.png")})
    storage.held_reads = {"slow 1.png": threading.Event(), "slow 2.png": threading.Event()}
    reader = start(storage, job("slow"), job("quick", 2))
    wait_for(lambda: len(storage.begun) == 3 and storage.at_once == 2)
    assert take_names(reader, 1) == ["quick.png"]
    assert reader.peek() is None
    for name in ("slow 2.png", "slow 1.png"):
        storage.held_reads[name].set()
        assert take_names(reader, 1) == [name]


def test_the_image_that_was_shown_is_the_one_that_is_taken(start: Start) -> None:
    storage = HeldStorage({"slow": images("slow.png"), "quick": images("quick.png")})
    storage.held_reads["slow.png"] = threading.Event()
    reader = start(storage, job("slow"), job("quick", 2))
    wait_for(lambda: reader.peek() is not None)
    storage.held_reads["slow.png"].set()
    wait_for(lambda: storage.at_once == 0 and len(storage.begun) == 2)
    assert take_names(reader, 2) == ["quick.png", "slow.png"]


def test_a_job_for_another_engine_waits_for_those_before_it(start: Start) -> None:
    """It would have the recognisers replaced, to and fro; and its images must not take the room of those before it."""
    storage = HeldStorage({"a": images("a.png"), "b": images(*numbered(2 * MAX_IMAGES_AHEAD)), "c": images("c.png")})
    storage.held_reads["a.png"] = threading.Event()
    reader = start(storage, job("a"), job("b", 2, engine="other"), job("c", 3))
    wait_for(lambda: storage.at_once == 1 and len(storage.listed) == 3)
    assert storage.begun == ["a.png"]
    assert reader.peek() is None
    storage.held_reads["a.png"].set()
    assert take_names(reader, 1) == ["a.png"]
    assert sorted(take_names(reader, 2 * MAX_IMAGES_AHEAD)) == numbered(2 * MAX_IMAGES_AHEAD)
    assert take_names(reader, 1) == ["c.png"]


def test_a_job_of_which_the_service_says_nothing_holds_up_nobody(start: Start) -> None:
    """Neither jobs that need not be asked for, nor those that the service answers for."""

    def answer(asked: Asked) -> Answer:
        if answered.is_set() or "/jobs/1/" not in asked.path:
            return Answer(body={"items": ["1.png"]})
        waiting.set()
        return problem(500, "internal")

    answered, waiting = threading.Event(), threading.Event()
    storage = HeldStorage({name: images("1.png", f"{name}.png") for name in ("a", "b", "c")})
    with serving(answer) as server:
        first = job("a", 1, results=1)
        reader = start(storage, first, root=server.root)
        assert waiting.wait(30)
        reader.add(job("b", 2, results=1))
        assert take_names(reader, 1) == ["b.png"]
        reader.add(job("c", 3))
        assert sorted(take_names(reader, 2)) == ["1.png", "c.png"]
        assert storage.listed == ["b", "c"]
        answered.set()
        assert take_names(reader, 1) == ["a.png"]
        wait_for(lambda: first.image_count == 2)


def test_jobs_whose_questions_get_no_answer_hold_up_nobody(start: Start) -> None:
    """An answer may take as long as the client's time-out, and as it tries again, for each of them."""
    unanswered = 4

    def answer(asked: Asked) -> Answer:
        return Answer(body={"items": []}) if f"/jobs/{unanswered}/" in asked.path else Answer(hold=True)

    storage = HeldStorage({"a": images("a.png"), "b": images("b.png")})
    with serving(answer) as server:
        reader = start(storage, *(job("a", number, results=1) for number in range(unanswered)), root=server.root)
        wait_for(lambda: server.asked)
        reader.add(job("b", unanswered, results=1))
        wait_for(lambda: reader.peek() is not None, LATEST_END_SECONDS / 2)
        assert take_names(reader, 1) == ["b.png"]


def test_an_abandoned_job_is_read_no_further_and_gives_its_room_away(start: Start) -> None:
    storage = HeldStorage({"a": images(*numbered(500)), "b": images(*numbered(MAX_IMAGES_AHEAD, 500))})
    lost, kept = job("a"), job("b", 2)
    reader = start(storage, lost, kept)
    wait_for(lambda: len(storage.begun) == MAX_IMAGES_AHEAD and storage.at_once == 0)
    take_names(reader, 2)
    wait_for(partial(begun_and_none_on_its_way, storage, MAX_IMAGES_AHEAD + 2))
    lost.lose()
    wait_for(lambda: reader.images_ahead() == MAX_IMAGES_AHEAD)
    # The main thread looks; it need not take anything.
    wait_for(lambda: reader.peek() and begun_and_none_on_its_way(storage, 2 * MAX_IMAGES_AHEAD + 2))
    assert sorted(take_names(reader, MAX_IMAGES_AHEAD)) == numbered(MAX_IMAGES_AHEAD, 500)
    assert lost.failure is None
    wait_for(lambda: reader.images_ahead() == 0)


def test_a_lost_job_is_not_waited_for_where_its_reads_hang(start: Start) -> None:
    storage = HeldStorage({"a": images(*numbered(3)), "b": images("b.png")})
    storage.held_reads = {name: threading.Event() for name in numbered(3)}
    lost = job("a")
    reader = start(storage, lost, job("b", 2, engine="other"))
    wait_for(lambda: storage.at_once == 3)
    lost.lose()
    assert take_names(reader, 1) == ["b.png"]
    wait_for(lambda: reader.images_ahead() == 0)
    for held in storage.held_reads.values():
        held.set()
    wait_for(lambda: storage.at_once == 0)
    assert reader.peek() is None, "what comes too late is dropped"


@pytest.mark.parametrize(
    ("fault", "reason", "retryable"),
    [
        (StorageFault("page 3 did not come"), "storage", True),
        (NoImages("it went away"), "no-images", False),
        (RuntimeError("a defect"), "worker", True),
    ],
)
def test_a_fault_within_a_listing_fails_the_job_once_what_came_before_is_recognised(
    start: Start, fault: Exception, reason: str, retryable: bool
) -> None:
    """Else the attempt would have stored nothing new, and be charged for a storage that fails now and then."""
    names = numbered(3 * MAX_IMAGES_AHEAD)
    holding = job("a")
    storage = HeldStorage({"a": lambda: itertools.chain(images(*names)(), [fault]), "b": images("b.png")})
    reader = start(storage, holding)
    taken = [take(reader)]

    def all_are_taken() -> bool:
        taken.extend(iter(reader.take, None))
        return len(taken) == len(names)

    wait_for(all_are_taken)
    reader.add(job("b", 2))
    take(reader)
    assert not holding.abandoned, "a recogniser still has images of it"
    for image in taken:
        finish(image)
    wait_for(lambda: holding.failure is not None)
    assert holding.failure is not None
    assert (holding.failure.reason, holding.failure.retryable) == (reason, retryable)
    assert str(fault) in holding.failure.message
    assert holding.rows_waiting() == len(taken) == len(names)


def test_a_fault_of_a_read_is_its_jobs_and_all_else_of_the_job_is_done(start: Start) -> None:
    """Or each attempt would store the few images that were on their way with it, and so never be charged."""
    storage = HeldStorage({"a": images(*numbered(500)), "b": images("b.png")})
    bad_images = {"00001.png": "it is archived", "00002.png": "it is archived, too", "00499.png": "an input error"}
    storage.outcomes |= {name: StorageFault(message) for name, message in bad_images.items()}
    storage.outcomes["00003.png"] = Verdict(ResultStatus.MISSING, "gone")
    storage.held_reads = {"00002.png": threading.Event(), "00499.png": threading.Event()}
    bad, good = job("a"), job("b", 2)
    reader = start(storage, bad, good)
    wait_for(lambda: recognise(reader) or ending(good) is Ending.COMPLETE)
    assert not bad.abandoned
    for held in storage.held_reads.values():
        held.set()
    wait_for(lambda: recognise(reader) or bad.failure)
    assert bad.failure is not None
    assert (bad.failure.reason, bad.failure.retryable) == ("storage", True)
    assert bad.failure.message == "3 of 500 images could not be read; the first of them: it is archived"
    assert bad.rows_waiting() == 497


def test_a_fault_that_is_no_single_images_ends_the_reading_at_once(start: Start) -> None:
    storage = HeldStorage({"a": images(*numbered(500))})
    storage.outcomes["00001.png"] = DirectoryDenied("not in here")
    holding = job("a")
    reader = start(storage, holding)
    wait_for(lambda: recognise(reader) or holding.failure)
    assert holding.failure is not None
    assert (holding.failure.reason, holding.failure.message) == ("directory-denied", "not in here")
    assert len(storage.begun) < 500


def test_a_panic_of_a_storage_library_is_its_jobs_alone(start: Start) -> None:
    """In Python it is no `Exception`; a thread that died of it would leave its job in this worker's hands for ever."""

    class PanicError(BaseException):
        pass

    storage = HeldStorage({"a": images("1.png", "2.png"), "b": lambda: iter([PanicError("b")]), "c": images("c.png")})
    storage.outcomes["1.png"] = PanicError("a")
    read, listed = job("a"), job("b", 2)
    reader = start(storage, read, listed)
    wait_for(lambda: recognise(reader) or (read.failure and listed.failure))
    for holding in (read, listed):
        assert holding.failure is not None
        assert (holding.failure.reason, holding.failure.retryable) == ("worker", True)
        assert "PanicError" in holding.failure.message
    for _ in range(READS_AT_ONCE):
        reader.add(job("c", 3))
    assert take_names(reader, READS_AT_ONCE) == ["c.png"] * READS_AT_ONCE


def test_storage_that_gives_nothing_for_a_while_is_given_up() -> None:
    """Neither because of some images in a row, nor after each of a million was tried for a minute."""
    now = 0.0
    ahead = Lookahead(MAX_IMAGE_BYTES, clock=lambda: now)
    reading, storage = ahead.begin(job("a")), HeldStorage({})
    for image in images(*numbered(400))():
        ahead.add(reading, storage, image)

    def settle(outcome: bytes | StorageFault, seconds: float, count: int = 1) -> None:
        """Reads that were begun at once, and took so long."""
        nonlocal now
        reads = [ahead.pick() for _ in range(count)]
        now += seconds
        for read in reads:
            assert read is not None
            ahead.settle(read, outcome)

    fault = StorageFault("it did not answer")
    for _ in range(100):
        settle(fault, GIVE_UP_SECONDS / 200)
    settle(b"bytes", GIVE_UP_SECONDS)
    for _ in range(GIVE_UP_FAULTS - 1):
        settle(fault, GIVE_UP_SECONDS)
    settle(b"bytes", 0)
    settle(fault, GIVE_UP_SECONDS, GIVE_UP_FAULTS - 1)
    ahead.check(reading)
    settle(fault, 0)
    with pytest.raises(StorageFault, match="it did not answer"):
        ahead.check(reading)
    assert not reading.listed


@pytest.mark.parametrize("listing", [True, False], ids=["listing", "reads"])
def test_a_source_that_does_not_let_in_a_worker_that_others_let_in_costs_its_jobs_alone(
    start: Start, listing: bool
) -> None:
    """Or one project with a wrong source would end the workers of all projects, one after another."""
    denied = SourceDenied("403")
    closed = HeldStorage({"b": lambda: iter([denied])} if listing else {"b": images("b.png")})
    closed.outcomes["b.png"] = denied
    reader = start({"az://open": HeldStorage({"a": images("a.png")}), "az://closed": closed})
    bad, good = job("b", 2, source="az://closed"), job("a", source="az://open")
    reader.add(good)
    wait_for(lambda: recognise(reader) or ending(good) is Ending.COMPLETE)
    reader.add(bad)
    wait_for(lambda: bad.failure is not None or reader.denied)
    assert reader.denied is None
    assert bad.failure is not None
    assert (bad.failure.reason, bad.failure.message, bad.failure.retryable) == ("source-denied", "403", True)


def test_a_worker_that_no_other_source_lets_in_is_denied_and_charges_no_job(start: Start) -> None:
    """Also where its credential expires; and what another source lists, and does not give, says nothing for it."""
    own, other = HeldStorage({"a": images("1.png", "2.png")}), HeldStorage({"b": images("b.png")})
    own.outcomes["2.png"] = SourceDenied("expired")
    other.outcomes["b.png"] = Verdict(ResultStatus.UNREADABLE, "403")
    reader = start({"az://own": own, "az://other": other})
    listed, denied = job("b", 2, source="az://other"), job("a", source="az://own")
    reader.add(listed)
    wait_for(lambda: ending(listed) is Ending.COMPLETE)
    reader.add(denied)
    wait_for(lambda: recognise(reader) or reader.denied)
    assert reader.denied == "expired"
    assert not denied.abandoned


def test_images_without_bytes_become_rows_wherever_that_is_found_out(start: Start) -> None:
    listed = Verdict(ResultStatus.UNREADABLE, "a link")
    storage = HeldStorage(
        {"a": lambda: iter([ImageFile("1.png", "", listed), *(ImageFile(f"{n}.png", "", size=9) for n in (2, 3, 4))])}
    )
    storage.outcomes["2.png"] = Verdict(ResultStatus.MISSING, "gone")
    storage.outcomes["4.png"] = Verdict(ResultStatus.TOO_LARGE, "large")
    holding = job("a")
    reader = start(storage, holding)
    image = take(reader)
    assert image.task.name == "3.png"
    wait_for(lambda: holding.rows_waiting() == 3)
    assert {(row.image, row.status) for row in holding.everything_left().rows} == {
        ("1.png", ResultStatus.UNREADABLE),
        ("2.png", ResultStatus.MISSING),
        ("4.png", ResultStatus.TOO_LARGE),
    }
    assert ending(holding) is None
    finish(image)
    wait_for(lambda: ending(holding) is Ending.COMPLETE)
    assert holding.image_count == 4


HANGING = """
import sys, threading, time
import tests.storage
from job_api.client import Client
from tests.plugins.holder import LEASE
from uworker.holding import Holding
from uworker.reader import Reader
from uworker.settings import WorkerSettings
tests.storage.ANSWER_SECONDS = 3600
storage = tests.storage.HeldStorage({"a": tests.storage.images(*tests.storage.numbered(100))})
storage.reads_open.clear()
settings = WorkerSettings(job_api_root="http://service")
reader = Reader(Client("http://service", token="t"), settings, lambda: None, source_of=storage.source_of)
reader.start()
reader.add(Holding(LEASE, "w"))
while storage.at_once < 16:
    time.sleep(0.01)
began = time.monotonic()
reader.stop()
print(time.monotonic() - began)
sys.exit(7)
"""


def test_reads_that_hang_keep_neither_a_stop_nor_the_process_waiting() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 7, ended.stderr
    assert float(ended.stdout) < 30
