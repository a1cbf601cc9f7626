"""The streamed export of a project's results: PostgreSQL writes the text (COPY), this module passes it on in pages.

A page is read whole, in one short statement, and its connection is given back before a byte of it is sent: a slow
client holds a page or two in memory, never a connection or a snapshot. How far an export may read, and why, is in
docs/decisions/0003-export-order.md. The statements are in `export_sql.py`. Writes nothing.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from job_api.columns import REVIEW
from job_api.db import Connection, Database
from job_api.errors import NotFound, TooManyRequests
from job_api.export_sql import PAGE_END, Selection
from job_api.schemas import DEFAULT_COLUMNS, ExportFormat, ResultQuery

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
# Of the project, or of a row of any.
KNOWS_ENGINE = """
SELECT EXISTS (SELECT FROM projects WHERE id = $1 AND engine = $2)
    OR EXISTS (SELECT FROM provenances WHERE engine = $2)
"""
COUNT_ROWS_OF_JOB = "SELECT count(*) FROM (SELECT FROM results WHERE job_id = $1 LIMIT $2) few"

# Whether a person has said anything of a project's results. Engines are known by the processes that ran them, of all
# projects together: where there is one engine, as there mostly is, no row has another to agree with.
ANY_REVIEW = "SELECT EXISTS (SELECT FROM reviews WHERE project_id = $1)"
SEVERAL_ENGINES = "SELECT EXISTS (SELECT FROM provenances WHERE engine <> (SELECT engine FROM provenances LIMIT 1))"

# JSON holds neither of these characters, nor does a line of an SMI, so that COPY finds nothing in it to quote.
_NOTHING_TO_QUOTE = ("\x02", "\x01")
_DELIMITER_AND_QUOTE = {
    ExportFormat.CSV: (",", '"'),
    ExportFormat.JSONL: _NOTHING_TO_QUOTE,
    ExportFormat.SMI: _NOTHING_TO_QUOTE,
}


async def settled_seq(connection: Connection) -> int:
    """The number up to which all rows are committed and will stay as they are; what to give as the next `since`."""
    last: int = await connection.fetchval(LAST_NUMBER)
    oldest: int | None = await connection.fetchval(OLDEST_WRITER)
    return last if oldest is None else min(last, oldest)


class Exports:
    """The exports of one process: how many may run, and how many of them may read at once.

    Few read at once, so that exports leave the database and the pool to the workers.
    """

    def __init__(self) -> None:
        self._reading = asyncio.Semaphore(MAX_READING)
        self._running = 0

    async def open(self, database: Database, project_id: int, query: ResultQuery) -> "Export":
        """Begin an export, which must be closed.

        Raises:
            NotFound: the project has no such directory, or no project has had that engine.
            TooManyRequests: as many as may are running.
            DatabaseUnavailable: the database is away.
        """
        if self._running >= MAX_EXPORTS:
            raise TooManyRequests(f"{MAX_EXPORTS} exports are running; try again in a moment", RETRY_SECONDS)
        self._running += 1
        try:
            async with database.connection() as connection:
                # First: whether there are reviews and engines is then known of all rows that are promised.
                until = await settled_seq(connection)
                selection = await _select(connection, project_id, query)
        except BaseException:
            self._running -= 1
            raise
        return Export(self, database, selection, query.since or 0, until)

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


async def _select(connection: Connection, project_id: int, query: ResultQuery) -> Selection:
    names = tuple(query.columns or DEFAULT_COLUMNS)
    of_reviews = (
        query.format is ExportFormat.SMI or query.review_status is not None or not set(REVIEW).isdisjoint(names)
    )
    of_others = "agreement" in names or query.agreement is not None
    job_id, through_job = None, False
    if query.directory is not None:
        job_id = await connection.fetchval(FIND_JOB, project_id, query.directory)
        if job_id is None:
            raise NotFound(f"the project has no directory {query.directory!r}; text (--text) finds a part of a name")
        through_job = await connection.fetchval(COUNT_ROWS_OF_JOB, job_id, MAX_JOB_ROWS + 1) <= MAX_JOB_ROWS
    if query.engine is not None and not await connection.fetchval(KNOWS_ENGINE, project_id, query.engine):
        raise NotFound(f"neither this project nor any row is of an engine {query.engine!r}")
    return Selection(
        project_id,
        query.format,
        names,
        query,
        job_id,
        through_job,
        reviewed=bool(of_reviews) and await connection.fetchval(ANY_REVIEW, project_id),
        several_engines=of_others and await connection.fetchval(SEVERAL_ENGINES),
    )


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
        try:
            await connection.copy_from_query(
                selection.page(since, self.end), output=take, format="csv", delimiter=delimiter, quote=quote
            )
        except BaseException:
            # asyncpg 0.32 leaves a connection whose COPY is cancelled in a state in which the next statement fails.
            connection.terminate()
            raise
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

    async def count(self, most: int) -> int:
        """How many rows there are before the filters, as far as `most`."""
        async with self._database.connection() as connection:
            found = await connection.fetchrow(
                PAGE_END.format(scope=self._selection.scope), self._since, self.until, most
            )
        return 0 if found is None else int(found["rows"])

    async def close(self) -> None:
        """End it, also in the middle: nothing more is read."""
        if not self._closed:
            self._closed = True
            self._exports.ended()
            await self._blocks.aclose()

    async def _stream(self) -> AsyncGenerator[memoryview, None]:
        if self._selection.export_format is ExportFormat.CSV:
            yield memoryview(",".join(self._selection.names).encode() + b"\n")
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
