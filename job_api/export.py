"""The streamed export of a project's results: PostgreSQL writes the text (COPY), this module passes it on in pages.

A page is read whole, in one short statement, and its connection is given back before a byte of it is sent: a slow
client holds a page or two in memory, never a connection or a snapshot. How far an export may read, and why, is in
docs/decisions/0003-export-order.md. Writes nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from job_api.db import Connection, Database
from job_api.errors import TooManyRequests
from job_api.schemas import ExportFormat, Result, ResultStatus

# Bytes of a page: enough that the work of planning a statement does not count, little enough for many exports at once.
PAGE_BYTES = 2**20
# A page that came out larger than this is thrown away and read again with fewer rows.
MAX_PAGE_BYTES = 2 * PAGE_BYTES
BLOCK_BYTES = 2**18
FIRST_PAGE_ROWS = 1_000
# Rows that are looked at for one page, also when a filter lets none of them pass.
MAX_PAGE_ROWS = 100_000
# The rows of a job up to this number are found through the job, else through the project.
MAX_JOB_ROWS = 50_000

MAX_EXPORTS = 16
MAX_READING = 2
RETRY_SECONDS = 5.0

# The last number below which nothing can change any more. The sequence is read before the locks, and the rows are
# read after both: a writer that is not seen here either took its numbers later or has committed.
LAST_NUMBER = "SELECT last_value FROM result_seq"
OLDEST_WRITER = """
SELECT min((l.classid::bigint << 32) | l.objid::bigint)
FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND d.datname = current_database()
"""

FIND_JOB = "SELECT id FROM jobs WHERE project_id = $1 AND directory = $2"
COUNT_ROWS_OF_JOB = "SELECT count(*) FROM (SELECT FROM results WHERE job_id = $1 LIMIT $2) few"

# Where a page ends: answered from the index alone where the table is vacuumed.
PAGE_END = """
SELECT count(*) AS rows, max(seq) AS last FROM (
    SELECT r.seq FROM results r WHERE {scope} AND r.seq > $1 AND r.seq <= $2 ORDER BY r.seq LIMIT $3) page
"""
# `OFFSET 0` makes the planner look up each row's job and provenance by id, remembering them (memoize), as it should
# also where it knows too little of the tables: hashing all jobs for each page would cost more than the page itself.
PAGE = """
SELECT {fields} FROM results r
CROSS JOIN LATERAL (SELECT j.directory FROM jobs j WHERE j.id = r.job_id OFFSET 0) j
CROSS JOIN LATERAL (SELECT v.* FROM provenances v WHERE v.id = r.provenance_id OFFSET 0) v
WHERE {scope} AND r.seq > {since} AND r.seq <= {until}{filters} ORDER BY r.seq
"""
PAGE_OF_JSON = "SELECT row_to_json(row) FROM ({page}) row"

COLUMNS = list(Result.model_fields)
_JOINED = {
    "project": "(SELECT p.name FROM projects p WHERE p.id = {project_id})",
    "directory": "j.directory",
    "image_sha256": "encode(r.image_sha256, 'hex')",
    **{name: f"v.{name}" for name in ("engine_version", "weights", "weights_sha256", "snapshot", "worker_id")},
}
# As text: what PostgreSQL writes would be `t`, `{a,b}` and a time with a space in it. The session's time zone is UTC.
_IN_CSV = {
    **{name: f"CASE r.{name} WHEN true THEN 'true' WHEN false THEN 'false' END" for name in ("truncated", "is_valid")},
    "flags": "CASE WHEN r.flags <> '{{}}' THEN array_to_string(r.flags, ';') END",
    "processed_at": "replace(r.processed_at::text, ' ', 'T') || ':00'",
}
# JSON holds neither of these characters, so that COPY finds nothing in it to quote.
_DELIMITER_AND_QUOTE = {ExportFormat.CSV: (",", '"'), ExportFormat.JSONL: ("\x02", "\x01")}


def _fields(export_format: ExportFormat) -> str:
    """The select list of a page, in the order of `schemas.Result`."""
    known = _JOINED | (_IN_CSV if export_format is ExportFormat.CSV else {})
    return ", ".join(f"{known.get(name, f'r.{name}')} AS {name}" for name in COLUMNS)


_FIELDS = {export_format: _fields(export_format) for export_format in ExportFormat}


async def settled_seq(connection: Connection) -> int:
    """The number up to which all rows are committed and will stay as they are; what to give as the next `since`."""
    last: int = await connection.fetchval(LAST_NUMBER)
    oldest: int | None = await connection.fetchval(OLDEST_WRITER)
    return last if oldest is None else min(last, oldest)


@dataclass(frozen=True)
class Selection:
    """Which rows, how written.

    COPY takes no parameters, so these become part of a statement: numbers, and words of an enum, never a text that
    came with a request. A directory is looked up first, and stands here as the id of its job.
    """

    project_id: int
    export_format: ExportFormat
    statuses: tuple[ResultStatus, ...] | None = None
    job_id: int | None = None
    through_job: bool = False

    @property
    def scope(self) -> str:
        """The condition whose index is walked."""
        if self.through_job and self.job_id is not None:
            return f"r.job_id = {int(self.job_id)}"
        return f"r.project_id = {int(self.project_id)}"

    def page(self, since: int, until: int) -> str:
        """The statement that reads the rows above `since` up to `until`."""
        filters = ""
        if self.statuses is not None:
            filters += " AND r.status IN ({})".format(", ".join(f"'{ResultStatus(s).value}'" for s in self.statuses))
        if self.job_id is not None and not self.through_job:
            # The sum keeps the planner from the index of the job, which is not in the order of `seq`.
            filters += f" AND r.job_id + 0 = {int(self.job_id)}"
        page = PAGE.format(
            fields=_FIELDS[self.export_format].format(project_id=int(self.project_id)),
            scope=self.scope,
            since=int(since),
            until=int(until),
            filters=filters,
        )
        return PAGE_OF_JSON.format(page=page) if self.export_format is ExportFormat.JSONL else page


class Exports:
    """The exports of one process: how many may run, and how many of them may read at once.

    Few read at once, so that exports leave the database and the pool to the workers.
    """

    def __init__(self) -> None:
        self._reading = asyncio.Semaphore(MAX_READING)
        self._running = 0

    async def open(
        self,
        database: Database,
        project_id: int,
        export_format: ExportFormat,
        *,
        since: int,
        statuses: Sequence[ResultStatus] | None,
        directory: str | None,
    ) -> "Export":
        """Begin an export, which must be closed.

        Raises:
            TooManyRequests: as many as may are running.
            DatabaseUnavailable: the database is away.
        """
        if self._running >= MAX_EXPORTS:
            raise TooManyRequests(f"{MAX_EXPORTS} exports are running; try again in a moment", RETRY_SECONDS)
        self._running += 1
        try:
            async with database.connection() as connection:
                selection = await _select(connection, project_id, export_format, statuses, directory)
                until = await settled_seq(connection)
        except BaseException:
            self._running -= 1
            raise
        return Export(self, database, selection, since, until)

    async def read(self, database: Database, selection: Selection, since: int, until: int, rows: int) -> "Page":
        """Read a page that begins after `since`, when it is this export's turn.

        Args:
            database: where from.
            selection: what.
            since: the page begins after this number.
            until: no page goes beyond this number.
            rows: how many rows to look at.
        """
        async with self._reading, database.connection() as connection:
            while True:
                found = await connection.fetchrow(PAGE_END.format(scope=selection.scope), since, until, rows)
                if found is None or found["rows"] == 0:
                    return Page(bytearray(), 0, until)
                end = until if found["rows"] < rows else found["last"]
                page = Page(bytearray(), found["rows"], end)
                size = await page.copy(connection, selection, since)
                if size == len(page.text):
                    return page
                # Never fewer than one; fewer than before in any case.
                rows = max(1, min(page.rows - 1, page.rows * PAGE_BYTES // size))

    def ended(self) -> None:
        """An export was closed."""
        self._running -= 1


async def _select(
    connection: Connection,
    project_id: int,
    export_format: ExportFormat,
    statuses: Sequence[ResultStatus] | None,
    directory: str | None,
) -> Selection:
    wanted = None if statuses is None else tuple(statuses)
    if directory is None:
        return Selection(project_id, export_format, wanted)
    # No job has the id 0.
    job_id: int = await connection.fetchval(FIND_JOB, project_id, directory) or 0
    rows: int = await connection.fetchval(COUNT_ROWS_OF_JOB, job_id, MAX_JOB_ROWS + 1)
    return Selection(project_id, export_format, wanted, job_id, through_job=rows <= MAX_JOB_ROWS)


@dataclass
class Page:
    """The text of some rows.

    Args:
        text: as it is sent.
        rows: how many were looked at, which with a filter is more than are in `text`.
        end: all rows up to this number have been looked at.
    """

    text: bytearray
    rows: int
    end: int

    async def copy(self, connection: Connection, selection: Selection, since: int) -> int:
        """Take in the rows from after `since`; returns their size, of which more than fits is not kept."""
        size = 0
        limit = MAX_PAGE_BYTES if self.rows > 1 else None

        async def take(data: bytes) -> None:
            nonlocal size
            size += len(data)
            if limit is None or size <= limit:
                self.text += data

        delimiter, quote = _DELIMITER_AND_QUOTE[selection.export_format]
        await connection.copy_from_query(
            selection.page(since, self.end), output=take, format="csv", delimiter=delimiter, quote=quote
        )
        return size

    def blocks(self) -> list[memoryview]:
        """The text in pieces of a size that is good to send."""
        whole = memoryview(self.text)
        return [whole[start : start + BLOCK_BYTES] for start in range(0, len(whole), BLOCK_BYTES)]


class Export:
    """One export: the rows above `since` up to `until`, in the order of their numbers."""

    def __init__(self, exports: Exports, database: Database, selection: Selection, since: int, until: int) -> None:
        self.until = max(since, until)
        self._exports = exports
        self._database = database
        self._selection = selection
        self._since = since
        self._blocks = self._stream()
        self._closed = False

    def __aiter__(self) -> AsyncGenerator[memoryview, None]:
        return self._blocks

    async def close(self) -> None:
        """End it, also in the middle: nothing more is read."""
        if not self._closed:
            self._closed = True
            self._exports.ended()
            await self._blocks.aclose()

    async def _stream(self) -> AsyncGenerator[memoryview, None]:
        if self._selection.export_format is ExportFormat.CSV:
            yield memoryview(",".join(COLUMNS).encode() + b"\n")
        rows = FIRST_PAGE_ROWS
        ahead: asyncio.Task[Page] | None = self._read(self._since, rows)
        try:
            while ahead is not None:
                page = await ahead
                rows = _rows_of_next(page)
                # The next page is read while this one is being sent; never more than one.
                ahead = self._read(page.end, rows) if page.end < self.until else None
                for block in page.blocks():
                    yield block
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    def _read(self, since: int, rows: int) -> asyncio.Task[Page]:
        return asyncio.create_task(self._exports.read(self._database, self._selection, since, self.until, rows))


def _rows_of_next(page: Page) -> int:
    """How many rows to look at next: as many as filled a page this time, but never a leap."""
    fitting = page.rows * PAGE_BYTES // max(len(page.text), 1)
    return max(1, min(fitting, 2 * page.rows, MAX_PAGE_ROWS))
