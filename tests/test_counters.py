"""Counters: slots that move on with the time, and are folded without anything being lost or counted twice."""

import threading
from contextlib import suppress

import asyncpg
import pytest

from job_api.counters import PERIODS, fold
from job_api.db import Database
from job_api.models import COUNTER_SLOTS
from job_api.schemas import ProjectSettings
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, run

PROJECT = "patents"
SLOTS = "SELECT slot FROM project_slots ORDER BY slot"
# Another period than any that a test may live to see, 500 of 1,000 away.
LONG_AGO = f"""
UPDATE project_slots SET slot = {COUNTER_SLOTS} + (slot - {COUNTER_SLOTS} + {COUNTER_SLOTS * PERIODS // 2})
    % {COUNTER_SLOTS * PERIODS} WHERE slot >= {COUNTER_SLOTS}
"""  # noqa: S608 - built from constants


def fold_in(service: RunningService) -> None:
    """Fold as another process does."""

    async def once() -> None:
        database = Database(service.settings)
        await database.open()
        try:
            async with database.transaction() as connection:
                await fold(connection)
        finally:
            await database.close()

    run(once())


def work(service: RunningService, jobs: int) -> Holder:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    admin.add_jobs(PROJECT, [str(number) for number in range(jobs)])
    worker = Holder(service.client("worker"))
    for number, lease in enumerate(worker.claim(PROJECT, max_jobs=jobs)):
        if number % 3 == 0:
            worker.complete(lease, 2, "1.png", "2.png")
        elif number % 3 == 1:
            worker.fail(lease, retryable=False)
    return worker


@pytest.mark.service(sweep_seconds=3600)
def test_slots_of_the_past_are_folded_and_those_of_now_are_left(service: RunningService) -> None:
    work(service, 12)
    service.assert_counters_equal_recount()
    before = service.sql(SLOTS)
    assert max(row["slot"] for row in before) >= COUNTER_SLOTS, "the fixed slots are not written to"
    fold_in(service)
    service.sql(LONG_AGO)
    past = {row["slot"] for row in service.sql(SLOTS)}
    # What was of this period is past now, and this one has none.
    fold_in(service)
    assert [row["slot"] for row in service.sql(SLOTS)] == list(range(COUNTER_SLOTS)), past
    service.assert_counters_equal_recount()
    assert service.client("admin").project(PROJECT).jobs.completed == 4


@pytest.mark.service(sweep_seconds=3600)
def test_slots_of_now_are_not_folded(service: RunningService) -> None:
    work(service, 3)
    fold_in(service)
    assert max(row["slot"] for row in service.sql(SLOTS)) >= COUNTER_SLOTS
    service.assert_counters_equal_recount()


@pytest.mark.service(sweep_seconds=0.01)
def test_writers_and_folders_at_once_lose_nothing(service: RunningService) -> None:
    worker = work(service, 60)
    stop = threading.Event()

    def age() -> None:
        while not stop.is_set():
            # What was made to look old and is not folded yet stands in the way.
            with suppress(asyncpg.UniqueViolationError):
                service.sql(LONG_AGO)

    aging = threading.Thread(target=age)
    aging.start()
    try:
        admin = service.client("admin")
        for round_ in range(10):
            admin.add_jobs(PROJECT, [f"{round_}/{number}" for number in range(20)])
            for lease in worker.claim(PROJECT, max_jobs=20):
                worker.fail(lease, retryable=False) if lease.job_id % 2 else worker.complete(lease, 1, "1.png")
            service.assert_counters_equal_recount()
    finally:
        stop.set()
        aging.join()
    service.assert_counters_equal_recount()
