"""The service in containers: docker/service as a user runs it, on a real engine. The tests follow one another."""

import ipaddress
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from job_api import schemas
from job_api.client import Client
from job_api.sending import ApiError
from tests.containers.engine import Engine, install
from tests.containers.installation import CLONE, Installation, copy_clone
from tests.containers.namesakes import build_namesakes
from tests.plugins.holder import Holder
from tests.serving import LOAD_SECONDS, wait_for

# The first has the image built, for which Debian and PyPI are asked.
pytestmark = pytest.mark.timeout(600)

# Failed logins of one client, each of which says that it comes from elsewhere.
GUESSES = """
import base64, http.client, socket, ssl
trusting = ssl._create_unverified_context()
for number in range({tries}):
    connection = http.client.HTTPSConnection("localhost", timeout=20)
    connection.sock = trusting.wrap_socket(socket.create_connection(("proxy", 443)), server_hostname="localhost")
    login = base64.b64encode(b"nobody:guess").decode()
    headers = {{"Authorization": "Basic " + login, "X-Forwarded-For": f"192.0.2.{{number}}"}}
    connection.request("GET", "/v4", headers=headers)
    print(connection.getresponse().status)
"""
# What one container has answered.
ANSWERED = r"""
import re, urllib.request
text = urllib.request.urlopen("http://127.0.0.1:8800/metrics").read().decode()
counts = re.findall(r'^job_api_request_seconds_count{method="GET",route="/v4",status="200"} (.+)$', text, re.M)
print(sum(map(float, counts)))
"""


# A service that answers at once, but wrongly, and ends.
BROKEN = """#!/bin/sh
[ "$1" != migrate ] || exec /opt/venv/bin/python3 -m job_api migrate
timeout 1 /opt/venv/bin/python3 -m http.server 8800
exit 1
"""


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for listener in (one, other):
            listener.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture(scope="module")
def installation(docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    build_namesakes(docker_engine)
    clone = tmp_path_factory.mktemp("service") / "clone"
    copy_clone(clone)
    here = Installation(docker_engine, clone)
    revision = here.commit()
    try:
        # The image first, which takes minutes in which another test could take the ports.
        here.run("build")
        here.http_port, here.https_port = free_ports()
        # As compose reads them.
        here.set("HTTP_PORT", f"'127.0.0.1:{here.http_port}'  # ours")
        here.set("HTTPS_PORT", f'"127.0.0.1:{here.https_port}"\r')
        said = here.run("up", "localhost").stderr
        assert f"the service is at {here.url}, with 1 container(s) of the API" in said
        labels = json.loads(here.inspect("decimer-jobs-api", "{{json .Config.Labels}}"))
        assert (labels["org.opencontainers.image.revision"], labels["decimer-jobs.dirty"]) == (revision, "false")
        here.trust()
        yield here
    finally:
        here.run("compose", "down", "--volumes", check=False)


@pytest.fixture(scope="module")
def admin(installation: Installation) -> Iterator[Client]:
    with installation.client(username="admin", password=installation.password()) as client:
        yield client


@pytest.fixture(scope="module")
def token(admin: Client) -> str:
    return admin.new_token(schemas.NewToken(name="vm", role=schemas.Role.WORKER)).token


@pytest.fixture
def worker(installation: Installation, token: str) -> Iterator[Holder]:
    with installation.client(token=token) as client:
        yield Holder(client)


@contextmanager
def traffic(installation: Installation, token: str, threads: int = 3) -> Iterator[list[str]]:
    """Reads that are not tried again and claims as workers send them, all the time; the list says which of them failed.

    A claim that is on its way to a container that just ends is answered 502, which the client tries again.
    """
    done, failed = threading.Event(), list[str]()
    count = 0

    def ask(client: Client) -> None:
        nonlocal count
        with installation.http(token) as reader, client:
            holder = Holder(client)
            while not done.is_set():
                try:
                    answer = reader.get("/v4")
                    if not answer.is_success:
                        failed.append(f"{answer.status_code} {answer.text}")
                    holder.claim("empty", wait_seconds=0.2)
                except (httpx.HTTPError, ApiError) as error:
                    failed.append(repr(error))
                count += 1

    # Here: what a client trusts is said by the environment, which the commands that run meanwhile share.
    clients = [installation.client(token=token) for _ in range(threads)]
    asking = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in asking:
        thread.start()
    try:
        yield failed
        before = count
        wait_for(lambda: count > before + 10)
    finally:
        done.set()
        for thread in asking:
            thread.join()


def healthy(installation: Installation, container: str) -> bool:
    return installation.inspect(container, "{{.State.Health.Status}} {{.State.Running}}") == "healthy true"


def test_jobs_are_added_and_done_through_the_proxy(installation: Installation, admin: Client, worker: Holder) -> None:
    for project in ("patents", "empty"):
        admin.put_project(project, schemas.ProjectSettings(source="file:///data"))
    admin.add_jobs("patents", [f"Müller ({year})" for year in range(1990, 2020)])
    for _ in range(10):
        lease = worker.one("patents")
        worker.complete(lease, 2, "a.png", "b.png")
    status = admin.project("patents")
    assert (status.jobs.queued, status.jobs.completed) == (20, 10)
    assert len(list(admin.results("patents"))) == 20
    assert admin.server().version != "unknown"


def test_a_waiting_claim_gets_its_job_and_one_that_hung_up_gets_none(
    installation: Installation, admin: Client, worker: Holder, token: str
) -> None:
    with installation.http(token) as client:
        claim = {"worker_id": "impatient", "claim_key": "k", "wait_seconds": 50}
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v4/empty/claim", json=claim, timeout=httpx.Timeout(60, read=1))
    adding = threading.Timer(3, admin.add_jobs, ("empty", ["late"]))
    adding.start()
    [lease] = worker.claim("empty", wait_seconds=20)
    adding.join()
    assert lease.lease_seq == 1
    worker.complete(lease, 1, "a.png")


def test_how_large_a_body_may_be_is_the_services_business(installation: Installation, token: str) -> None:
    with installation.http(token) as client:
        answer = client.post("/v4/empty/claim", content=b" " * 40_000_000)
    assert (answer.status_code, answer.headers["Content-Type"]) == (413, "application/problem+json")


def test_plain_http_leads_to_https(installation: Installation) -> None:
    answer = httpx.get(f"http://localhost:{installation.http_port}/v4")
    assert (answer.status_code, answer.headers["Location"]) == (308, f"{installation.url}/v4")


def test_failed_logins_are_counted_by_the_clients_address(installation: Installation) -> None:
    network = json.loads(
        installation.inspect(installation.containers("proxy")[0], "{{json .NetworkSettings.Networks}}")
    )
    outside = next(name for name in network if name.endswith("outside"))
    script = GUESSES.format(tries=12)
    run = (
        "run",
        "--rm",
        f"--network={outside}",
        "--entrypoint=/opt/venv/bin/python3",
        "decimer-jobs-api",
        "-c",
        script,
    )
    assert installation.engine.docker(*run).stdout.split() == ["401"] * 10 + ["429"] * 2
    with installation.http("") as client:
        assert client.get("/v4", headers={}, auth=("nobody", "guess")).status_code == 401


def test_nobody_but_the_proxy_reaches_the_service(installation: Installation) -> None:
    [api] = installation.containers("api")
    assert json.loads(installation.inspect(api, "{{json .NetworkSettings.Networks}}")).keys() == {
        "decimer-jobs_inside",
        "decimer-jobs_front",
    }
    assert installation.inspect(api, "{{.HostConfig.PortBindings}}") == "map[]"
    subnets = [
        ipaddress.ip_network(installation.inspect(f"decimer-jobs_{name}", "{{(index .IPAM.Config 0).Subnet}}"))
        for name in ("inside", "front")
    ]
    ours = [
        address.address
        for card in psutil.net_if_addrs().values()
        for address in card
        if address.family == socket.AF_INET
    ]
    assert [address for address in ours for subnet in subnets if ipaddress.ip_address(address) in subnet] == []


def test_no_secret_is_shown_by_docker(installation: Installation, admin: Client, token: str) -> None:
    engine, [database], [api] = installation.engine, installation.containers("db"), installation.containers("api")
    ids = engine.docker("ps", "--all", "--quiet").stdout.split()
    shown = engine.docker("inspect", *ids).stdout
    for image in ("decimer-jobs-api", "postgres:18-bookworm", "caddy:2"):
        shown += engine.docker("inspect", image).stdout + engine.docker("history", "--no-trunc", image).stdout
    for container in ids:
        logged = engine.docker("logs", container)
        shown += logged.stdout + logged.stderr
    for container in [*installation.containers("proxy"), database, api]:
        shown += engine.docker("top", container, "-eo", "pid,args").stdout
    shown += "".join(path.read_text() for path in (installation.clone / "docker").rglob("*") if path.is_file())
    shown += installation.settings.read_text()
    secret = engine.docker("exec", database, "cat", "/secrets/database-password").stdout.strip()
    assert len(secret) == 32
    assert [
        name
        for name, value in (("database", secret), ("admin", installation.password()), ("token", token))
        if value in shown
    ] == []
    modes = engine.docker(
        "exec", api, "stat", "--format=%a %u", "/secrets", "/secrets/pgpass", "/var/lib/decimer-jobs/admin-password"
    )
    assert modes.stdout.split("\n")[:3] == ["700 10001", "600 10001", "600 10001"]


def test_the_database_asks_for_the_password(installation: Installation) -> None:
    [api] = installation.containers("api")
    said = installation.engine.docker("exec", "--env=PGPASSFILE=/dev/null", api, "job-api", "migrate", check=False)
    assert said.returncode == 1
    assert "refuses the login" in said.stderr


def test_the_service_can_write_to_its_own_folders_alone(installation: Installation) -> None:
    [api] = installation.containers("api")
    said = installation.engine.docker(
        "exec", api, "sh", "-c", "id -u; touch /opt/x /secrets/x; touch /tmp/x", check=False
    )
    assert said.stdout == "10001\n"
    assert said.stderr.count("Read-only file system") == 2
    status = installation.engine.docker("exec", api, "cat", "/proc/1/status").stdout
    assert re.findall(r"^(?:CapBnd|NoNewPrivs):\s+(\w+)$", status, re.MULTILINE) == ["0000000000000000", "1"]


def test_a_killed_service_is_started_again_and_nobody_gets_an_error(
    installation: Installation, worker: Holder, token: str
) -> None:
    [api] = installation.containers("api")
    os.kill(int(installation.inspect(api, "{{.State.Pid}}")), signal.SIGKILL)
    with installation.http(token) as client:
        assert client.get("/v4").status_code == 200
    wait_for(lambda: healthy(installation, api))
    assert installation.inspect(api, "{{.RestartCount}}") == "1"
    worker.complete(worker.one("patents"), 1, "a.png")


def test_a_service_without_its_database_is_not_healthy(installation: Installation) -> None:
    [api], [database] = installation.containers("api"), installation.containers("db")
    installation.engine.docker("stop", database)
    try:
        wait_for(lambda: installation.inspect(api, "{{.State.Health.Status}}") == "unhealthy", LOAD_SECONDS)
    finally:
        installation.engine.docker("start", database)
    wait_for(lambda: healthy(installation, api))


def test_new_code_and_more_containers_come_without_an_error(
    installation: Installation, admin: Client, token: str
) -> None:
    [old] = installation.containers("api")
    command = installation.clone / "docker/api/job-api"
    works = command.read_text()
    with traffic(installation, token) as failed:
        command.write_text(BROKEN)
        said = installation.run("up", check=False)
        assert said.returncode == 1
        assert "the new API ends again and again" in said.stderr
        assert said.stderr.splitlines()[-1].endswith("the old containers of the API go on; the new ones were removed")
        assert installation.containers("api", "--all") == [old]
        command.write_text(works)
        with (installation.clone / "job_api/version.py").open("a") as file:
            file.write("# newer\n")
        installation.set("API_CONTAINERS", "2")
        said = installation.run("up")
    assert failed == []
    assert "replacing 1 container(s)" in said.stderr
    new = installation.containers("api")
    assert (len(new), old in new) == (2, False)
    assert installation.inspect("decimer-jobs-api", '{{index .Config.Labels "decimer-jobs.dirty"}}') == "true"


def test_all_containers_are_asked_and_the_end_of_one_is_no_error(installation: Installation, token: str) -> None:
    asked = ("/opt/venv/bin/python3", "-c", ANSWERED)
    one, other = installation.containers("api")
    with traffic(installation, token) as failed:
        wait_for(lambda: all(float(installation.engine.docker("exec", c, *asked).stdout) > 5 for c in (one, other)))
        installation.engine.docker("stop", one)
    assert failed == []
    # What is stopped is replaced, and what is as it should be stays; then nothing is to be done.
    for _ in range(2):
        assert "replacing" not in installation.run("up").stderr
        running = installation.containers("api", "--all")
        assert (len(running), other in running, one in running) == (2, True, False)
    installation.set("API_CONTAINERS", "1")
    installation.set("JOB_API_LEASE_SECONDS", "119")
    assert "replacing 2 container(s)" in installation.run("up").stderr
    assert len(installation.containers("api", "--all")) == 1
    with installation.http(token) as client:
        assert client.get("/v4").json()["lease_seconds"] == 119


def test_a_backup_is_restored_into_an_empty_installation(
    installation: Installation, admin: Client, token: str, tmp_path: Path
) -> None:
    before = admin.project("patents").jobs, list(admin.results("patents"))
    assert len(before[1]) >= 20
    password = installation.password()
    file = tmp_path / "it's.dump"
    with traffic(installation, token) as failed:
        installation.run("backup", str(file))
    assert failed == []
    assert list(tmp_path.iterdir()) == [file]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    installation.run("compose", "down", "--volumes")
    assert "the service does not run" in installation.run("password", check=False).stderr

    installation.run("restore", str(file), "--yes")
    assert "the users are those of a backup" in installation.run("password", check=False).stderr
    installation.trust()
    with (
        installation.client(username="admin", password=password) as client,
        installation.client(token=token) as working,
    ):
        assert (client.project("patents").jobs, list(client.results("patents"))) == before
        worker = Holder(working)
        worker.complete(worker.one("patents"), 1, "a.png")


def test_a_backup_takes_the_place_of_what_is_there(installation: Installation, token: str, tmp_path: Path) -> None:
    """After a restore that was cut off at its very end, and with another password than that of the backup."""
    file = tmp_path / "jobs.dump"
    installation.run("backup", str(file))
    [api] = installation.containers("api")
    password = installation.run("reset-password").stdout.strip()
    with installation.client(username="admin", password=password) as client:
        client.put_project("later", schemas.ProjectSettings(source="file:///data"))
    installation.sql("CREATE DATABASE decimer_jobs_old")
    installation.run("restore", str(file), "--yes")
    assert installation.containers("api", "--all") == [api]
    assert "the users are those of a backup" in installation.run("password", check=False).stderr
    with installation.http(token) as working:
        assert working.get("/v4").status_code == 200
    assert installation.sql("SELECT count(*) FROM projects WHERE name = 'later'", "decimer_jobs") == "0"
    assert databases(installation) == ["decimer_jobs"]


def databases(installation: Installation) -> list[str]:
    return installation.sql("SELECT datname FROM pg_database WHERE datname ~ '^decimer_jobs'").split()


def test_a_restore_that_cannot_be_puts_back_what_there_was(
    installation: Installation, token: str, tmp_path: Path
) -> None:
    """A backup that newer code made, one that the API cannot start on, and a signal while the API is down.

    Not that of Ctrl-C, which a shell that was started in the background cannot catch.
    """
    newer, lame, good = (tmp_path / name for name in ("newer.dump", "lame.dump", "good.dump"))
    [api] = installation.containers("api")
    for file, change, back in (
        (
            newer,
            "UPDATE alembic_version SET version_num = '9' || version_num",
            "UPDATE alembic_version SET version_num = substr(version_num, 2)",
        ),
        (lame, "ALTER TABLE users RENAME TO gone", "ALTER TABLE gone RENAME TO users"),
        (good, "SELECT", "SELECT"),
    ):
        installation.sql(change, "decimer_jobs")
        installation.run("backup", str(file))
        installation.sql(back, "decimer_jobs")
    began = installation.inspect(api, "{{.State.StartedAt}}")
    said = installation.run("restore", str(newer), "--yes", check=False)
    assert "this code cannot use the backup" in said.stderr
    assert installation.inspect(api, "{{.State.StartedAt}}") == began

    said = installation.run("restore", str(lame), "--yes", check=False)
    assert "the API does not start on the backup" in said.stderr
    wait_for(lambda: healthy(installation, api))

    # Whoever is connected holds the exchange up for 5 s; what has been asked of the database then, it goes on with.
    exchanging = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'ALTER DATABASE%'"
    with installation.connected(), installation.begin("restore", str(good), "--yes") as restoring:
        try:
            wait_for(lambda: installation.sql(exchanging) == "1", LOAD_SECONDS)
            os.killpg(restoring.pid, signal.SIGTERM)
            _, stderr = restoring.communicate(timeout=60)
        finally:
            restoring.kill()
    assert restoring.returncode == 143, stderr
    assert "putting back what there was" in stderr
    wait_for(lambda: healthy(installation, api))
    assert databases(installation) == ["decimer_jobs"]
    with installation.http(token) as client:
        assert client.get("/v4").status_code == 200


def test_what_is_no_whole_backup_changes_nothing(installation: Installation, token: str, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.dump", tmp_path / "half.dump"
    installation.run("backup", str(whole))
    half.write_bytes(whole.read_bytes()[:-200])
    for file, reason in ((half, "the service goes on with what it had"), (CLONE / "README.md", "is no backup")):
        said = installation.run("restore", str(file), "--yes", check=False)
        assert said.returncode == 1
        assert reason in said.stderr.splitlines()[-1]
    said = installation.run("restore", str(whole), check=False)
    assert (said.returncode, said.stderr.splitlines()[-1]) == (1, "service.sh: nothing was changed")
    with installation.http(token) as client:
        assert client.get("/v4").status_code == 200
    assert databases(installation) == ["decimer_jobs"]


def test_a_backup_that_fails_leaves_the_older_one(installation: Installation, tmp_path: Path) -> None:
    file = tmp_path / "jobs.dump"
    file.write_text("of yesterday")
    allow = "ALTER DATABASE decimer_jobs ALLOW_CONNECTIONS {}"
    installation.sql(allow.format(False))
    try:
        said = installation.run("backup", str(file), check=False)
    finally:
        installation.sql(allow.format(True))
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1] == f"service.sh: the backup failed; nothing was written to {file}"
    assert [(path, path.read_text()) for path in tmp_path.iterdir()] == [(file, "of yesterday")]
    said = installation.run("backup", str(tmp_path), check=False)
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert f"is a folder; say which file in it: {tmp_path}/decimer-jobs.dump" in said.stderr


def test_a_name_keeps_its_kind_of_certificate(docker_engine: Engine, tmp_path: Path) -> None:
    """Without an image: what is written is written before anything is built."""
    copy_clone(tmp_path / "clone")
    here = Installation(docker_engine, tmp_path / "clone")
    (here.clone / "pyproject.toml").unlink()

    def named(*arguments: str) -> tuple[list[str], str]:
        said = here.run("up", *arguments, check=False).stderr
        return sorted(here.settings.read_text().split()), said

    assert named("jobs.example.org", "you@example.org")[0] == ["SITE=jobs.example.org", "TLS=you@example.org"]
    settings, said = named("jobs.example.org")
    assert settings == ["SITE=jobs.example.org", "TLS=you@example.org"]
    assert "stays one of Let's Encrypt for you@example.org" in said
    settings, said = named("jobs.example.org:8443")
    assert settings == ["SITE=jobs.example.org", "TLS=you@example.org"]
    assert "a port is set as HTTPS_PORT" in said
    assert named("jobs.example.org", "internal")[0] == ["SITE=jobs.example.org", "TLS=internal"]
    assert named("other.example.org")[0] == ["SITE=other.example.org", "TLS=internal"]


def script(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(CLONE / "docker/service/service.sh"), *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_script_says_what_to_do_without_docker(tmp_path: Path) -> None:
    for program in ("bash", "dirname", "cat"):
        (tmp_path / program).symlink_to(Path("/usr/bin") / program)
    said = script("up", PATH=str(tmp_path))
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert "docker is not found; install it" in said.stderr


def test_the_script_says_what_to_do_without_an_engine(docker_engine: Engine, tmp_path: Path) -> None:
    said = script("up", DOCKER_HOST=f"unix://{tmp_path}/no.sock")
    assert (said.returncode, said.stderr.count("\n")) == (1, 1)
    assert "Docker's engine cannot be used" in said.stderr
    assert "start it" in said.stderr


def test_the_scripts_pass_shellcheck(docker_engine: Engine) -> None:
    install("shellcheck")
    scripts = [
        *(CLONE / "docker/service").glob("*.sh"),
        *(CLONE / "docker/api").glob("*.sh"),
        CLONE / "docker/api/job-api",
    ]
    assert len(scripts) >= 4
    assert docker_engine.run("shellcheck", *map(str, scripts)).stdout == ""
