"""Posting: rows in order and in small batches, every lease brought to its end, nothing lost while nobody answers."""

import errno
import sqlite3
import threading
from collections import UserDict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from job_api.client import Client
from job_api.schemas import EngineRun, ResultStatus
from tests.plugins.holder import LEASE, result
from tests.scripted import Answer, Asked, ScriptedServer, problem, serving
from tests.serving import WAIT_SECONDS, wait_for
from uworker.holding import Batch, Holding
from uworker.images import Verdict
from uworker.keeper import Keeper
from uworker.poster import MAX_SERVER_ERRORS, Poster
from uworker.spool import Spool

GOOD = {"status": "recognised", "smiles": "CCO"}


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits as long as it does where machines are far away."""
    monkeypatch.setattr("uworker.holding.MAX_BATCH_AGE_SECONDS", 0.3)
    monkeypatch.setattr("uworker.poster.RETRY_SECONDS", 0.3)


class Service:
    """Stores rows by image; what it refuses and how long it is away is up to the test."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.batches: list[list[str]] = []
        self.runs: list[dict[str, Any]] = []
        self.ends: list[tuple[str, dict[str, Any]]] = []
        self.refused_smiles: set[str] = set()
        self.losing: set[str] = set()
        self.answers: dict[str, Answer] = {}

    def __call__(self, asked: Asked) -> Answer:
        verb = asked.path.rsplit("/", 1)[1]
        if verb in self.answers:
            return self.answers[verb]
        refused = self._store(asked.body) if asked.body.get("rows") else []
        if verb == "results":
            return Answer(body={"stored": len(asked.body["rows"]) - len(refused), "unchanged": 0, "refused": refused})
        if verb == "complete" and len(self.rows) < asked.body["image_count"]:
            return problem(409, "results-missing", "rows are missing")
        self.ends.append((verb, asked.body))
        state, outcome = {
            "complete": ("completed", "completed"),
            "fail": ("waiting", "failed"),
            "release": ("queued", "released"),
        }[verb]
        return Answer(body={"job_id": 17, "state": state, "outcome": outcome})

    def _store(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        self.batches.append([row["image"] for row in body["rows"]])
        self.runs.append(body["run"])
        refused = []
        for index, row in enumerate(body["rows"]):
            if row.get("smiles") in self.refused_smiles:
                refused.append({"index": index, "image": row["image"], "reason": "smiles: is not liked"})
            elif row["image"] not in self.losing:
                self.rows[row["image"]] = row
        return refused


def new_holding(image_count: int, worker_id: str = "w-1") -> Holding:
    """A lease whose images are all on their way, by task id."""
    holding = Holding(LEASE, worker_id)
    holding.image_count = image_count
    for task_id in range(image_count):
        holding.expect(task_id)
    return holding


class Posting:
    """A poster at work and what it said."""

    def __init__(
        self, root: str, directory: Path, worker_id: str = "w-1", *, max_bytes: int = 10**7, timeout_seconds: float = 30
    ) -> None:
        self.client = Client(root, token="t", retry_seconds=0, timeout_seconds=timeout_seconds)
        self.directory = directory
        self.worker_id = worker_id
        self.ended: list[Holding] = []
        self.refusals: list[Exception] = []
        self.poster = Poster(
            self.client,
            self.ended.append,
            self.refusals.append,
            keeper=Keeper(directory, worker_id, self.client.root, max_bytes),
            snapshot="abc",
        )
        self.poster.start()

    def stop(self) -> None:
        """As a worker does that was told to: what cannot be posted any more is kept."""
        self.poster.stop(WAIT_SECONDS)
        self.poster.keep()
        self.client.close()

    def kept(self) -> dict[int, tuple[int, int | None]]:
        """What lies on disk once it is stopped, by job: rows, and the image count of its completion."""
        kept: dict[int, tuple[int, int | None]] = {}
        for path in self.directory.glob("*.spool"):
            spool = Spool.adopt(path)
            kept |= {lease.lease.job_id: (lease.row_count, lease.image_count) for lease in spool.leases()}
            spool.close()
        return kept

    def hold(self, image_count: int = 0) -> Holding:
        holding = new_holding(image_count, self.worker_id)
        self.poster.add(holding)
        return holding

    def wait_end(self, holding: Holding) -> None:
        wait_for(lambda: holding in self.ended, WAIT_SECONDS)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def server(service: Service) -> Iterator[ScriptedServer]:
    with serving(service) as running:
        yield running


@pytest.fixture
def posting(server: ScriptedServer, tmp_path: Path) -> Iterator[Posting]:
    posting = Posting(server.root, tmp_path / "spool")
    yield posting
    posting.stop()


def finish_all(holding: Holding, rows: Callable[[int], dict[str, Any]] = lambda _: GOOD) -> None:
    for task_id in range(holding.image_count):
        holding.finish(task_id, f"{task_id:03}.png", rows(task_id))
    holding.finish_listing()


def test_rows_go_in_order_in_batches_and_the_last_ride_on_complete(posting: Posting, service: Service) -> None:
    holding = posting.hold(image_count=120)
    finish_all(holding)
    posting.wait_end(holding)
    assert [len(batch) for batch in service.batches] == [50, 50, 20]
    assert [image for batch in service.batches for image in batch] == [f"{number:03}.png" for number in range(120)]
    [(verb, body)] = service.ends
    assert (verb, body["image_count"], len(body["rows"])) == ("complete", 120, 20)
    assert (body["worker_id"], body["lease_seq"]) == ("w-1", 3)
    assert posting.poster.rows_waiting() == 0


def test_a_few_rows_do_not_wait_for_the_rest_of_the_job(posting: Posting, service: Service) -> None:
    holding = posting.hold(image_count=2)
    holding.finish(0, "0.png", GOOD)
    wait_for(lambda: service.rows, WAIT_SECONDS)
    assert service.ends == []
    holding.finish(1, "1.png", GOOD)
    holding.finish_listing()
    posting.wait_end(holding)
    assert set(service.rows) == {"0.png", "1.png"}


def test_a_job_is_not_complete_before_its_listing_is(posting: Posting, service: Service) -> None:
    holding = posting.hold(image_count=1)
    holding.finish(0, "0.png", GOOD)
    wait_for(lambda: service.rows, WAIT_SECONDS)
    holding.refuse("1.png", Verdict(ResultStatus.MISSING, "gone"))
    wait_for(lambda: len(service.rows) == 2, WAIT_SECONDS)
    assert service.ends == []
    holding.finish_listing()
    posting.wait_end(holding)
    assert service.rows["1.png"]["status"] == "missing"


def test_rows_say_what_made_them(posting: Posting, service: Service) -> None:
    first, second = posting.hold(image_count=1), posting.hold(image_count=1)
    finish_all(first)
    posting.wait_end(first)
    posting.poster.use(second.engine_key, EngineRun(engine="decimer", weights="miniature"))
    finish_all(second)
    posting.wait_end(second)
    assert service.runs == [
        {"engine": "decimer", "snapshot": "abc"},
        {"engine": "decimer", "weights": "miniature", "snapshot": "abc"},
    ]


@pytest.mark.parametrize("image_count", [3, 60])
def test_a_refused_row_is_replaced_by_one_that_says_so(posting: Posting, service: Service, image_count: int) -> None:
    service.refused_smiles = {"bad"}
    holding = posting.hold(image_count=image_count)
    finish_all(holding, lambda task_id: {**GOOD, "smiles": "bad"} if task_id == 1 else GOOD)
    posting.wait_end(holding)
    assert len(service.rows) == image_count
    replaced = service.rows["001.png"]
    assert replaced["status"] == "engine_error"
    assert "is not liked" in replaced["error_message"]
    assert [row["status"] for image, row in service.rows.items() if image != "001.png"] == ["recognised"] * (
        image_count - 1
    )
    assert [verb for verb, _ in service.ends] == ["complete"]


@pytest.mark.parametrize(
    "row",
    [
        {"status": "recognised", "smiles": "C\0C"},
        {"status": "recognised", "smiles": "C" * 5_000},
        {"status": "recognised", "confidence": 7.0},
        {"status": "no such status"},
        {},
    ],
)
def test_an_answer_that_is_no_row_becomes_one_that_says_so(
    posting: Posting, service: Service, row: dict[str, Any]
) -> None:
    holding = posting.hold(image_count=2)
    finish_all(holding, lambda task_id: row if task_id == 0 else GOOD)
    posting.wait_end(holding)
    assert service.rows["000.png"]["status"] == "engine_error"
    assert service.rows["000.png"]["error_message"]
    assert service.rows["001.png"]["status"] == "recognised"


def test_rows_that_the_service_has_lost_fail_the_job_for_now(posting: Posting, service: Service) -> None:
    service.losing = {"000.png"}
    holding = posting.hold(image_count=2)
    finish_all(holding)
    posting.wait_end(holding)
    [(verb, body)] = service.ends
    assert (verb, body["reason"], body["retryable"]) == ("fail", "results-missing", True)


def test_a_failure_goes_after_the_rows_that_are_there(posting: Posting, service: Service) -> None:
    holding = posting.hold(image_count=3)
    holding.finish(0, "0.png", GOOD)
    holding.fail("storage", "disk \0\udcff " + "x" * 9_000, retryable=True)
    posting.wait_end(holding)
    assert list(service.rows) == ["0.png"]
    [(verb, body)] = service.ends
    assert (verb, body["reason"], body["retryable"]) == ("fail", "storage", True)
    assert body["message"].startswith("disk \ufffd\\xff xxx")


def test_nothing_is_posted_for_a_lease_that_is_lost(posting: Posting, service: Service, server: ScriptedServer) -> None:
    lost, kept = posting.hold(image_count=1), posting.hold(image_count=1)
    lost.lose()
    finish_all(lost)
    posting.wait_end(lost)
    finish_all(kept)
    posting.wait_end(kept)
    assert len(server.asked) == 1
    assert [verb for verb, _ in service.ends] == ["complete"]


def test_rows_in_memory_of_a_lease_that_is_lost_are_counted(
    posting: Posting, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    holding = posting.hold(image_count=5)
    for task_id in range(3):
        holding.finish(task_id, f"{task_id}.png", GOOD)
    holding.lose()
    posting.wait_end(holding)
    assert "job 17: its lease is lost; 3 rows are left to its next worker" in caplog.text
    assert server.asked == []


@pytest.mark.parametrize("answer", [problem(409, "lease-lost"), problem(404, "not-found")])
@pytest.mark.parametrize("verb", ["results", "complete"])
def test_a_lease_that_another_took_is_dropped(
    posting: Posting, service: Service, server: ScriptedServer, verb: str, answer: Answer
) -> None:
    service.answers = {verb: answer}
    holding = posting.hold(image_count=60 if verb == "results" else 1)
    finish_all(holding)
    posting.wait_end(holding)
    assert holding.lost
    assert len(server.asked) == 1
    assert posting.refusals == []


@pytest.mark.parametrize(("status", "kind"), [(503, "database-unavailable"), (500, "internal")])
def test_rows_are_kept_while_the_service_is_away_or_at_fault(
    posting: Posting, service: Service, server: ScriptedServer, status: int, kind: str
) -> None:
    service.answers = {verb: problem(status, kind) for verb in ("results", "complete")}
    holding = new_holding(70)
    finish_all(holding)
    posting.poster.add(holding)
    wait_for(lambda: len(server.asked) >= 2, WAIT_SECONDS)
    assert posting.poster.rows_waiting() == 0, "they are on disk"
    assert service.rows == {}
    service.answers = {}
    posting.wait_end(holding)
    assert list(service.rows) == [f"{number:03}.png" for number in range(70)]
    assert [verb for verb, _ in service.ends] == ["complete"]
    posting.stop()
    assert posting.kept() == {}


def test_a_worker_that_is_not_let_in_says_so_and_keeps_its_rows(posting: Posting, service: Service) -> None:
    service.answers = {"complete": problem(401, "unauthenticated")}
    holding = posting.hold(image_count=1)
    finish_all(holding)
    wait_for(lambda: posting.refusals, WAIT_SECONDS)
    posting.stop()
    assert posting.kept() == {17: (1, 1)}


def test_rows_that_cannot_be_taken_fail_the_job_for_now(posting: Posting, service: Service) -> None:
    service.answers = {"complete": problem(422, "invalid-request", "no such thing")}
    holding = posting.hold(image_count=1)
    finish_all(holding)
    posting.wait_end(holding)
    [(verb, body)] = service.ends
    assert (verb, body["reason"], body["retryable"]) == ("fail", "service", True)
    assert "no such thing" in body["message"]


def test_a_service_that_takes_not_even_the_failure_is_not_asked_without_end(
    posting: Posting, service: Service, server: ScriptedServer
) -> None:
    service.answers = {verb: problem(500, "internal") for verb in ("results", "complete", "fail")}
    holding = posting.hold(image_count=1)
    # As after a minute of such answers.
    holding.posts_failed = MAX_SERVER_ERRORS - 1
    finish_all(holding)
    posting.wait_end(holding)
    assert holding.lost
    assert len(server.asked) <= 4


def test_flushing_posts_what_is_there_and_ends_no_job(posting: Posting, service: Service) -> None:
    holding = posting.hold(image_count=5)
    for task_id in range(3):
        holding.finish(task_id, f"{task_id}.png", GOOD)
    assert posting.poster.flush(WAIT_SECONDS)
    assert len(service.rows) == 3
    assert service.ends == []


def test_a_flush_is_not_answered_by_a_round_that_began_before_it(posting: Posting, service: Service) -> None:
    answers: list[bool] = []
    flushing = threading.Thread(target=lambda: answers.append(posting.poster.flush(WAIT_SECONDS)))

    class Waiting(Holding):
        def next_batch(self, *, flush: bool) -> Batch | None:
            batch = super().next_batch(flush=flush)
            if batch is None and self.rows_waiting() and flushing.ident is None:
                # The round is at this job, whose row may wait, when the flush begins.
                posting.poster.flush(0)
                flushing.start()
            return batch

    holding = Waiting(LEASE, "w-1")
    holding.expect(0)
    holding.expect(1)
    posting.poster.add(holding)
    holding.finish(0, "0.png", GOOD)
    wait_for(lambda: answers, WAIT_SECONDS)
    assert answers == [True]
    assert list(service.rows) == ["0.png"]


def test_flushing_says_when_rows_are_left(posting: Posting, service: Service) -> None:
    service.answers = {"results": problem(503, "database-unavailable")}
    holding = posting.hold(image_count=5)
    holding.finish(0, "0.png", GOOD)
    posting.poster.flush(WAIT_SECONDS)
    assert service.rows == {}
    posting.poster.stop(WAIT_SECONDS)
    assert posting.poster.keep() == [holding]
    assert posting.kept() == {17: (1, None)}


def test_an_image_always_has_a_row_or_is_on_its_way() -> None:
    """While its row is made, the job is not seen as complete without it."""
    holding = new_holding(image_count=1)
    holding.finish_listing()

    class Answering(UserDict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            seen.append(holding.next_batch(flush=True))
            return super().__getitem__(key)

    seen: list[Batch | None] = []
    holding.finish(0, "0.png", Answering(GOOD))
    assert seen
    assert set(seen) == {None}
    batch = holding.next_batch(flush=True)
    assert batch is not None
    assert len(batch.rows) == 1


# --- what a worker that has ended left on disk ---


def leave_behind(server: ScriptedServer, service: Service, directory: Path, *, end: str = "complete") -> None:
    """Let a worker end whose 3 images were recognised while the service was away."""
    service.answers = AWAY
    first = Posting(server.root, directory)
    holding = first.hold(image_count=3)
    first.poster.use(holding.engine_key, EngineRun(engine="decimer", weights="miniature"))
    for task_id in range(3):
        holding.finish(task_id, f"{task_id:03}.png", GOOD)
    if end == "complete":
        holding.finish_listing()
    elif end == "fail":
        holding.fail("storage", "the disk is away", retryable=True)
    wait_for(lambda: holding.rows_waiting() == 0, WAIT_SECONDS)
    first.stop()
    assert first.kept() == {17: (3, 3 if end == "complete" else None)}
    service.answers = {}
    server.asked.clear()


AWAY = {verb: problem(503, "database-unavailable") for verb in ("results", "complete", "fail", "release")}


@pytest.mark.parametrize("end", ["complete", "fail", "release"])
def test_the_next_worker_posts_what_is_left_as_the_worker_that_made_it(
    server: ScriptedServer, service: Service, tmp_path: Path, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    leave_behind(server, service, tmp_path, end=end)
    second = Posting(server.root, tmp_path, "w-2")
    wait_for(lambda: service.ends, WAIT_SECONDS)
    wait_for(lambda: not second.poster.settling, WAIT_SECONDS)
    second.stop()
    assert list(service.rows) == ["000.png", "001.png", "002.png"]
    assert {(asked.body["worker_id"], asked.body["lease_seq"]) for asked in server.asked} == {("w-1", 3)}
    assert service.runs == [{"engine": "decimer", "weights": "miniature", "snapshot": "abc"}]
    [(verb, body)] = service.ends
    assert verb == end
    assert body.get("image_count") == (3 if end == "complete" else None)
    assert body.get("reason") == {"complete": None, "fail": "storage", "release": "restarted"}[end]
    assert "3 rows of 1 jobs are left of the worker w-1" in caplog.text
    assert list(tmp_path.glob("*.spool*")) == []


def test_what_is_left_goes_before_new_claims_and_new_rows(
    server: ScriptedServer, service: Service, tmp_path: Path
) -> None:
    leave_behind(server, service, tmp_path)
    service.answers = AWAY
    second = Posting(server.root, tmp_path, "w-2")
    wait_for(lambda: server.asked, WAIT_SECONDS)
    wait_for(lambda: second.poster.settling, WAIT_SECONDS)
    holding = second.hold(image_count=1)
    finish_all(holding)
    service.answers = {}
    second.wait_end(holding)
    assert [body["worker_id"] for _, body in service.ends] == ["w-1", "w-2"]
    assert not second.poster.settling
    second.stop()


@pytest.mark.parametrize("answer", [problem(409, "lease-lost"), problem(404, "not-found")])
def test_rows_left_of_a_job_that_another_has_are_counted_and_go(
    server: ScriptedServer, service: Service, tmp_path: Path, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    leave_behind(server, service, tmp_path)
    service.answers = {"results": answer, "complete": answer}
    second = Posting(server.root, tmp_path, "w-2")
    wait_for(lambda: len(second.ended) == 1, WAIT_SECONDS)
    second.stop()
    assert "job 17: it is so" in caplog.text
    assert "3 rows are left to its next worker" in caplog.text
    assert list(tmp_path.glob("*.spool*")) == []


def test_a_job_whose_completion_was_never_answered_is_known_to_be_complete(
    server: ScriptedServer, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    leave_behind(server, service, tmp_path)
    service.rows = {f"{number:03}.png": {} for number in range(3)}
    service.answers = {"results": problem(409, "lease-lost", "lease 3 has ended: completed")}
    second = Posting(server.root, tmp_path, "w-2")
    wait_for(lambda: len(second.ended) == 1, WAIT_SECONDS)
    second.stop()
    assert "job 17 had been completed already" in caplog.text
    assert "left to its next worker" not in caplog.text


def test_rows_left_by_somebody_elses_worker_stay_and_the_work_goes_on(
    server: ScriptedServer, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_behind(server, service, tmp_path)
    service.answers = {"results": problem(403, "worker-id-taken", "belongs to another token")}
    second = Posting(server.root, tmp_path, "w-2")
    holding = second.hold(image_count=1)
    finish_all(holding)
    second.wait_end(holding)
    second.stop()
    assert second.refusals == []
    assert second.kept() == {17: (3, 3)}
    assert str(tmp_path / "w-1.spool") in caplog.text
    assert "belongs to another token" in caplog.text


def test_rows_left_by_somebody_elses_worker_are_tried_again_later(
    server: ScriptedServer,
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The token that they were made with may have ended meanwhile, and this worker's be its successor."""
    monkeypatch.setattr("uworker.poster.ADOPT_SECONDS", 0.1)
    monkeypatch.setattr("uworker.poster.NOT_OURS_SECONDS", 0.3)
    leave_behind(server, service, tmp_path)
    service.answers = {"results": problem(403, "worker-id-taken", "belongs to another token")}
    second = Posting(server.root, tmp_path, "w-2")
    wait_for(lambda: "are left there" in caplog.text, WAIT_SECONDS)
    service.answers = {}
    wait_for(lambda: [holding.worker_id for holding in second.ended] == ["w-1"], WAIT_SECONDS)
    second.stop()
    assert second.kept() == {}


def test_a_revoked_token_keeps_what_is_left_and_says_where(
    server: ScriptedServer, service: Service, tmp_path: Path
) -> None:
    leave_behind(server, service, tmp_path)
    service.answers = {"results": problem(401, "unauthenticated")}
    second = Posting(server.root, tmp_path, "w-2")
    wait_for(lambda: second.refusals, WAIT_SECONDS)
    second.stop()
    assert second.kept() == {17: (3, 3)}


def leave_two(root: str, directory: Path) -> None:
    """The spool of a worker that has ended, with the rows of two jobs."""
    spool = Spool.create(directory, "w-1", root, 10**7)
    for job_id in (17, 18):
        lease = LEASE.model_copy(update={"job_id": job_id})
        spool.put(lease, EngineRun(engine="decimer"), [result("1.png"), result("2.png")], image_count=2)
    spool.close()


def test_all_jobs_of_somebody_elses_worker_are_left_as_they_are(
    server: ScriptedServer, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_two(server.root, tmp_path)
    service.answers = {"results": problem(403, "worker-id-taken", "belongs to another token")}
    second = Posting(server.root, tmp_path, "w-2")
    holding = second.hold(image_count=1)
    finish_all(holding)
    second.wait_end(holding)
    second.stop()
    assert second.kept() == {17: (2, 2), 18: (2, 2)}
    assert [asked.body["worker_id"] for asked in server.asked] == ["w-1", "w-2"]
    assert caplog.text.count("belongs to another token") == 1
    assert "ERROR" not in {record.levelname for record in caplog.records}


def test_rows_left_that_cannot_be_read_are_left_to_people_and_take_no_job_back(
    server: ScriptedServer, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_two(server.root, tmp_path)
    with closing(sqlite3.connect(tmp_path / "w-1.spool")) as database, database:
        database.execute("UPDATE rows SET row = 'damaged'")
    second = Posting(server.root, tmp_path, "w-2")
    holding = second.hold(image_count=1)
    finish_all(holding)
    second.wait_end(holding)
    wait_for(lambda: not second.poster.settling, WAIT_SECONDS)
    second.stop()
    assert {asked.body["worker_id"] for asked in server.asked} == {"w-2"}
    assert [verb for verb, _ in service.ends] == ["complete"]
    assert second.kept() == {17: (2, 2), 18: (2, 2)}
    assert caplog.text.count(f"the results in {tmp_path / 'w-1.spool'} are left there") == 1


def test_a_job_that_failed_still_fails_when_its_rows_cannot_be_taken(
    server: ScriptedServer, service: Service, tmp_path: Path
) -> None:
    leave_behind(server, service, tmp_path, end="fail")
    service.answers = {"results": problem(422, "invalid-request", "no such thing")}
    second = Posting(server.root, tmp_path, "w-2")
    wait_for(lambda: second.ended, WAIT_SECONDS)
    second.stop()
    [(verb, body)] = service.ends
    assert (verb, body["reason"], body["worker_id"]) == ("fail", "storage", "w-1")


# --- while the service is away ---


def test_rows_name_what_made_them_also_when_the_engine_was_changed_since(posting: Posting, service: Service) -> None:
    service.answers = AWAY
    holding = posting.hold(image_count=2)
    for task_id, weights in enumerate(("old", "new")):
        posting.poster.use(holding.engine_key, EngineRun(engine="decimer", weights=weights))
        holding.finish(task_id, f"{task_id}.png", GOOD)
        wait_for(lambda: holding.rows_waiting() == 0, WAIT_SECONDS)
    holding.finish_listing()
    service.answers = {}
    posting.wait_end(holding)
    assert list(service.rows) == ["0.png", "1.png"]
    assert [run["weights"] for run in service.runs[-2:]] == ["old", "new"]
    assert service.runs[-1]["weights"] == "new"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404, "<html>default backend - 404</html>"),
        Answer(200, "<html>log in to this network</html>"),
        problem(429, "too-many-requests"),
    ],
)
def test_what_answers_in_the_services_place_costs_no_results(
    posting: Posting, service: Service, server: ScriptedServer, answer: Answer
) -> None:
    service.answers = dict.fromkeys(AWAY, answer)
    holding = posting.hold(image_count=1)
    finish_all(holding)
    wait_for(lambda: len(server.asked) >= 2, WAIT_SECONDS)
    service.answers = {}
    posting.wait_end(holding)
    assert list(service.rows) == ["000.png"]
    assert [verb for verb, _ in service.ends] == ["complete"]


def fill_the_spool(server: ScriptedServer, service: Service, directory: Path) -> tuple[Posting, Holding]:
    """A service that is away, and more rows than there is room for on disk."""
    service.answers = AWAY
    posting = Posting(server.root, directory, max_bytes=40_000)
    # All are there before the first is posted.
    holding = new_holding(300)
    finish_all(holding)
    posting.poster.add(holding)
    wait_for(lambda: posting.poster.full, WAIT_SECONDS)
    return posting, holding


def test_a_full_spool_is_told_and_has_room_again_when_the_service_is_back(
    server: ScriptedServer, service: Service, tmp_path: Path
) -> None:
    posting, holding = fill_the_spool(server, service, tmp_path)
    assert posting.poster.rows_waiting() == 300
    service.answers = {}
    wait_for(lambda: not posting.poster.full, WAIT_SECONDS)
    posting.wait_end(holding)
    assert len(service.rows) == 300
    posting.stop()
    assert list(tmp_path.glob("*.spool*")) == []


def test_a_full_spool_has_room_again_when_its_leases_are_lost(
    server: ScriptedServer, service: Service, tmp_path: Path
) -> None:
    """The heartbeat comes before the next post, and after it there may be nothing to post that would say so."""
    posting, holding = fill_the_spool(server, service, tmp_path)
    holding.lose()
    posting.wait_end(holding)
    wait_for(lambda: not posting.poster.full, WAIT_SECONDS)
    posting.stop()


def test_an_error_that_nobody_foresaw_ends_neither_the_posting_nor_the_other_jobs(
    server: ScriptedServer, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Holding):
        def next_batch(self, *, flush: bool) -> Batch | None:
            raise KeyError(f"nobody foresaw this: {flush}")

    posting = Posting(server.root, tmp_path)
    odd = Odd(LEASE, "w-1")
    posting.poster.add(odd)
    holding = posting.hold(image_count=1)
    finish_all(holding)
    posting.wait_end(holding)
    assert "nobody foresaw this" in caplog.text
    odd.lose()
    posting.wait_end(odd)
    posting.stop()


def test_a_directory_that_cannot_be_looked_through_does_not_keep_the_worker_from_claiming(
    server: ScriptedServer, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def glob(self: Path, pattern: str) -> Iterator[Path]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "glob", glob)
    posting = Posting(server.root, tmp_path)
    wait_for(lambda: not posting.poster.settling, WAIT_SECONDS)
    holding = posting.hold(image_count=1)
    finish_all(holding)
    posting.wait_end(holding)
    posting.stop()


def test_rows_are_kept_while_a_request_hangs_and_the_worker_must_end(
    server: ScriptedServer, service: Service, tmp_path: Path
) -> None:
    service.answers = dict.fromkeys(AWAY, Answer(hold=True))
    posting = Posting(server.root, tmp_path, timeout_seconds=5)
    holding = posting.hold(image_count=70)
    finish_all(holding)
    assert server.held.wait(WAIT_SECONDS)
    posting.poster.stop()
    assert posting.poster.keep() == [holding]
    assert posting.kept() == {17: (70, 70)}
    posting.poster.stop(WAIT_SECONDS)
    assert posting.kept() == {17: (70, 70)}
    posting.client.close()
