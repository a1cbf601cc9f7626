"""`job-api serve` on real processes: what outlives what, and that faults of the database are said and pass."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from job_api.client import Client
from job_api.embedded import EmbeddedPostgres
from job_api.migrations import upgrade
from job_api.schemas import NewToken, ProjectSettings, Role
from tests.openapi import kind_of, problem_of
from tests.plugins.service import ServiceStarter
from tests.serving import Serving, postgres_processes, refusal, small_disk, wait_for

PROJECT = "patents"


@pytest.fixture
def serve(data_dir: Path) -> Iterator[Callable[[], Serving]]:
    """Starts a service on the test's data directory, as often as the test likes; nothing is left at the end."""
    started: list[Serving] = []

    def start() -> Serving:
        started.append(Serving(data_dir))
        return started[-1]

    yield start
    for serving in started:
        if serving.process.poll() is None:
            serving.stop()
        serving.log_file.unlink()
    for pid in postgres_processes(data_dir):
        with suppress(psutil.Error):
            psutil.Process(pid).kill()


def add_jobs(client: Client, *directories: str) -> None:
    client.put_project(PROJECT, ProjectSettings(source="file:///data"))
    client.add_jobs(PROJECT, list(directories))


def directories(client: Client) -> list[str]:
    return [job.directory for job in client.jobs(PROJECT)]


def test_a_service_keeps_its_jobs_over_stop_and_kill_and_only_one_serves_a_directory(
    serve: Callable[[], Serving], data_dir: Path
) -> None:
    first = serve()
    assert str(data_dir / "admin-password") in first.log
    assert first.password not in first.log
    assert first.password not in str(psutil.Process(first.process.pid).cmdline())
    with first.client() as client:
        add_jobs(client, "a")

    said = refusal(data_dir)
    assert f"process {first.process.pid}" in said
    assert "stop it first, or set JOB_API_DATA_DIR" in said
    assert first.get("/readyz").status_code == 200, "the first is not disturbed"

    first.stop()
    assert "Finished server process" in first.log
    assert "Traceback" not in first.log
    assert postgres_processes(data_dir) == []

    second = serve()
    assert "admin-password" not in second.log, "the administrator is made once"
    postmaster = second.postmaster.pid
    with second.client() as client:
        add_jobs(client, "a", "b")
    second.kill()
    assert psutil.pid_exists(postmaster)

    third = serve()
    assert third.postmaster.pid == postmaster, "the server that was left running is found again"
    with third.client() as client:
        assert directories(client) == ["a", "b"]
    third.stop()
    assert postgres_processes(data_dir) == []


def test_a_killed_database_comes_back_by_itself(serve: Callable[[], Serving]) -> None:
    serving = serve()
    with serving.client(retry_seconds=60) as client:
        add_jobs(client, "a")
        killed = serving.postmaster.pid
        os.kill(killed, signal.SIGKILL)
        away: list[httpx.Response] = []

        def is_away() -> bool:
            away.append(serving.get("/readyz"))
            return away[-1].status_code == 503

        wait_for(is_away)
        assert kind_of(away[-1]) == "database-unavailable"
        assert int(away[-1].headers["Retry-After"]) >= 1
        assert serving.get("/healthz").status_code == 200
        wait_for(lambda: serving.get("/readyz").status_code == 200)
        client.add_jobs(PROJECT, ["b"])
        assert directories(client) == ["a", "b"]
    assert serving.postmaster.pid != killed
    assert "lost contact with the database" in serving.log
    wait_for(lambda: "the database answers again" in serving.log)
    assert "Traceback" not in serving.log


def test_an_external_database_may_go_away_and_return(data_dir: Path, start_service: ServiceStarter) -> None:
    external = EmbeddedPostgres(data_dir)
    external.start()
    try:
        upgrade(external.url)
        service = start_service(database_url=external.url)
        client = service.client("admin", retry_seconds=60)
        add_jobs(client, "a")
        login = {"Authorization": f"Bearer {service.token('admin')}"}
        external.stop()
        answer = httpx.get(f"{service.root}/v4/{PROJECT}", headers=login, timeout=20)
        assert kind_of(answer) == "database-unavailable"
        assert int(answer.headers["Retry-After"]) >= 1
        assert kind_of(httpx.get(f"{service.root}/readyz", timeout=20)) == "database-unavailable"
        assert "job_api_jobs{" not in httpx.get(f"{service.root}/metrics", timeout=20).text
        external.start()
        client.add_jobs(PROJECT, ["b"])
        assert directories(client) == ["a", "b"]
    finally:
        external.stop()
    assert postgres_processes(data_dir) == []


def test_a_port_in_use_is_said_before_anything_is_made(data_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refusal(data_dir, port=port)
    assert f"cannot listen on 127.0.0.1 port {port}" in said
    assert "--port" in said
    assert list(data_dir.iterdir()) == []


def fill(disk: Path) -> Path:
    """Leave no room on a file system."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(65_536)):
            pass
    return ballast


def test_a_full_disk_is_said_and_work_goes_on_when_there_is_room_again(data_dir: Path) -> None:
    try:
        with small_disk(data_dir, megabytes=400), Serving(data_dir) as serving:
            client = serving.client(retry_seconds=60)
            add_jobs(client, "a")
            token = client.new_token(NewToken(name="filler", role=Role.SUBMIT)).token
            filler = httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=60)
            ballast = fill(data_dir)
            many = {"directories": [f"{number} " + "x" * 900 for number in range(10_000)]}
            kinds = set()

            def is_full() -> bool:
                answer = filler.post(
                    f"{serving.root}/v4/{PROJECT}/jobs",
                    json=many,
                )
                kinds.add(kind_of(answer))
                assert int(answer.headers["Retry-After"]) >= 1
                assert problem_of(answer).status == 503
                return "no-disk-space" in kinds

            wait_for(is_full)
            filler.close()
            ballast.unlink()
            client.add_jobs(PROJECT, ["b"])
            assert directories(client) == ["a", "b"], "what was refused left nothing"
    except PermissionError:
        pytest.skip("NOT TESTED: a full disk; mounting a small file system is not permitted here")


def test_too_little_room_at_the_start_is_said(data_dir: Path) -> None:
    try:
        with small_disk(data_dir, megabytes=100):
            said = refusal(data_dir)
    except PermissionError:
        pytest.skip("NOT TESTED: too little room; mounting a small file system is not permitted here")
    assert "MB are free" in said
    assert "make room or set JOB_API_DATA_DIR" in said
