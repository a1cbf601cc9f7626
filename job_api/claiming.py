"""Handing out jobs: which project is served next, where its queue begins, and the claim itself.

What this process remembers of projects and queues are hints: they make claims fast and fair, and every claim is judged
by the database.
"""

import time
from dataclasses import dataclass

from asyncpg import Record, UniqueViolationError
from cachetools import TTLCache

from job_api import fleet, queue
from job_api import queue_sql as sql
from job_api.counters import any_slot
from job_api.db import Connection, Database
from job_api.errors import NotFound
from job_api.queue import Pace
from job_api.schemas import ClaimRequest, Heartbeat, Lease, WorkerState

HINT_SECONDS = 30.0
PROSPECTS_SECONDS = 1.0
# A claim is a worker's sign of life; one in so many seconds is written down.
TOUCH_SECONDS = 10.0


@dataclass
class Beginning:
    """Where a project's queue began a moment ago: before it lie entries of jobs that were claimed."""

    priority: int
    queue_pos: int
    forget_at: float


@dataclass
class Prospect:
    """A project that has queued jobs."""

    name: str
    priority: int
    claimed: int


class Claims:
    """The claims of one process.

    Args:
        database: where the queue is.
        pace: how long leases last.
    """

    def __init__(self, database: Database, pace: Pace) -> None:
        self._database = database
        self._pace = pace
        self._beginnings: dict[str, Beginning] = {}
        self._prospects: list[Prospect] = []
        self._prospects_until = 0.0
        self._served: dict[str, int] = {}
        self._turn = 0
        self._touched: TTLCache[tuple[str, str], bool] = TTLCache(maxsize=100_000, ttl=TOUCH_SECONDS)

    def forget(self, project: str, priority: int | None = None) -> None:
        """Look at a project anew: a job, of a given priority where that is known, was queued in it.

        One of the priority that is being served, or a lower one, has its place behind the known beginning.
        """
        begins = self._beginnings.get(project)
        if begins is not None and (priority is None or priority > begins.priority):
            del self._beginnings[project]
        self._prospects_until = 0.0

    async def claim(self, owner: str, project: str | None, wanted: ClaimRequest) -> list[Lease]:
        """Hand out jobs of one project, or of the best one; a claim that is sent again gets the same leases.

        Returns:
            Leases, all of one project; none when nothing is queued that the worker may have.

        Raises:
            NotFound: there is no such project.
            WorkerIdTaken: the worker's id belongs to somebody else.
            WorkerGone: the worker has said goodbye.
            WorkerStopped: the worker was told to stop.
        """
        if (wanted.worker_id, owner) not in self._touched:
            async with self._database.connection() as connection:
                await self._touch(connection, owner, wanted)
        if project is not None:
            return await self._claim_of(owner, project, wanted) or await self._sent_before(wanted)
        # Those that others have emptied are passed over; if all are, the next look tells whether there are more.
        for fresh in (False, True):
            for prospect in await self._best(fresh=fresh):
                leases = await self._claim_of(owner, prospect.name, wanted, may_be_gone=True)
                if leases:
                    self._serve(leases)
                    return leases
        return await self._sent_before(wanted)

    async def _sent_before(self, wanted: ClaimRequest) -> list[Lease]:
        """The leases of a claim that finds nothing now, because it was sent before and got the last jobs there were.

        Raises:
            WorkerGone, WorkerStopped: as `claim`.
        """
        async with self._database.connection() as connection:
            # Waits until the other one is done, if it still runs: it shares a lock on the worker.
            state = await connection.fetchval(fleet.LOCK, wanted.worker_id)
            if state is not None:
                fleet.require_running(wanted.worker_id, WorkerState(state))
            return await queue.leases_of_claim(connection, wanted, self._pace)

    async def open_projects(self) -> list[str]:
        """The names of the projects that have queued jobs."""
        return [prospect.name for prospect in await self._best(fresh=True)]

    async def _best(self, *, fresh: bool) -> list[Prospect]:
        """Projects with queued jobs, best first: by priority, then fewest live leases, then served longest ago."""
        now = time.monotonic()
        if fresh or now >= self._prospects_until:
            async with self._database.connection() as connection:
                rows = await connection.fetch(sql.OPEN_PROJECTS)
            self._prospects = [Prospect(**row) for row in rows]
            self._prospects_until = now + PROSPECTS_SECONDS
            names = {prospect.name for prospect in self._prospects}
            self._served = {name: turn for name, turn in self._served.items() if name in names}
        return sorted(self._prospects, key=lambda p: (-p.priority, p.claimed, self._served.get(p.name, 0)))

    def _serve(self, leases: list[Lease]) -> None:
        name = leases[0].project
        self._turn += 1
        self._served[name] = self._turn
        for prospect in self._prospects:
            if prospect.name == name:
                prospect.claimed += len(leases)

    async def _touch(self, connection: Connection, owner: str, wanted: ClaimRequest) -> None:
        seen = Heartbeat(hostname=wanted.hostname, version=wanted.version)
        state = await fleet.touch(connection, wanted.worker_id, owner, seen)
        fleet.require_running(wanted.worker_id, state)
        self._touched[wanted.worker_id, owner] = True

    async def _claim_of(
        self, owner: str, project: str, wanted: ClaimRequest, *, may_be_gone: bool = False
    ) -> list[Lease]:
        try:
            async with self._database.connection() as connection:
                rows = await self._take(connection, owner, project, wanted)
            settled = rows[0]["welcome"] and not rows[0]["repeated"]
        except UniqueViolationError:
            # The same claim, sent twice at once; the other one has won.
            settled = False
        if not settled:
            # Locked, the worker's claims follow one another: whatever stood against this one is there to be seen.
            async with self._database.transaction() as connection:
                await self._touch(connection, owner, wanted)
                if leases := await queue.leases_of_claim(connection, wanted, self._pace):
                    return leases
                rows = await self._take(connection, owner, project, wanted)
        if not rows[0]["known"] and not may_be_gone:
            raise NotFound(f"there is no project {project!r}")
        return self._leases(rows)

    async def _take(self, connection: Connection, owner: str, project: str, wanted: ClaimRequest) -> list[Record]:
        arguments = (
            project,
            wanted.worker_id,
            owner,
            wanted.claim_key,
            wanted.max_jobs,
            self._pace.lease,
            any_slot(),
        )
        begins = self._beginnings.get(project)
        if begins is not None and time.monotonic() < begins.forget_at:
            rows = await connection.fetch(sql.CLAIM_BEYOND, *arguments, begins.priority, begins.queue_pos)
            if rows[0]["job_id"] is not None or not rows[0]["welcome"] or rows[0]["repeated"]:
                self._learn(project, rows[-1], begins)
                return rows
        self._beginnings.pop(project, None)
        rows = await connection.fetch(sql.CLAIM, *arguments)
        self._learn(project, rows[-1], None)
        return rows

    def _learn(self, project: str, last: Record, begins: Beginning | None) -> None:
        if last["job_id"] is None:
            return
        if begins is None:
            begins = Beginning(last["priority"], last["queue_pos"], time.monotonic() + HINT_SECONDS)
            self._beginnings[project] = begins
        # Claims that run side by side end in any order.
        begins.queue_pos = max(begins.queue_pos, last["queue_pos"])

    def _leases(self, rows: list[Record]) -> list[Lease]:
        if rows[0]["job_id"] is None:
            return []
        return [Lease(lease_seconds=self._pace.lease_seconds, **row) for row in rows]
