"""A project's counters: 32 slot rows whose sums they are, so that writers do not wait for one row.

A transaction collects its changes in a `Tally` and settles it once, after all its jobs are locked: every transaction
takes jobs first, in the order of their ids, and then one slot of each project.
"""

import random
from collections import Counter

from job_api.db import Connection
from job_api.models import COUNTER_SLOTS
from job_api.schemas import JobState

COLUMNS = (*(state.value for state in JobState), "images_stored", "images_recognised", "images_listed")

# Add a transaction's changes to one slot of a project.
SETTLE = (
    "UPDATE project_slots SET "  # noqa: S608 - column names are constants
    + ", ".join(f"{column} = {column} + ${number}" for number, column in enumerate(COLUMNS, start=3))
    + " WHERE project_id = $1 AND slot = $2"
)

# Make the slots of a new project.
OPEN_SLOTS = "INSERT INTO project_slots (project_id, slot) SELECT $1, generate_series(0, $2 - 1)"

# The sums of a project's slots.
SUMS = (
    "SELECT "  # noqa: S608 - column names are constants
    + ", ".join(f"coalesce(sum({column}), 0)::bigint AS {column}" for column in COLUMNS)
    + " FROM project_slots WHERE project_id = $1"
)

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

    async def settle(self, connection: Connection, project_id: int) -> None:
        """Write the changes; the last thing a transaction locks."""
        if any(self.values()):
            slot = random.randrange(COUNTER_SLOTS)  # noqa: S311 - spreads writers, no secret
            await connection.execute(SETTLE, project_id, slot, *(self[column] for column in COLUMNS))
