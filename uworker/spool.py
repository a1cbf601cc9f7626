"""Rows that the service could not take yet, on disk: one SQLite file for each worker process.

A spool is locked for as long as the process lives that uses it, by SQLite itself (`locking_mode = EXCLUSIVE`), and the
lock goes with the process, however that ends. So a file that can be locked is that of a dead process, and whoever locks
it has it alone. Each write is a transaction that is on disk when it returns; what a power cut tears is rolled back.

It holds no secrets: of a lease it keeps what is needed to name it, and neither its source nor the engine's options.
"""

import os
import sqlite3
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, Self

import filelock
from pydantic import ValidationError

from job_api.schemas import EngineRun, Fail, Lease, NewResult
from uworker import spool_sql as sql

SUFFIX = ".spool"
LOCK_NAME = ".lock"
# Others hold it for as long as a small file is made; a worker that must end cannot wait for long.
LOCK_SECONDS = 2.0
APPLICATION_ID = 0x646A7370
VERSION = 1
# What a row takes beside its texts, more or less.
ROW_OVERHEAD_BYTES = 64
BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
# No database, a damaged one, or one without the tables; all else, such as too many open files, may pass.
WRONG = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR})


class SpoolError(Exception):
    """The spool cannot be written or read; the message says which, and why."""


class SpoolFull(SpoolError):
    """The rows would take more room than the spool may have; none of them was kept."""


class SpoolUnusable(SpoolError):
    """It is no spool, one of a later version, damaged, or somebody else's; that does not pass."""


class SpoolInUse(SpoolError):
    """The process whose spool this is lives, or another one posts it."""


@dataclass(frozen=True)
class SpooledRows:
    """The oldest rows of a lease that were made with the same; `last_id` names the last of them."""

    run: EngineRun
    rows: list[NewResult]
    last_id: int


@dataclass(frozen=True)
class SpooledLease:
    """A lease that something is kept of: completed with `image_count`, failed, or neither, where it was not done."""

    lease: Lease
    image_count: int | None
    failure: Fail | None
    row_count: int


class Spool:
    """A spool that this process has locked; safe to share between threads.

    Attributes:
        worker_id: who made the rows.
        root: address of the service that they are for.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.worker_id = ""
        self.root = ""
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        # Up to where each lease's rows are posted, also where a full disk does not let them be deleted.
        self._posted: dict[tuple[int, int], int] = {}
        try:
            # Never made here: `create` does that. Transactions are begun below, so the module need not begin any.
            self._database = sqlite3.connect(
                path.absolute().as_uri() + "?mode=rw",
                uri=True,
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise SpoolError(f"the spool {path} cannot be opened: {error}") from error
        try:
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA synchronous = FULL")
            # The lock is taken by the first write, and kept.
            self._database.execute("BEGIN EXCLUSIVE")
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._database.close()
            if getattr(error, "sqlite_errorcode", None) in BUSY:
                raise SpoolInUse(f"the spool {path} is in use") from error
            raise _kind_of(error)(f"the spool {path} cannot be opened: {error}") from error

    @classmethod
    def create(cls, directory: Path, worker_id: str, root: str, max_bytes: int) -> Self:
        """Make a worker's spool, and the directory if it is not there; both are for this user alone.

        Raises:
            SpoolError: the directory cannot be written.
        """
        path = directory / (worker_id + SUFFIX)
        try:
            prepare(directory)
            with _shared(directory):
                # SQLite would make it with the usual mode; its journal takes the file's.
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                try:
                    spool = cls(path, max_bytes)
                    spool._fill_in(worker_id, root)
                except SpoolError:
                    # On a full disk; what was begun would be in the way of the next try.
                    path.unlink()
                    raise
        except OSError as error:
            raise SpoolError(f"the spool {path} cannot be made: {error.strerror or error}") from error
        return spool

    def _fill_in(self, worker_id: str, root: str) -> None:
        with self._reading() as database:
            database.execute("PRAGMA journal_mode = WAL")
        with self._writing() as database:
            for statement in sql.SCHEMA.split(";"):
                database.execute(statement)
            database.execute("INSERT INTO owner VALUES (?, ?)", (worker_id, root))
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {VERSION}")
        self.worker_id, self.root = worker_id, root

    @classmethod
    def adopt(cls, path: Path) -> Self:
        """Open the spool of a process that has ended; what it holds is not added to.

        Raises:
            SpoolInUse: the process lives.
            SpoolUnusable: it is no spool, one of a later version, damaged, or somebody else's.
            SpoolError: it cannot be opened at present.
        """
        try:
            with _shared(path.parent):
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                    raise SpoolUnusable(f"{path} is not a file of this user's")
                spool = cls(path, 0)
        except FileNotFoundError as error:
            raise SpoolInUse(f"the spool {path} is gone: another worker has posted it") from error
        except OSError as error:
            raise SpoolError(f"the spool {path} cannot be opened: {error}") from error
        try:
            spool._read_owner()
        except SpoolError:
            spool.close()
            raise
        return spool

    def _read_owner(self) -> None:
        with self._reading() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (application,) = database.execute("PRAGMA application_id").fetchone()
            if (version, application) == (0, 0):
                # Its process died before its first row was kept.
                return
            if application != APPLICATION_ID:
                raise SpoolUnusable(f"{self.path} is no spool of this program")
            if version != VERSION:
                raise SpoolUnusable(f"the spool {self.path} is of version {version}; this program knows {VERSION}")
            self.worker_id, self.root = database.execute("SELECT worker_id, root FROM owner").fetchone()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._database
            except (sqlite3.Error, ValidationError, TypeError) as error:
                raise _kind_of(error)(f"the spool {self.path} cannot be read: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on disk at the end of the block or not at all."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                    self._database.execute("COMMIT")
                finally:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise SpoolError(f"the spool {self.path} cannot be written: {error}") from error

    def put(
        self,
        lease: Lease,
        run: EngineRun,
        rows: Iterable[NewResult],
        *,
        image_count: int | None = None,
        failure: Fail | None = None,
    ) -> None:
        """Keep rows of a lease after those that are there, and how it ends, if that is known.

        Raises:
            SpoolFull: there is no room for them within the bound.
            SpoolError: the disk does not take them.
        """
        made_with = _json(run)
        texts = [_json(row) for row in rows]
        size = sum(len(text.encode()) + len(made_with) + ROW_OVERHEAD_BYTES for text in texts)
        with self._lock:
            if texts and self.bytes_used() + size > self._max_bytes:
                raise SpoolFull(f"the spool {self.path} is full ({self._max_bytes} bytes)")
            with self._writing() as database:
                key = (lease.job_id, lease.lease_seq)
                named = (lease.project, lease.directory, lease.engine)
                database.execute(
                    sql.PUT_LEASE, (*key, *named, image_count, None if failure is None else _json(failure))
                )
                database.executemany(sql.PUT_ROW, [(*key, made_with, text) for text in texts])

    def bytes_used(self) -> int:
        """What the spool's file takes, less what is free in it."""
        with self._reading() as database:
            sizes = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count")]
            used: int = (sizes[0] - sizes[1]) * database.execute("PRAGMA page_size").fetchone()[0]
            return used

    def leases(self) -> list[SpooledLease]:
        """All leases that have something in here, in the order in which they came."""
        if not self.worker_id:
            return []
        with self._reading() as database:
            return [_spooled(row) for row in database.execute(sql.LEASES)]

    def oldest_rows(self, lease: Lease, limit: int, max_bytes: int) -> SpooledRows | None:
        """The oldest rows of a lease, as many of them as were made with the same; None when there are none.

        A single row may take more than `max_bytes`, several together not.
        """
        with self._reading() as database:
            key = (lease.job_id, lease.lease_seq)
            found = database.execute(sql.OLDEST_ROWS, (*key, self._posted.get(key, 0), limit)).fetchall()
            if not found:
                return None
            made_with = found[0][1]
            sizes = accumulate(len(text.encode()) for _, _, text in found)
            fitting = [row for row, size in zip(found, sizes, strict=True) if size <= max_bytes] or found[:1]
            same = list(takewhile(lambda row: row[1] == made_with, fitting))
            rows = [NewResult.model_validate_json(text) for _, _, text in same]
            return SpooledRows(EngineRun.model_validate_json(made_with), rows, last_id=same[-1][0])

    def count_rows(self, lease: Lease) -> int:
        """How many rows of a lease are in here."""
        with self._reading() as database:
            key = (lease.job_id, lease.lease_seq)
            count: int = database.execute(sql.COUNT_ROWS, (*key, self._posted.get(key, 0))).fetchone()[0]
            return count

    def drop_rows(self, lease: Lease, last_id: int) -> None:
        """The service has the rows of a lease up to this one; they do not come again, also if this raises."""
        key = (lease.job_id, lease.lease_seq)
        with self._lock:
            self._posted[key] = last_id
            with self._writing() as database:
                database.execute(sql.DROP_ROWS, (*key, last_id))

    def drop(self, lease: Lease) -> None:
        """A lease has ended: nothing of it is of use any more."""
        key = (lease.job_id, lease.lease_seq)
        with self._lock:
            with self._reading() as database:
                (newest,) = database.execute(sql.NEWEST_ROW, key).fetchone()
            self._posted[key] = max(newest or 0, self._posted.get(key, 0))
            with self._writing() as database:
                database.execute(sql.DROP_ROWS, (*key, self._posted[key]))
                database.execute(sql.DROP_LEASE, key)

    def close(self) -> None:
        """Let it lie for another process."""
        with self._lock:
            self._database.close()

    def delete(self) -> None:
        """Remove the file, still locked, so that nobody finds half of it."""
        with self._lock, _shared(self.path.parent):
            self.path.unlink(missing_ok=True)
            self._database.close()
            self.path.with_name(self.path.name + "-wal").unlink(missing_ok=True)


def prepare(directory: Path) -> None:
    """Make a directory for spools, for this user alone; one that is there is left as it is.

    Raises:
        OSError: it cannot be made, or not be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _shared(directory):
        pass


@contextmanager
def _shared(directory: Path) -> Iterator[None]:
    """Held while a spool is made or tried: between the two a new one would look like that of a dead process."""
    try:
        lock = filelock.FileLock(directory / LOCK_NAME, timeout=LOCK_SECONDS, mode=0o600)
        lock.acquire()
    except NotImplementedError as error:
        raise OSError(str(error)) from error
    try:
        yield
    finally:
        lock.release()


def _kind_of(error: Exception) -> type[SpoolError]:
    if not isinstance(error, sqlite3.Error):
        # What was read makes no sense.
        return SpoolUnusable
    # The lowest byte of a code is its kind.
    return SpoolUnusable if getattr(error, "sqlite_errorcode", 0) & 0xFF in WRONG else SpoolError


def _json(model: EngineRun | NewResult | Fail) -> str:
    return model.model_dump_json(exclude_none=True)


def _spooled(row: Any) -> SpooledLease:
    job_id, lease_seq, project, directory, engine, image_count, failure, row_count = row
    lease = Lease(
        job_id=job_id,
        lease_seq=lease_seq,
        project=project,
        directory=directory,
        source="",
        engine=engine,
        engine_options={},
        lease_seconds=0,
        results_count=0,
    )
    return SpooledLease(lease, image_count, None if failure is None else Fail.model_validate_json(failure), row_count)
