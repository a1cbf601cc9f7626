"""`job-api serve --processes N`: several real processes on one port, and what becomes of them."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from job_api.auth import Authenticator
from job_api.db import Database
from job_api.main import PASSWORD_FILE, make_first_admin
from job_api.schemas import ProjectSettings
from job_api.settings import Settings
from tests.plugins.service import ServiceStarter, run
from tests.serving import Serving, is_gone, postgres_processes, refusal, wait_for

PROCESSES = 3
RESTARTED = "killed (exit -9), possible out of memory; it is started again in"


def api_processes(serving: Serving) -> list[psutil.Process]:
    """The children of a service that serve."""
    began = {int(pid) for pid in re.findall(r"API process \d+ \(pid (\d+)\) serves", serving.log)}
    return [child for child in psutil.Process(serving.process.pid).children() if child.pid in began]


def all_serve(serving: Serving) -> bool:
    return len(api_processes(serving)) == PROCESSES


def requests_counted(serving: Serving, path: str) -> int:
    """What /metrics says, asked over a connection of its own: of whichever process takes it."""
    found = re.findall(rf'job_api_request_seconds_count{{.*route="{path}".*}} (\S+)', serving.get("/metrics").text)
    return round(sum(map(float, found)))


def test_several_processes_share_a_port_and_the_killed_one_comes_back(data_dir: Path) -> None:
    with Serving(data_dir, processes=PROCESSES) as serving:
        wait_for(lambda: all_serve(serving))
        assert serving.log.count("serving http://") == 1
        assert f"with {PROCESSES} processes" in serving.log
        assert serving.log.count("made the user") == 1
        client = serving.client()
        client.put_project("patents", ProjectSettings(source="file:///data"))
        for _ in range(40):
            assert serving.get("/healthz").status_code == 200
        # A process counts what it has answered a moment later.
        wait_for(lambda: requests_counted(serving, "/healthz") == 40)
        # Whichever process is asked, it tells of the requests to all of them.
        assert {requests_counted(serving, "/healthz") for _ in range(20)} == {40}
        killed = api_processes(serving)[0]
        killed.kill()
        wait_for(lambda: RESTARTED in serving.log)
        for number in range(20):
            client.add_jobs("patents", [f"directory {number}"])
        wait_for(lambda: all_serve(serving))
        assert killed.pid not in {child.pid for child in api_processes(serving)}
        assert requests_counted(serving, "/healthz") == 40, "what the dead one counted stays counted"
        assert client.project("patents").jobs.queued == 20
        assert "Traceback" not in serving.log
    assert postgres_processes(data_dir) == []


def test_the_embedded_database_belongs_to_the_parent(data_dir: Path) -> None:
    with Serving(data_dir, processes=PROCESSES) as serving:
        wait_for(lambda: all_serve(serving))
        client = serving.client(retry_seconds=60)
        client.put_project("patents", ProjectSettings(source="file:///data"))
        killed = serving.postmaster
        killed.kill()
        wait_for(lambda: is_gone(killed))
        client.add_jobs("patents", ["a"])
        assert serving.postmaster.pid != killed.pid
        assert serving.log.count("the embedded database is gone; starting it again") == 1
        # The processes have not ended of it.
        assert all_serve(serving)
        assert "is started again" not in serving.log
        children = api_processes(serving)
        serving.stop()
        assert all(is_gone(child) for child in children)
        assert "Traceback" not in serving.log
    assert postgres_processes(data_dir) == []


def test_nobody_serves_on_when_the_parent_was_killed(data_dir: Path) -> None:
    first = Serving(data_dir, processes=PROCESSES)
    wait_for(lambda: all_serve(first))
    children = api_processes(first)
    first.kill()
    wait_for(lambda: all(is_gone(child) for child in children))
    with Serving(data_dir, processes=2, port=httpx.URL(first.root).port or 0) as again:
        assert again.get("/readyz").status_code == 200
    first.log_file.unlink()
    assert postgres_processes(data_dir) == []


def test_a_service_of_several_processes_that_cannot_start_says_why_in_one_line(
    data_dir: Path, make_database: Callable[[], str]
) -> None:
    assert "cannot be reached" in refusal(data_dir, processes=2, database_url="postgresql://a@127.0.0.1:1/b")
    # This only the children find out.
    (data_dir / "file").touch()
    url = make_database()
    assert "the first password cannot be written" in refusal(data_dir / "file", processes=2, database_url=url)
    assert "JOB_API_PROCESSES" in refusal(data_dir, processes=0)


def test_of_processes_that_start_together_one_makes_the_first_administrator(
    make_database: Callable[[], str], tmp_path: Path, start_service: ServiceStarter
) -> None:
    url = make_database()
    folders = [tmp_path / str(number) for number in range(4)]

    async def start(folder: Path) -> None:
        database = Database(Settings(data_dir=folder, database_url=url))
        await database.open()
        try:
            await make_first_admin(database, Authenticator(database, 60), folder)
        finally:
            await database.close()

    async def start_all() -> None:
        await asyncio.gather(*(start(folder) for folder in folders))

    run(start_all())
    [made] = [folder / PASSWORD_FILE for folder in folders if (folder / PASSWORD_FILE).exists()]
    service = start_service(database_url=url)
    login = ("admin", made.read_text().strip())
    assert httpx.get(f"{service.root}/v4/users", auth=login, timeout=20).status_code == 200


def test_pools_that_do_not_fit_the_server_are_said(data_dir: Path, make_database: Callable[[], str]) -> None:
    url = make_database()
    with Serving(data_dir, processes=2, pool_size=500, database_url=url) as serving:
        assert serving.log.count("2 processes with JOB_API_POOL_SIZE=500 need up to 1002 database connections") == 1
    with Serving(data_dir, processes=2, pool_size=2, database_url=url) as serving:
        assert "database connections" not in serving.log
