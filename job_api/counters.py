"""A project's counters: the sums of its slot rows, several, so that writers do not wait for one row.

A transaction collects its changes in a `Tally` and settles it once, after all its jobs are locked: every transaction
takes jobs first, in the order of their ids, and then one slot of each project.

The slots move on. Each change of a row leaves a dead one behind, which stays as long as any old snapshot in the
database and is walked over by the next change. So each few seconds have slots of their own, which begin empty; those
of the past are folded into the first slot by the sweep.
"""

import random
from collections import Counter

from job_api.db import Connection
from job_api.models import COUNTER_SLOTS
from job_api.notices import announce
from job_api.schemas import JobState

COLUMNS = (*(state.value for state in JobState), "images_stored", "images_recognised", "images_listed")
# How often a row took the place of an older one is written nowhere else, so that it cannot be counted again.
_SLOT_COLUMNS = (*COLUMNS, "images_replaced")

# For so long slots are used, and so many sets of them are told apart: their numbers fit a smallint.
PERIOD_SECONDS = 5
PERIODS = 1000

# Which set of slots a transaction uses: by its own clock, so that it is one set also for two statements.
_PERIOD = f"(floor(extract(epoch FROM now()) / {PERIOD_SECONDS})::bigint % {PERIODS})"


def settling(source: str, slot: str, **changes: str) -> str:
    """The statement, or part of one, that adds to the counters of projects.

    Args:
        source: SQL of the rows it goes by, named `n`, each with a `project_id`.
        slot: SQL of a number below `COUNTER_SLOTS`.
        changes: SQL of what is added to each column.
    """
    added = ", ".join(f"{column} = s.{column} + EXCLUDED.{column}" for column in changes)
    return f"""
    INSERT INTO project_slots AS s (project_id, slot, {", ".join(changes)})
    SELECT n.project_id, ({COUNTER_SLOTS} * (1 + {_PERIOD}) + {slot})::smallint, {", ".join(changes.values())}
    FROM {source} ON CONFLICT (project_id, slot) DO UPDATE SET {added}
    """  # noqa: S608 - built from constants


# Add a transaction's changes to one slot of a project.
SETTLE = settling(
    "(SELECT $1::bigint AS project_id) AS n",
    "$2::bigint",
    **{column: f"${number}::bigint" for number, column in enumerate(_SLOT_COLUMNS, start=3)},
)

# One process at a time folds. Two keys: those of one key belong to the writers of results.
FOLD_ALONE = "SELECT pg_try_advisory_xact_lock(1784769378, 2)"

# Add the slots of the past to the first one of their project. The last period counts as present: a transaction that
# began in it may still be at work; one that is older still makes its slot anew.
FOLD = (
    f"""
WITH past AS (
    SELECT project_id, slot FROM project_slots
    WHERE slot >= {COUNTER_SLOTS}
      AND slot / {COUNTER_SLOTS} - 1 NOT IN ({_PERIOD}, ({_PERIOD} + {PERIODS - 1}) % {PERIODS})
    LIMIT 10000 FOR UPDATE SKIP LOCKED),
gone AS (
    DELETE FROM project_slots s USING past WHERE s.project_id = past.project_id AND s.slot = past.slot RETURNING s.*),
sums AS (
    SELECT project_id, """  # noqa: S608
    + ", ".join(f"sum({column})::bigint AS {column}" for column in _SLOT_COLUMNS)
    + """ FROM gone GROUP BY project_id)
UPDATE project_slots s SET """
    + ", ".join(f"{column} = s.{column} + sums.{column}" for column in _SLOT_COLUMNS)
    + " FROM sums WHERE s.project_id = sums.project_id AND s.slot = 0"
)

# Make the slots of a new project.
OPEN_SLOTS = "INSERT INTO project_slots (project_id, slot) SELECT $1, generate_series(0, $2 - 1)"

# The sums of a project's slots.
SUMS = (
    "SELECT "  # noqa: S608 - column names are constants
    + ", ".join(f"coalesce(sum({column}), 0)::bigint AS {column}" for column in COLUMNS)
    + " FROM project_slots WHERE project_id = $1"
)

# Rows that took the place of older ones, in all of a project's time.
REPLACED = "SELECT coalesce(sum(images_replaced), 0)::bigint FROM project_slots WHERE project_id = $1"

# What the counters must equal, counted the slow way.
RECOUNT = """
SELECT count(*) FILTER (WHERE state = 'queued') AS queued,
       count(*) FILTER (WHERE state = 'waiting') AS waiting,
       count(*) FILTER (WHERE state = 'claimed') AS claimed,
       count(*) FILTER (WHERE state = 'completed') AS completed,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
       (SELECT count(*) FROM results r WHERE r.project_id = $1) AS images_stored,
       (SELECT count(*) FROM results r WHERE r.project_id = $1 AND r.status = 'recognised') AS images_recognised,
       coalesce(sum(image_count) FILTER (WHERE state = 'completed'), 0)::bigint AS images_listed
FROM jobs WHERE project_id = $1
"""


class Tally(Counter[str]):
    """The changes one transaction makes to the counters of one project."""

    def move(self, old: str, new: str, jobs: int = 1) -> None:
        """Count `jobs` jobs out of one state and into another."""
        self[old] -= jobs
        self[new] += jobs

    async def settle(
        self, connection: Connection, project_id: int, slot: int | None = None, *, priority: int | None = None
    ) -> None:
        """Write the changes to a slot, any one unless it is given; the last thing a transaction locks.

        Jobs that were queued by it are made known to all API processes when the transaction commits, with the highest
        `priority` among them where that is known.
        """
        if any(self.values()):
            slot = any_slot() if slot is None else slot
            await connection.execute(SETTLE, project_id, slot, *(self[column] for column in _SLOT_COLUMNS))
        if self[JobState.QUEUED] > 0:
            await announce(connection, project_id, self[JobState.QUEUED], priority)


def any_slot() -> int:
    """A slot for a transaction that moves jobs of any number."""
    return random.randrange(COUNTER_SLOTS)  # noqa: S311 - spreads writers, no secret


def slot_of(job_id: int) -> int:
    """The slot of what is written through a lease: always the same, so that a transaction never locks two."""
    return job_id % COUNTER_SLOTS


async def fold(connection: Connection) -> None:
    """Add the slots of the past to the first one of their project, in a transaction; not while another process does."""
    if await connection.fetchval(FOLD_ALONE):
        await connection.execute(FOLD)
