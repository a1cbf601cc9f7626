"""The primary dies and a standby takes over: real servers, streaming replication, and a lease that goes on."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import httpx
import pytest

from job_api import migrations
from job_api.schemas import Lease, LeaseStatus, ProjectSettings
from job_api.servers import each_host
from job_api.settings import Settings
from tests.clusters import Cluster, primary_and_standby, url_of
from tests.openapi import kind_of
from tests.plugins.holder import Holder
from tests.plugins.service import RunningService, ServiceStarter, ServiceThread, run
from tests.serving import refusal, wait_for

PROJECT = "patents"
LEASE_SECONDS = 4.0


def sql(url: str, *statements: str) -> list[dict[str, Any]]:
    """Run statements; returns the rows of the last."""

    async def fetch() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return [dict(row) for row in await connection.fetch(statements[-1])]
        finally:
            await connection.close()

    return run(fetch())


@pytest.fixture
def pair() -> Iterator[tuple[Cluster, Cluster]]:
    """A primary whose commits wait for its standby, so that what was answered is on both."""
    with primary_and_standby() as (primary, standby):
        sql(primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        wait_for(lambda: sql(primary.url, "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"))
        migrations.upgrade(primary.url)
        yield primary, standby


@pytest.fixture
def service(pair: tuple[Cluster, Cluster], start_service: ServiceStarter) -> RunningService:
    return start_service(
        database_url=url_of(*pair), lease_seconds=LEASE_SECONDS, heartbeat_seconds=1, sweep_seconds=0.1, pool_size=4
    )


def claim_one(service: RunningService) -> tuple[Holder, Lease]:
    service.client("admin").put_project(PROJECT, ProjectSettings(source="file:///data"))
    service.client("admin").add_jobs(PROJECT, ["a"])
    worker = Holder(service.client("worker", PROJECT, retry_seconds=60))
    lease = worker.one(PROJECT)
    worker.post(lease, "1.png")
    return worker, lease


def job_states(server: Cluster) -> list[str]:
    return [row["state"] for row in sql(server.url, "SELECT state FROM jobs")]


def assert_the_lease_went_on(service: RunningService, worker: Holder, lease: Lease, server: Cluster) -> None:
    worker.post(lease, "2.png")
    assert worker.status_of(lease) is LeaseStatus.HELD
    worker.complete(lease, 3, "3.png")
    assert len(service.client("admin").job(PROJECT, lease.job_id).attempts) == 1
    assert sql(server.url, "SELECT outcome, charged FROM attempts") == [{"outcome": "completed", "charged": False}]
    assert [row["image"] for row in sql(server.url, "SELECT image FROM results ORDER BY 1")] == [
        "1.png",
        "2.png",
        "3.png",
    ]


def test_a_lease_outlives_the_death_of_the_primary(service: RunningService, pair: tuple[Cluster, Cluster]) -> None:
    primary, standby = pair
    worker, lease = claim_one(service)
    # The service has been in contact for a lease's length: it would end leases now.
    wait_for(lambda: sql(primary.url, f"SELECT 1 WHERE now() > timestamptz '{started_at(primary)}' + interval '5 s'"))
    worker.heartbeat(lease)
    primary.kill()
    killed_at = time.monotonic()
    refused = []

    def outlasts_the_lease() -> bool:
        refused.append(httpx.get(service.root + "/readyz", timeout=20))
        return time.monotonic() > killed_at + LEASE_SECONDS + 1

    wait_for(outlasts_the_lease)
    assert {kind_of(answer) for answer in refused} == {"database-unavailable"}, "the standby is not served from"
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    standby.promote()
    wait_for(lambda: httpx.get(service.root + "/readyz", timeout=20).status_code == 200)
    # The lease ran out meanwhile, and is not ended for that: the holder could not be heard.
    until = time.monotonic() + 2
    while time.monotonic() < until:
        assert job_states(standby) == ["claimed"]
        assert sql(standby.url, "SELECT count(*)::int AS n FROM attempts WHERE outcome IS NULL") == [{"n": 1}]
    assert_the_lease_went_on(service, worker, lease, standby)
    service_counters(service, standby)


def started_at(server: Cluster) -> Any:
    return sql(server.url, "SELECT min(first_seen_at)::text AS at FROM workers")[0]["at"]


def service_counters(service: RunningService, server: Cluster) -> None:
    service.database_url = server.url
    service.assert_counters_equal_recount()


def test_a_primary_that_is_gone_without_a_word_is_left(service: RunningService, pair: tuple[Cluster, Cluster]) -> None:
    primary, standby = pair
    worker, lease = claim_one(service)
    # As when a machine loses its power or its network: no connection is cut, none answers.
    primary.send(signal.SIGSTOP)
    answers: list[tuple[int, float]] = []

    def ask() -> None:
        began = time.monotonic()
        answer = httpx.get(f"{service.root}/v4/{PROJECT}", headers=login, timeout=120)
        answers.append((answer.status_code, time.monotonic() - began))

    login = {"Authorization": f"Bearer {service.token('admin')}"}
    # More than the pool has connections.
    askers = [threading.Thread(target=ask) for _ in range(6)]
    for asker in askers:
        asker.start()
    standby.promote()
    for asker in askers:
        asker.join()
    assert {status for status, _ in answers} <= {200, 503}
    assert [seconds for _, seconds in answers if seconds > 30] == [], "a statement's own limit is a minute"
    assert_the_lease_went_on(service, worker, lease, standby)
    # It wakes up and still takes writes, from whoever still asks it: not from this service.
    primary.send(signal.SIGCONT)
    service.client("admin", retry_seconds=60).add_jobs(PROJECT, ["b"])
    assert sorted(row["directory"] for row in sql(standby.url, "SELECT directory FROM jobs")) == ["a", "b"]
    assert [row["directory"] for row in sql(primary.url, "SELECT directory FROM jobs")] == ["a"]


def test_a_server_that_turns_read_only_is_left(service: RunningService, pair: tuple[Cluster, Cluster]) -> None:
    primary, standby = pair
    worker, lease = claim_one(service)
    standby.promote()
    # Connections that were made before do not hear of it: new ones do.
    sql(primary.url, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    assert_the_lease_went_on(service, worker, lease, standby)


def test_a_standby_alone_is_no_database_to_serve(pair: tuple[Cluster, Cluster], data_dir: Any) -> None:
    for verb in ("serve", "migrate"):
        line = refusal(data_dir, verb, database_url=pair[1].url)
        assert "no server of JOB_API_DATABASE_URL takes writes" in line


def test_a_first_host_that_never_answers_does_not_hide_the_second(
    make_database: Callable[[], str], tmp_path: Any
) -> None:
    with primary_and_standby() as (primary, _), socket.socket() as silent:
        migrations.upgrade(primary.url)
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        url = url_of(primary).replace(f"@{primary.host}", f"@{host},{primary.host}")
        thread = ServiceThread(Settings(data_dir=tmp_path, database_url=url, pool_size=2))
        thread.start()
        try:
            began = time.monotonic()
            assert httpx.get(f"http://127.0.0.1:{thread.port}/readyz", timeout=20).status_code == 200
            assert time.monotonic() - began < 4, "the host that answered is asked first"
        finally:
            thread.stop()


def test_the_hosts_of_a_url() -> None:
    assert each_host("postgresql://u:a%40b@one:1,[::1]:2,three/d?sslmode=require") == [
        "postgresql://u:a%40b@one:1/d?sslmode=require",
        "postgresql://u:a%40b@[::1]:2/d?sslmode=require",
        "postgresql://u:a%40b@three/d?sslmode=require",
    ]
