"""From build_snapshot.sh to results: the real command, a machine with an empty Docker engine, a live service.

The tests share one build and one machine, and run in their order: the first loads the image.
"""

import asyncio
import contextlib
import gzip
import io
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from job_api.schemas import NewToken, ProjectSettings, Role
from tests.containers.compose import compose_plugin
from tests.containers.engine import Engine, NoEngine, run_engine
from tests.plugins.snapshots import PROJECT, SUBMITTERS_PASSWORD, Machine, Snapshot, open_folder, set_in
from tests.serving import LOAD_SECONDS, small_disk, wait_for
from tests.test_cloud_init import written

pytestmark = pytest.mark.timeout(1800)

ONE_LINE = re.compile(r"^worker (\S+): (.*recogniser process.*); status: (http://\S+)/v4/(\S+)$", re.MULTILINE)


# --- what is built ---


def test_the_folder_holds_what_a_machine_needs_and_the_token_in_one_file(snapshot: Snapshot) -> None:
    assert re.fullmatch(r"decimer_snapshot_patents_\d{6}", snapshot.folder.name)
    files = {file.name: file for file in snapshot.folder.iterdir()}
    assert files.keys() == {"docker-compose.yml", "docker_image", "start_worker.sh", "worker.env"}
    assert stat.S_IMODE(files["worker.env"].stat().st_mode) == 0o600
    secrets = [snapshot.token, snapshot.service.password, SUBMITTERS_PASSWORD]
    assert all(len(secret) > 20 for secret in secrets)
    said = [snapshot.said, *(files[name].read_text() for name in ("docker-compose.yml", "start_worker.sh"))]
    said.append(snapshot.engine.docker("history", "--no-trunc", snapshot.image).stdout)
    said.append(snapshot.engine.docker("inspect", snapshot.image).stdout)
    for secret in secrets:
        assert not any(secret in text for text in said)
    assert [text for text in snapshot.said.splitlines() if "recogniser" in text or "Traceback" in text] == []
    with gzip.open(files["docker_image"]) as image:
        assert hold(image, [secret.encode() for secret in secrets]) == [], "in no layer"


def hold(file: gzip.GzipFile, texts: list[bytes]) -> list[bytes]:
    """Which of these texts are in a file."""
    found, end = set[bytes](), b""
    while piece := file.read(1 << 24):
        found |= {text for text in texts if text in end + piece}
        end = piece[-200:]
    return sorted(found)


def test_its_token_is_a_workers_of_the_project_named_and_ends(snapshot: Snapshot) -> None:
    [token] = [token for token in snapshot.admin.tokens() if token.name.startswith("snapshot ")]
    assert token.name == f"snapshot {snapshot.folder.name.removeprefix('decimer_snapshot_')}"
    assert (token.role, token.project) == (Role.WORKER, PROJECT)
    assert token.expires_at is not None
    assert abs(token.expires_at - datetime.now(UTC) - timedelta(days=90)) < timedelta(hours=1)
    assert f"job-api token revoke {token.id} " in snapshot.said


def test_the_jobs_are_added_and_each_step_is_told_with_its_time(snapshot: Snapshot) -> None:
    assert {job.directory for job in snapshot.admin.jobs(PROJECT)} == set(snapshot.directories)
    assert re.findall(r"^\[(\d)/6\] ", snapshot.said, re.MULTILINE) == list("123456")
    assert len(re.findall(r"^ +done in \d+\.\d s$", snapshot.said, re.MULTILINE)) == 6
    assert "leads each machine to itself" in snapshot.said


# --- starting ---


def test_a_new_machine_loads_starts_and_gets_all_results_right(snapshot: Snapshot, machine: Machine) -> None:
    folder = machine.copy(snapshot)
    said = machine.start(folder)
    assert "loading the image" in said
    worker_id, plan, root, project = ONE_LINE.findall(said)[0]
    assert (root, project) == (snapshot.service.root, PROJECT)
    assert "cores" in plan
    snapshot.wait_until_done(PROJECT)
    [row, *_] = snapshot.admin.results(PROJECT)
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S607
    name = snapshot.folder.name.removeprefix("decimer_snapshot_")
    assert row["snapshot"].startswith(f"{name} ({commit.stdout.strip()}"), row["snapshot"]
    assert row["worker_id"] == worker_id
    [worker] = [worker for worker in snapshot.admin.workers() if worker.id == worker_id]
    assert worker.hostname == socket.gethostname(), "the machine's name, and not the container's"
    assert f"{worker_id}: " in machine.script(folder, "status").stdout
    assert f"worker {worker_id}" in machine.script(folder, "logs").stderr + machine.script(folder, "logs").stdout
    assert_confined(machine)


def assert_confined(machine: Machine) -> None:
    [container] = machine.containers()
    found = machine.inspect(container)
    host, config = found["HostConfig"], found["Config"]
    assert host["ReadonlyRootfs"]
    assert host["Init"]
    assert host["NetworkMode"] == "host"
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 0}
    assert (host["Memory"], host["MemorySwap"]) == (0, 0)
    assert set(host["Tmpfs"]) == {"/tmp", "/run/uworker"}
    assert all("size=" in options for options in host["Tmpfs"].values())
    assert host["LogConfig"]["Config"]["max-size"] == "10m"
    assert config["StopTimeout"] == 30
    assert config["User"].startswith("10001")
    assert not any(mount["RW"] for mount in found["Mounts"] if mount["Type"] == "bind")


def tiny_image(folder: Path) -> Path:
    """What `docker import` takes."""
    with tarfile.open(folder / "tiny.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    return folder / "tiny.tar"


def test_starting_again_restarts_and_loads_nothing(snapshot: Snapshot, machine: Machine, tmp_path: Path) -> None:
    folder = machine.copy(snapshot, WORKER_MEMORY_LIMIT="3g")
    first = ONE_LINE.findall(machine.start(folder))[0][0]
    (folder / "docker_image").unlink()
    # As a VM of cloud-init clears away the snapshots before this one.
    label, former = "--change=LABEL decimer-jobs.snapshot=former", "decimer-worker:former"
    machine.engine.docker("import", label, str(tiny_image(tmp_path)), former)
    [prune] = re.findall(r"ExecStartPost=-/usr/bin/docker (.*)", written("/etc/systemd/system/decimer-worker.service"))
    assert former in machine.engine.docker(*prune.split()).stdout
    said = machine.start(folder)
    assert "is loaded" in said
    assert "loading" not in said
    assert ONE_LINE.findall(said)[0][0] != first
    [container] = machine.containers("--all")
    host = machine.inspect(container)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (3 << 30, 3 << 30), "no swap besides"
    done = machine.script(folder, "stop")
    assert "given back" in done.stdout
    assert done.stderr == ""
    assert "it had ended with exit code 0" in machine.script(folder, "stop").stdout
    assert "ended with exit code 0" in machine.refused(folder, "status")
    assert machine.containers() == []


def test_with_compose_as_a_plugin_it_is_the_same(snapshot: Snapshot, machine: Machine) -> None:
    try:
        plugin = str(compose_plugin())
    except NoEngine as error:
        pytest.skip(f"NO COMPOSE PLUGIN, so it was not tested: {error}")
    folder = machine.copy(snapshot, UWORKER_JOB_API_PROJECT="elsewhere")
    # Without docker-compose, so that it cannot be that.
    with open_folder() as programs:
        link_programs(programs, "docker")
        here = {"DOCKER_CONFIG": plugin, "PATH": str(programs)}
        assert f"only see the project {PROJECT}" in machine.refused(folder, **here)
        set_in(folder, UWORKER_JOB_API_PROJECT=PROJECT)
        assert ONE_LINE.search(machine.start(folder, **here))
        assert_confined(machine)
        assert "replaced" in machine.start(folder, **here)
        assert machine.script(folder, "stop", **here).returncode == 0


TOOLS = (
    "awk",
    "basename",
    "bash",
    "chmod",
    "cksum",
    "df",
    "dirname",
    "grep",
    "head",
    "id",
    "sed",
    "sleep",
    "stat",
    "tail",
    "tr",
)


def link_programs(folder: Path, *more: str) -> None:
    """Make a folder to be the PATH, with a few programs of this machine."""
    for tool in (*TOOLS, *more):
        found = shutil.which(tool)
        assert found is not None, tool
        (folder / tool).symlink_to(found)


# --- ending ---


def ready_to_work(snapshot: Snapshot, machine: Machine, project: str, copies: int) -> tuple[Path, str]:
    """A worker that is in the middle of a long project: its folder and its container."""
    snapshot.fill(project, copies)
    changes = {"UWORKER_JOB_API_PROJECT": project, "UWORKER_JOB_API_TOKEN": snapshot.worker_token(project)}
    folder = machine.copy(snapshot, **changes, WORKER_MOUNT=f"'{snapshot.source.parent}'")
    machine.start(folder)
    wait_for(lambda: snapshot.admin.project(project).images.stored > 0, LOAD_SECONDS)
    [container] = machine.containers()
    return folder, container


def test_docker_stop_drains_within_the_grace_and_gives_the_jobs_back(snapshot: Snapshot, machine: Machine) -> None:
    _, container = ready_to_work(snapshot, machine, "stopped", 30)
    began = time.monotonic()
    machine.engine.docker("stop", container)
    assert time.monotonic() - began < 29
    state = machine.inspect(container)["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    jobs = snapshot.admin.project("stopped").jobs
    assert (jobs.claimed, jobs.failed) == (0, 0)
    assert jobs.queued > 0, "it was in the middle"
    assert machine.inspect(container)["RestartCount"] == 0, "an end in order is an end"


def test_a_worker_that_is_killed_comes_back_and_the_project_ends_well(snapshot: Snapshot, machine: Machine) -> None:
    folder, container = ready_to_work(snapshot, machine, "killed", 3)
    os.kill(machine.inspect(container)["State"]["Pid"], signal.SIGKILL)
    wait_for(lambda: machine.inspect(container)["RestartCount"] == 1, LOAD_SECONDS)
    wait_for(lambda: snapshot.admin.project("killed").jobs.unfinished == 0, 240)
    snapshot.assert_filled_done("killed", 3)
    assert machine.script(folder, "status").returncode == 0


def test_a_worker_that_dies_after_the_check_is_told_with_its_last_words(snapshot: Snapshot, machine: Machine) -> None:
    folder = machine.copy(snapshot)
    compose = folder / "docker-compose.yml"
    # An engine without a socket, which it is not told; `check` is run as ever.
    told = "    env_file: worker.env\n"
    compose.write_text(compose.read_text().replace(told, told + "    command: [engine]\n"))
    done = machine.script(folder)
    assert done.returncode == 1
    assert "set UWORKER_ENGINE_SOCKET" in done.stderr
    assert "start_worker.sh: the worker ended with exit code " in done.stderr
    assert machine.containers() == []


def test_a_worker_that_does_not_end_is_told_to_have_been_killed(snapshot: Snapshot, machine: Machine) -> None:
    folder = machine.copy(snapshot)
    machine.start(folder)
    [container] = machine.containers()
    machine.engine.docker("update", "--restart=no", container)
    process = psutil.Process(machine.inspect(container)["State"]["Pid"])
    for child in process.children(recursive=True):
        child.suspend()
    assert "was killed (exit code 137)" in machine.refused(folder, "stop")


# --- refusals ---


def test_a_service_with_an_authority_of_its_own_is_reached_with_its_certificate(
    snapshot: Snapshot, machine: Machine
) -> None:
    with open_folder() as home, tls_front(snapshot.service.root, home) as (root, certificate):
        folder = machine.copy(snapshot, UWORKER_JOB_API_ROOT=root)
        assert "WORKER_CA_FILE in worker.env names" in machine.refused(folder)
        set_in(folder, WORKER_CA_FILE="/not/there")
        assert "there is no file /not/there" in machine.refused(folder)
        set_in(folder, WORKER_CA_FILE=str(certificate))
        certificate.chmod(0o600)
        assert "may not read the file that WORKER_CA_FILE names" in machine.refused(folder)
        certificate.chmod(0o644)
        assert ONE_LINE.search(machine.start(folder).replace("https://", "http://"))
        machine.script(folder, "stop")


@contextmanager
def tls_front(root: str, home: Path) -> Iterator[tuple[str, Path]]:
    """A relay that speaks TLS with a certificate of nobody's but its own, in front of a service."""
    certificate, key = home / "ca.crt", home / "ca.key"
    made_of = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", *made_of, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    address = urlsplit(root)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(address.hostname, address.port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(relay, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}", certificate
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_another_project_needs_one_line_and_a_token_that_may_see_it(snapshot: Snapshot, machine: Machine) -> None:
    snapshot.add_project("second")
    folder = machine.copy(snapshot)
    set_in(folder, UWORKER_JOB_API_PROJECT="second")
    said = machine.refused(folder)
    assert f"may only see the project {PROJECT}" in said
    assert "job-api token add NAME --role worker --project second" in said
    assert machine.containers("--all") == []
    set_in(folder, UWORKER_JOB_API_TOKEN=snapshot.worker_token(None))
    machine.start(folder)
    snapshot.wait_until_done("second")
    set_in(folder, UWORKER_JOB_API_PROJECT="third")
    said = machine.refused(folder)
    assert "there is no project 'third'" in said
    assert "add_jobs.py third" in said
    assert len(machine.containers()) == 1, "what runs goes on"


def test_a_wrong_or_revoked_token_and_a_service_that_is_away_are_told(snapshot: Snapshot, machine: Machine) -> None:
    made = snapshot.admin.new_token(NewToken(name="leaked", role=Role.WORKER, project=PROJECT))
    snapshot.admin.revoke_token(made.id)
    reader = snapshot.admin.new_token(NewToken(name="reader", role=Role.READ, project=PROJECT))
    folder = machine.copy(snapshot)
    for token, word in (
        ("dj_wrong", "not valid"),
        (made.token, "was revoked"),
        (reader.token, "needs the role worker"),
    ):
        set_in(folder, UWORKER_JOB_API_TOKEN=token)
        said = machine.refused(folder)
        assert word in said
        assert f"job-api token add NAME --role worker --project {PROJECT}" in said
        assert token not in said
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        set_in(folder, UWORKER_JOB_API_ROOT=f"http://127.0.0.1:{nobody.getsockname()[1]}")
        assert "UWORKER_JOB_API_ROOT is its address" in machine.refused(folder)
    assert machine.containers("--all") == []


def test_a_folder_that_is_not_there_or_not_to_be_read_is_told(snapshot: Snapshot, machine: Machine) -> None:
    folder = machine.copy(snapshot, WORKER_MOUNT="/not/there")
    assert "there is no folder /not/there" in machine.refused(folder)
    with open_folder() as closed:
        closed.chmod(0o700)
        set_in(folder, WORKER_MOUNT=str(closed))
        assert f"may not read {closed}" in machine.refused(folder)
        closed.chmod(0o755)
        set_in(folder, WORKER_MOUNT_READ_ONLY="false")
        assert f"may not write to {closed}" in machine.refused(folder)
    assert machine.containers("--all") == []


def test_results_files_are_written_where_writing_is_allowed(snapshot: Snapshot, machine: Machine) -> None:
    source = snapshot.source.parent / "written"
    shutil.copytree(snapshot.source, source)
    for path in (source, *source.rglob("*")):
        os.chown(path, 10001, 10001)
    snapshot.admin.put_project("written", ProjectSettings(source=source.as_uri(), results_file=True))
    snapshot.admin.add_jobs("written", snapshot.directories)
    token = snapshot.worker_token("written")
    folder = machine.copy(snapshot, UWORKER_JOB_API_PROJECT="written", UWORKER_JOB_API_TOKEN=token)
    set_in(folder, WORKER_MOUNT=f"'{source}'", WORKER_MOUNT_READ_ONLY="false")
    machine.start(folder)
    snapshot.wait_until_done("written")
    assert len(list(source.rglob("smiles_output.json"))) == len(snapshot.directories)


def test_a_disk_that_is_too_small_is_told_before_the_image_is_loaded(snapshot: Snapshot, docker_engine: Engine) -> None:
    with open_folder() as home:
        (home / "engine").mkdir()
        with small_disk(home / "engine", 600), run_engine(home / "engine") as engine:
            machine = Machine(engine, home / "folders")
            folder = home / "folders" / snapshot.folder.name
            shutil.copytree(snapshot.folder, folder, ignore=shutil.ignore_patterns("docker_image"))
            (folder / "docker_image").touch()
            said = machine.refused(folder)
            assert re.search(r"only \d+ MB are free where docker keeps its images", said)
            assert "make room" in said
            assert engine.image_ids() == set()


def test_an_engine_that_this_user_may_not_use_or_is_away_is_told(snapshot: Snapshot, machine: Machine) -> None:
    folder = machine.copy(snapshot)
    assert "does not answer" in machine.refused(folder, DOCKER_HOST="unix:///nowhere.sock")
    for path in (folder, folder / "worker.env"):
        os.chown(path, 65534, 65534)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*as_nobody, "bash", str(folder / "start_worker.sh")],
        env=machine.engine.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "usermod -aG docker" in done.stderr


# --- two on one machine ---


def test_two_folders_are_two_workers(snapshot: Snapshot, machine: Machine) -> None:
    """Also where they are called the same, as a copy is."""
    snapshot.add_project("fourth")
    snapshot.add_project("fifth")
    token = snapshot.worker_token(None)
    folders = [
        machine.copy(snapshot, name, UWORKER_JOB_API_PROJECT=name, UWORKER_JOB_API_TOKEN=token)
        for name in ("fourth", "fifth")
    ]
    workers = {ONE_LINE.findall(machine.start(folder))[0][0] for folder in folders}
    assert len(workers) == 2
    assert len(machine.containers()) == 2
    volumes = [mount["Name"] for c in machine.containers() for mount in machine.inspect(c)["Mounts"] if "Name" in mount]
    assert len(set(volumes)) == 2
    shown = [mount for c in machine.containers() for mount in machine.inspect(c)["Mounts"] if mount["Type"] == "bind"]
    assert [mount["RW"] for mount in shown if mount["Source"] == str(snapshot.source)] == [False] * 2
    for project in ("fourth", "fifth"):
        snapshot.wait_until_done(project)
        assert len({row["worker_id"] for row in snapshot.admin.results(project)}) == 1
    assert machine.script(folders[0], "stop").returncode == 0
    assert len(machine.containers()) == 1
    assert machine.script(folders[1], "status").returncode == 0


# --- the last, for the image is gone after it ---


def test_what_is_left_of_a_worker_is_removed_and_results_that_wait_are_not(
    snapshot: Snapshot, machine: Machine
) -> None:
    folder = machine.copy(snapshot)
    machine.start(folder)
    assert "stop it first" in machine.refused(folder, "remove")
    machine.script(folder, "stop")
    [volume] = machine.engine.docker("volume", "ls", "--quiet").stdout.split()
    waiting = Path(machine.engine.docker("volume", "inspect", "--format={{.Mountpoint}}", volume).stdout.strip())
    (waiting / "w-1.spool").touch()
    assert "results wait for the service" in machine.refused(folder, "remove")
    assert machine.engine.docker("volume", "ls", "--quiet").stdout.split() == [volume]
    (waiting / "w-1.spool").unlink()
    # As an interruption leaves it, between making and starting.
    [worker] = machine.containers("--all")
    made = machine.inspect(worker)["Config"]
    machine.engine.docker("rm", worker)
    machine.engine.docker("create", *(f"--label={name}={said}" for name, said in made["Labels"].items()), made["Image"])
    done = machine.script(folder, "remove")
    assert (done.returncode, done.stderr) == (0, "")
    assert "removed; the folder" in done.stdout
    assert machine.containers("--all") == []
    assert machine.engine.docker("volume", "ls", "--quiet").stdout == ""
    assert machine.engine.image_ids() == set()
