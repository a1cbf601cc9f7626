"""The spool: what a process put on disk is there when it is gone, once, for one other process, and for nobody else."""

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from job_api.schemas import EngineRun, Fail, Lease, NewResult, ResultStatus
from tests.plugins.holder import LEASE, result
from tests.serving import small_disk
from uworker.holding import Ending, Holding
from uworker.images import Verdict
from uworker.keeper import Keeper
from uworker.spool import APPLICATION_ID, LOCK_NAME, Spool, SpoolError, SpoolFull, SpoolInUse

ROOT = "http://service"
RUN = EngineRun(engine_version="2.8.1", weights="tiny", prepared="ab" * 32, snapshot="abc")
AMPLE = 10**6
FAILURE = Fail(worker_id="w-1", lease_seq=3, reason="storage", retryable=True, message="away")


def rows(count: int, first: int = 0) -> list[NewResult]:
    return [result(f"{number:04}.png") for number in range(first, first + count)]


def other_lease(job_id: int) -> Lease:
    return LEASE.model_copy(update={"job_id": job_id})


def make(directory: Path, worker_id: str = "w-1", *, max_bytes: int = 10**7, root: str = ROOT) -> Spool:
    return Spool.create(directory, worker_id, root, max_bytes)


def content(spool: Spool) -> dict[int, list[NewResult]]:
    """All rows that come out of a spool, by job, as posting takes them."""
    found: dict[int, list[NewResult]] = {}
    for spooled in spool.leases():
        found[spooled.lease.job_id] = []
        while (some := spool.oldest_rows(spooled.lease, 100, AMPLE)) is not None:
            found[spooled.lease.job_id] += some.rows
            spool.drop_rows(spooled.lease, some.last_id)
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool"


@pytest.fixture
def spool(directory: Path) -> Iterator[Spool]:
    spool = make(directory)
    yield spool
    spool.close()


def test_rows_come_back_in_order_with_what_made_them_and_how_the_lease_ends(spool: Spool) -> None:
    older = RUN.model_copy(update={"weights": "older"})
    spool.put(LEASE, older, rows(2))
    spool.put(other_lease(18), RUN, rows(1), failure=FAILURE)
    spool.put(LEASE, RUN, rows(3, first=2))
    spool.put(LEASE, RUN, (), image_count=5)
    spool.close()
    adopted = Spool.adopt(spool.path)
    assert (adopted.worker_id, adopted.root) == ("w-1", ROOT)
    first, second = adopted.leases()
    assert (first.lease.job_id, first.lease.lease_seq, first.lease.project) == (17, 3, "patents")
    assert (first.image_count, first.failure, first.row_count) == (5, None, 5)
    assert (second.lease.job_id, second.image_count, second.failure) == (18, None, FAILURE)
    batch = adopted.oldest_rows(LEASE, 100, AMPLE)
    assert batch is not None
    assert (batch.run, batch.rows) == (older, rows(2)), "those that were made with the same"
    adopted.drop_rows(LEASE, batch.last_id)
    batch = adopted.oldest_rows(LEASE, 2, AMPLE)
    assert batch is not None
    assert (batch.run, batch.rows) == (RUN, rows(2, first=2))
    adopted.drop(LEASE)
    assert [lease.lease.job_id for lease in adopted.leases()] == [18]
    adopted.delete()
    assert list(spool.path.parent.glob("w-1*")) == []


def test_a_batch_is_bounded_in_bytes_and_never_empty(spool: Spool) -> None:
    tokens: dict[str, Any] = {"smiles": "C" * 500, "tokens": ["C"] * 500, "token_probabilities": [0.123456789] * 500}
    long = [result(f"{number}.png", **tokens) for number in range(5)]
    spool.put(LEASE, RUN, long)
    size = len(long[0].model_dump_json(exclude_none=True))
    for max_bytes, expected in ((3 * size, long[:3]), (3 * size - 1, long[:2]), (size - 1, long[:1])):
        batch = spool.oldest_rows(LEASE, 100, max_bytes)
        assert batch is not None
        assert batch.rows == expected


def test_rows_that_are_put_after_all_others_were_posted_are_seen(spool: Spool) -> None:
    for first in (0, 10):
        spool.put(LEASE, RUN, rows(10, first=first))
        assert content(spool) == {17: rows(10, first=first)}
        spool.drop(LEASE)
    spool.put(LEASE, RUN, rows(1))
    assert spool.count_rows(LEASE) == 1


def test_what_does_not_fit_is_not_kept_by_half_and_fits_when_there_is_room(directory: Path) -> None:
    spool = make(directory, max_bytes=100_000)
    spool.put(LEASE, RUN, rows(200))
    with pytest.raises(SpoolFull, match="100000 bytes"):
        spool.put(other_lease(18), RUN, rows(200))
    assert spool.bytes_used() <= 100_000
    assert [(lease.lease.job_id, lease.row_count) for lease in spool.leases()] == [(17, 200)]
    # An ending takes no room worth speaking of.
    spool.put(LEASE, RUN, (), image_count=200)
    assert content(spool) == {17: rows(200)}
    spool.put(other_lease(18), RUN, rows(200))
    spool.close()


def test_a_spool_is_for_its_user_alone_and_holds_no_secrets(spool: Spool, directory: Path) -> None:
    secret = "s3cret-key"
    lease = LEASE.model_copy(update={"source": f"s3://{secret}@bucket", "engine_options": {"key": secret}})
    spool.put(lease, RUN, rows(100))
    assert directory.stat().st_mode & 0o777 == 0o700
    files = [path for path in directory.iterdir() if path.name.startswith("w-1")]
    assert len(files) == 2, "the file and its journal"
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert secret.encode() not in path.read_bytes()
    assert b"0099.png" in files[0].read_bytes() + files[1].read_bytes()


PUTTING = """
import sys, time
from pathlib import Path
from tests.test_spool import LEASE, RUN, make, other_lease, rows
spool = make(Path(sys.argv[1]), "w-dead")
for job_id in range(1, 11):
    spool.put(other_lease(job_id), RUN, rows(30), image_count=30)
print("put", flush=True)
time.sleep(600)
"""


def test_a_living_process_keeps_its_spool_and_a_killed_one_leaves_all_of_it(directory: Path) -> None:
    command = [sys.executable, "-c", PUTTING, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "put\n"
            [path] = directory.glob("*.spool")
            with pytest.raises(SpoolInUse):
                Spool.adopt(path)
            assert Keeper(directory, "w-2", ROOT, 10**7).adopt() == []
        finally:
            process.send_signal(signal.SIGKILL)
    adopted = Spool.adopt(path)
    with pytest.raises(SpoolInUse):
        Spool.adopt(path)
    assert content(adopted) == {job_id: rows(30) for job_id in range(1, 11)}
    assert [lease.image_count for lease in adopted.leases()] == [30] * 10
    adopted.close()


def test_of_a_torn_file_only_the_last_write_is_lost(spool: Spool, directory: Path, tmp_path: Path) -> None:
    spool.put(LEASE, RUN, rows(20))
    journal = spool.path.with_name(spool.path.name + "-wal")
    whole = journal.stat().st_size
    spool.put(other_lease(18), RUN, rows(20))
    for size in (whole + 1, journal.stat().st_size - 1):
        # As after a power cut: the files as they are now, the end of the last write missing.
        torn = tmp_path / f"torn-{size}"
        torn.mkdir()
        shutil.copy(spool.path, torn)
        (torn / journal.name).write_bytes(journal.read_bytes()[:size])
        adopted = Spool.adopt(torn / spool.path.name)
        assert content(adopted) == {17: rows(20)}
        adopted.close()


def test_a_spool_of_a_later_version_and_what_is_none_are_left_as_they_are(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(directory, "w-later").close()
    later = directory / "w-later.spool"
    with sqlite3.connect(later) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    (directory / "garbage.spool").write_bytes(b"no database " * 1000)
    with sqlite3.connect(directory / "other.spool") as database:
        database.execute("CREATE TABLE t (x)")
        database.execute(f"PRAGMA application_id = {APPLICATION_ID + 1}")
    database.close()
    (directory / "link.spool").symlink_to("/etc/passwd")
    before = {path.name: path.read_bytes() for path in directory.glob("*.spool")}
    assert len(before) == 4
    with pytest.raises(SpoolError, match="version 2"):
        Spool.adopt(later)
    keeper = Keeper(directory, "w-2", ROOT, 10**7)
    assert keeper.adopt() == []
    assert keeper.adopt() == []
    assert {path.name: path.read_bytes() for path in directory.glob("*.spool")} == before
    for name in before:
        assert sum(name in record.getMessage() for record in caplog.records) == 1, "said once"


def test_the_rows_of_another_service_are_left_to_its_workers(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = make(directory, root="http://elsewhere")
    spool.put(LEASE, RUN, rows(3))
    spool.close()
    assert Keeper(directory, "w-2", ROOT, 10**7).adopt() == []
    assert "it is for the job service at http://elsewhere" in caplog.text
    [holding] = Keeper(directory, "w-3", "http://elsewhere", 10**7).adopt()
    assert holding.worker_id == "w-1"
    assert holding.spool is not None
    assert holding.spool.count_rows(LEASE) == 3
    holding.spool.close()


def test_a_file_whose_process_died_before_its_first_row_is_cleared_away(directory: Path) -> None:
    make(directory, "w-dead").close()
    (directory / "w-nothing.spool").touch(mode=0o600)
    assert Keeper(directory, "w-2", ROOT, 10**7).adopt() == []
    assert list(directory.glob("*.spool")) == []


def holding_of(count: int, job_id: int = 17) -> Holding:
    holding = Holding(other_lease(job_id), "w-1")
    holding.image_count = count
    for task_id in range(count):
        holding.expect(task_id)
        holding.finish(task_id, f"{task_id:04}.png", {"status": "recognised", "smiles": "CCO"})
    holding.finish_listing()
    return holding


def test_where_the_disk_takes_nothing_rows_stay_in_memory_until_it_does(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.parent.mkdir(parents=True)
    directory.touch()
    keeper, holding = Keeper(directory, "w-1", ROOT, 10**7), holding_of(3)
    keeper.prepare()
    assert "UWORKER_SPOOL_DIR" in caplog.text
    for _ in range(3):
        keeper.put_away([holding], lambda _: RUN)
        assert holding.rows_waiting() == 3
    assert caplog.text.count("can only be kept in memory") == 1, "said once"
    assert not keeper.full, "memory has its own bound"
    directory.unlink()
    keeper.put_away([holding], lambda _: RUN)
    assert holding.rows_waiting() == 0
    keeper.close()
    adopted = Spool.adopt(directory / "w-1.spool")
    assert [row.image for row in content(adopted)[17]] == ["0000.png", "0001.png", "0002.png"]
    adopted.close()


def fill(directory: Path) -> Path:
    """A file that takes all that a file system has left."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


def test_a_full_disk_drops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(tmp_path, 8))
        except PermissionError:
            pytest.skip("mounting is not permitted here")
        keeper, small, large = Keeper(tmp_path, "w-1", ROOT, 10**9), holding_of(3), holding_of(4_000, job_id=18)
        fill(tmp_path)
        keeper.put_away([small], lambda _: RUN)
        assert small.rows_waiting() == 3
        (tmp_path / "filler").unlink()
        keeper.put_away([small], lambda _: RUN)
        assert small.rows_waiting() == 0
        caplog.clear()
        filler = fill(tmp_path)
        for _ in range(3):
            keeper.put_away([small, large], lambda _: RUN)
        assert caplog.text.count("can only be kept in memory") == 1
        assert large.rows_waiting() > 0
        assert large.rows_waiting() + keeper.rows_of(large) == 4_000
        assert keeper.rows_of(small) == 3
        filler.unlink()
        keeper.put_away([small, large], lambda _: RUN)
        assert large.rows_waiting() == 0
        keeper.close()
        adopted = Spool.adopt(tmp_path / "w-1.spool")
        kept = content(adopted)
        assert (len(kept[17]), [row.image for row in kept[18]]) == (3, [f"{n:04}.png" for n in range(4_000)])
        adopted.close()


def test_a_full_spool_keeps_what_fits_and_says_once_that_it_is_full(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper, holding = Keeper(directory, "w-1", ROOT, 300_000), holding_of(3_000)
    for _ in range(3):
        keeper.put_away([holding], lambda _: RUN)
    assert keeper.full, "so recognition pauses"
    assert caplog.text.count("recognition pauses") == 1
    assert 0 < holding.rows_waiting() < 3_000
    assert holding.rows_waiting() + keeper.rows_of(holding) == 3_000
    while (batch := keeper.next_batch(holding)) is not None and batch.last_id is not None:
        keeper.acknowledge(holding, batch.last_id)
    keeper.note_back()
    assert [keeper.full] == [False]
    keeper.put_away([holding], lambda _: RUN)
    assert keeper.rows_of(holding) > 0
    keeper.close()


def test_a_lease_that_is_done_is_noted_also_when_another_ones_rows_do_not_fit(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper, large, small = Keeper(directory, "w-1", ROOT, 300_000), holding_of(3_000), holding_of(1, job_id=18)
    for _ in range(3):
        keeper.put_away([large, small], lambda _: RUN)
        # It fits, and says nothing of the others.
        small.refuse("late.png", Verdict(ResultStatus.MISSING, "gone"))
    assert keeper.full
    assert caplog.text.count("recognition pauses") == 1
    assert small.spooled_ending is Ending.COMPLETE
    assert keeper.rows_of(small) == 3
    keeper.close()


def test_what_may_pass_is_tried_again_and_said_once(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = make(directory)
    spool.put(LEASE, RUN, rows(3))
    spool.close()
    keeper = Keeper(directory, "w-2", ROOT, 10**7)
    with filelock.FileLock(directory / LOCK_NAME):
        assert keeper.adopt() == []
        assert keeper.adopt() == []
    assert caplog.text.count("it is tried again") == 1
    assert keeper.adopt(lambda: True) == [], "a worker that ends has better things to do"
    [holding] = keeper.adopt()
    assert keeper.rows_of(holding) == 3
    keeper.close()
