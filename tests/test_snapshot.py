"""What build_snapshot.sh, start_worker.sh and `uworker check` say where no Docker is needed to say it."""

import gzip
import io
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from job_api.client import Client, Refused
from job_api.schemas import IssuedToken, NewToken, NewUser, ProjectSettings, Role
from tests.containers.engine import NoEngine, install
from tests.plugins.service import RunningService
from tests.plugins.snapshots import CLONE, settings_of
from uworker.cli import app
from uworker.settings import ApartSettings
from uworker.snapshot import access, builder, folder, saving
from uworker.snapshot.access import SnapshotError
from uworker.snapshot.cli import Wanted, _show_end, _weights
from uworker.snapshot.images import BuiltImage
from uworker.weights import WeightsError

PROJECT = "patents"
PASSWORD = "a password that is long"
DAY = date(2026, 11, 21)
IMAGE = BuiltImage(
    "decimer-worker:patents", "sha256:" + "0123456789ab" + "c" * 52, 1000, [], "s", "unknown", dirty=False
)
SMALL_IMAGE = replace(IMAGE, image_id="sha256:" + "fedcba987654" + "c" * 52, size_bytes=10)


@pytest.fixture
def patents(service: RunningService) -> RunningService:
    service.client("admin").put_project(PROJECT, ProjectSettings(source="file:///data/patents"))
    return service


# --- build_snapshot.sh: refusals, after which nothing is left ---

Builder = Callable[..., str]


@pytest.fixture
def refused(patents: RunningService, tmp_path: Path) -> Iterator[Builder]:
    """Runs build_snapshot.sh, which refuses; returns what it said. It has left neither a folder nor a token."""
    before = patents.sql("SELECT count(*) FROM tokens WHERE role = 'worker'")
    config = tmp_path / "my.conf"
    config.touch(0o600)
    output = tmp_path / "output"

    def run(*arguments: str | Path, login: str = f"JOB_API_TOKEN={patents.token('submit')}", **environment: str) -> str:
        config.write_text(f"JOB_API_ROOT={patents.root}\n{login}\n")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("JOB_API_", "DOCKER_"))}
        command = [str(CLONE / "build_snapshot.sh"), *map(str, arguments or (PROJECT, config)), f"--output={output}"]
        done = subprocess.run(
            [text.replace("CONFIG", str(config)) for text in command],
            env=clean | {"DOCKER_HOST": "unix:///nowhere.sock"} | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("build_snapshot.sh: ")
        return done.stderr

    yield run
    assert not output.exists()
    assert patents.sql("SELECT count(*) FROM tokens WHERE role = 'worker'") == before


def test_an_engine_that_is_missing_or_away_is_told(refused: Builder, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in ("bash", "dirname", "env", "git"):
        (programs / tool).symlink_to(str(shutil.which(tool)))
    assert "docker is not installed here" in refused(PATH=str(programs))
    if shutil.which("docker") is not None:
        assert "the Docker engine does not answer" in refused()


def test_who_may_not_make_tokens_is_told(refused: Builder, patents: RunningService) -> None:
    for role in ("read", "worker"):
        token = patents.client("admin").new_token(NewToken(name="no", role=Role(role), project=None))
        said = refused(login=f"JOB_API_TOKEN={token.token}")
        assert "takes a login of the role submit or admin" in said
        patents.sql("DELETE FROM tokens WHERE id = $1", token.id)
    bound = patents.token("submit", "others")
    assert "may only see the project others" in refused(login=f"JOB_API_TOKEN={bound}")


def test_an_address_for_workers_is_looked_at_first_and_written_as_all_write_it(refused: Builder) -> None:
    for wrong in ("jobs.example.org", "http://", "http://a b", "http://h/?x", "http://h:port", "http://ada:x@h"):
        last = refused(PROJECT, "CONFIG", f"--api-root={wrong}").splitlines()[-1]
        assert last.startswith("build_snapshot.sh: --api-root: ")
    for right in ("https://jobs.example.org", "https://jobs.example.org/", "https://jobs.example.org/v4/"):
        assert access.worker_root(right) == "https://jobs.example.org"


def test_jobs_that_were_not_added_do_not_hide_the_folder_and_its_token(
    patents: RunningService, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, jobs = tmp_path / "my.conf", tmp_path / "its dirs.txt"
    config.touch(0o600)
    config.write_text(f"JOB_API_ROOT={patents.root}\nJOB_API_TOKEN={patents.token('submit')}\n")
    jobs.write_text("/absolute\n")
    with pytest.raises(SnapshotError, match="the snapshot is complete, and its jobs are not") as told:
        access.add_jobs(PROJECT, config, jobs, None)
    assert f"add_jobs.py {PROJECT} {config} '--jobs-file={jobs}'" in str(told.value)
    assert "line 1" in capfd.readouterr().err


def test_a_wrong_login_is_told(refused: Builder) -> None:
    said = refused(login="JOB_API_USERNAME=admin\nJOB_API_PASSWORD=wrong-password")
    assert "set JOB_API_USERNAME and JOB_API_PASSWORD" in said
    assert "wrong-password" not in said


def test_a_service_that_is_away_is_told(refused: Builder) -> None:
    assert "127.0.0.1:1" in refused(JOB_API_ROOT="http://127.0.0.1:1")


def test_jobs_that_can_be_read_once_only_are_refused(refused: Builder, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for file in ("-", str(pipe)):
        assert "read twice" in refused(PROJECT, "CONFIG", file)


def test_jobs_that_cannot_be_added_are_told_before_anything_is_built(refused: Builder, tmp_path: Path) -> None:
    jobs = tmp_path / "dirs.txt"
    jobs.write_text("/absolute\n")
    assert "line 1: '/absolute'" in refused(PROJECT, "CONFIG", jobs)
    jobs.write_text("one\n")
    assert "say with --source where its directories lie" in refused("elsewhere", "CONFIG", jobs)
    assert "has the source file:///data/patents" in refused(PROJECT, "CONFIG", jobs, "--source=/data/others")


def test_weights_that_are_not_there_or_are_others_are_told(
    patents: RunningService, tmp_path: Path, miniature_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(home: Path, sha256: str | None = None, hand_drawn: bool | None = None) -> str:
        wanted = Wanted(PROJECT, tmp_path, None, None, home, sha256, hand_drawn, True, False, False, None, 1, tmp_path)
        return _weights(wanted, patents.client("read").project(PROJECT), lambda _: None).sha256

    digest = weights(miniature_home)
    place, link, named_so = miniature_home / "DECIMER-V2", tmp_path / "link", tmp_path / "DECIMER-V2"
    link.symlink_to(place)
    named_so.symlink_to(link)
    for given in (place, link, named_so, tmp_path):
        assert weights(given, digest) == digest
    monkeypatch.chdir(place)
    assert weights(Path()) == digest
    named_so.unlink()
    assert weights(miniature_home, hand_drawn=True) != digest
    patents.client("admin").put_project(PROJECT, ProjectSettings(engine_options={"hand_drawn": True}))
    assert weights(miniature_home) == weights(miniature_home, hand_drawn=True), "as the project wants it"
    with pytest.raises(WeightsError, match="is pinned"):
        weights(miniature_home, "0" * 64)
    with pytest.raises(SnapshotError, match="lacks weights of the hand-drawn model"):
        weights(tmp_path)
    patents.client("admin").put_project(PROJECT, ProjectSettings(engine_options={"weights_sha256": digest}))
    assert weights(miniature_home) == weights(miniature_home, digest.upper()) == digest
    with pytest.raises(SnapshotError, match=f"project {PROJECT} pin [(]{digest}"):
        weights(miniature_home, "0" * 64)
    patents.client("admin").put_project(PROJECT, ProjectSettings(engine_options={"weights_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="is pinned"):
        weights(miniature_home)


def test_an_engine_that_no_snapshot_holds_is_told(refused: Builder, patents: RunningService) -> None:
    patents.client("admin").put_project(PROJECT, ProjectSettings(engine="osra"))
    assert "has the engine osra, and a snapshot holds decimer alone; start workers where" in refused()
    options = {"prepared": "no"}
    patents.client("admin").put_project(PROJECT, ProjectSettings(engine="decimer", engine_options=options))
    assert "decimer's option prepared is true or false, not 'no'; its workers would refuse it" in refused()


@pytest.mark.parametrize(
    ("source", "credentials"),
    [
        ("az://container/x", "AZURE_…"),
        ("abfss://container@account.dfs.core.windows.net/x", "AZURE_…"),
        ("s3://bucket/x", "AWS_…"),
        ("gs://bucket", "GOOGLE_…"),
        ("https://host/x", None),
        ("file:///data/x", None),
        (None, None),
    ],
)
def test_the_last_words_say_where_the_storages_credentials_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str | None, credentials: str | None
) -> None:
    wanted = Wanted(PROJECT, tmp_path, None, None, None, None, None, True, False, False, None, 1, tmp_path)
    now = datetime.now(UTC)
    token = IssuedToken(
        id=7,
        name="snapshot",
        role=Role.WORKER,
        project=PROJECT,
        username=None,
        created_at=now,
        expires_at=now,
        revoked_at=None,
        token="dj_secret",
    )
    _show_end(wanted, tmp_path / "decimer_snapshot", source, token)
    said = capsys.readouterr().out
    before, _, _ = said.partition("scp -rp")
    assert ("decimer_snapshot/worker.env" in before) == (credentials is not None)
    assert credentials is None or (credentials in before and str(source) in before)
    assert "job-api token revoke 7" in said


def docker_that(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """A docker that says this, and fails."""
    folder.mkdir(exist_ok=True)
    (folder / "docker").write_text(f"#!/bin/sh\n[ \"$1\" = save ] || cat >/dev/null\necho '{says}' >&2\nexit 1\n")
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


FAULTS = {
    "write /usr/lib/libLLVM.so: no space left on device": builder.PRUNE,
    "x509: certificate signed by unknown authority": "SSL_CERT_FILE=",
    "invalid peer certificate: UnknownIssuer": "SSL_CERT_FILE=",
    "Error: certificate verify failed: unable to get local issuer certificate": "SSL_CERT_FILE=",
    "Temporary failure resolving deb.debian.org": "HTTPS_PROXY",
    "failed to lookup address information: Temporary failure in name resolution": "HTTPS_PROXY",
    "dial tcp: lookup registry-1.docker.io: no such host": "HTTPS_PROXY",
    "net/http: TLS handshake timeout": "HTTPS_PROXY",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_build_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    docker_that(tmp_path / "bin", monkeypatch, fault)
    said: list[str] = []
    with pytest.raises(builder.BuildError, match="its last lines are above; ") as told:
        builder.build("decimer-tests:none", {"Dockerfile": b"FROM x"}, said.append, arguments={})
    assert FAULTS[fault] in str(told.value)
    assert len(str(told.value).splitlines()) == 1
    assert said == [f"  {fault}"]


def test_a_build_that_fails_otherwise_says_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_that(
        tmp_path / "bin", monkeypatch, "Setting up ca-certificates; No solution found when resolving dependencies"
    )
    with pytest.raises(builder.BuildError, match=r"its last lines are above$"):
        builder.build("decimer-tests:none", {"Dockerfile": b"FROM x"}, lambda _: None, arguments={})


def test_an_image_that_cannot_be_saved_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker_that(tmp_path / "bin", monkeypatch, "write /var/lib/docker/tmp: no space left on device")
    with pytest.raises(SnapshotError, match=r"^docker save failed: write .* no space left on device; ") as told:
        saving.save_images(["decimer-tests:none"], tmp_path / "docker_image")
    assert builder.PRUNE in str(told.value)
    with pytest.raises(SnapshotError, match=r"cannot be written: .*; make room, or name another folder with --output"):
        saving.save_images(["decimer-tests:none"], tmp_path / "nowhere" / "docker_image")


def test_a_clone_without_installation_says_how_to_install(tmp_path: Path) -> None:
    shutil.copy(CLONE / "build_snapshot.sh", tmp_path)
    done = subprocess.run([tmp_path / "build_snapshot.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "make -C" in done.stderr


# --- the token ---


def test_a_token_is_revoked_when_what_follows_fails(patents: RunningService) -> None:
    submit = patents.client("submit")
    with pytest.raises(KeyboardInterrupt), access.worker_token(submit, PROJECT, "snapshot", 1) as token:  # noqa: PT012
        with Client(patents.root, token=token.token) as worker:
            assert worker.server(PROJECT).caller is not None
        raise KeyboardInterrupt
    with Client(patents.root, token=token.token) as worker, pytest.raises(Refused, match="revoked"):
        worker.server(PROJECT)


def test_a_token_that_cannot_be_revoked_is_told(patents: RunningService) -> None:
    submit = patents.client("submit", retry_seconds=0)
    failing = access.worker_token(submit, PROJECT, "snapshot", 1)
    with pytest.raises(SnapshotError, match=r"job-api token revoke \d+"), failing:  # noqa: PT012
        patents.sql("UPDATE tokens SET revoked_at = now() WHERE role = 'submit'")
        patents.app.state.service.authenticator._tokens.clear()
        raise OSError


# --- the folder ---


def test_a_snapshot_in_the_clone_is_not_committed() -> None:
    for path in ("decimer_snapshot_patents_261121/worker.env", ".decimer_snapshot_patents_261121.x/worker.env"):
        assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=CLONE, check=False).returncode == 0  # noqa: S607


def test_a_second_folder_of_a_day_gets_a_number(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        name = folder.free_name(tmp_path, PROJECT, DAY)
        with folder.new_folder(tmp_path, name) as made:
            made.finish()
        names.append(name)
    assert names == ["patents_261121", "patents_261121_2", "patents_261121_3"]
    assert {path.name for path in tmp_path.iterdir()} == {f"decimer_snapshot_{name}" for name in names}


def test_a_folder_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), folder.new_folder(tmp_path, "patents_261121") as made:  # noqa: PT012
        (made.path / "half").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with folder.new_folder(tmp_path, "patents_261121") as made:
        (made.final / "somebody else's").mkdir(parents=True)
        with pytest.raises(SnapshotError, match="start again"):
            made.finish()


def compose_file(made: Path, images: folder.Images, *, gpu: bool = False) -> dict[str, Any]:
    """What is written, as compose reads it."""
    folder.write_recipe(made, CLONE, "patents_261121", images, size_bytes=images.size_bytes, gpu=gpu)
    text = (made / "docker-compose.yml").read_text()
    assert [word for word in ("@", "#IF", "#END") if word in text] == []
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def test_the_compose_file_is_whole_and_for_a_gpu_if_asked(tmp_path: Path) -> None:
    for gpu in (False, True):
        services = compose_file(tmp_path, folder.Images(IMAGE), gpu=gpu)["services"]
        assert services.keys() == {"worker", "check"}
        assert services["worker"]["image"] == "decimer-worker:patents_261121-0123456789ab"
        assert services["worker"].get("runtime") == ("nvidia" if gpu else None)
        assert services["worker"]["environment"] == {"SSL_CERT_FILE": None}
        assert services["worker"]["mem_limit"] == "${WORKER_MEMORY_LIMIT:-0}"
        assert services["worker"]["memswap_limit"] == services["worker"]["mem_limit"], "no swap besides"


def test_with_the_engine_apart_the_worker_is_as_it_was_but_for_what_the_engine_does(tmp_path: Path) -> None:
    worker = compose_file(tmp_path, folder.Images(IMAGE))["services"]["worker"]
    apart = compose_file(tmp_path, folder.Images(SMALL_IMAGE, IMAGE), gpu=True)["services"]["worker"]
    differing = {key for key in worker.keys() | apart.keys() if worker.get(key) != apart.get(key)}
    assert differing == {"image", "environment", "depends_on", "volumes", "mem_limit", "memswap_limit"}
    assert (apart["mem_limit"], apart["memswap_limit"]) == ("2g", "2g")
    assert apart["image"] == "decimer-worker:patents_261121-fedcba987654"
    assert apart["environment"] == worker["environment"] | {"UWORKER_ENGINE_SOCKET": "/run/engine/engine.sock"}
    assert apart["volumes"] == [*worker["volumes"], "engine:/run/engine"]


def test_an_engine_apart_is_confined_as_the_worker_and_told_nothing_but_its_settings(tmp_path: Path) -> None:
    images = folder.Images(SMALL_IMAGE, IMAGE)
    read = compose_file(tmp_path, images)
    assert read["x-snapshot"]["size_bytes"] == images.size_bytes == IMAGE.size_bytes + SMALL_IMAGE.size_bytes
    engine, worker = read["services"]["engine"], read["services"]["worker"]
    assert engine["image"] == "decimer-engine:patents_261121-0123456789ab"
    for key in read["x-confined"]:
        assert engine[key] == worker[key], key
    assert "env_file" not in engine
    # Weights are those in the image, whose digest and place stand in it.
    own = {name.upper() for name in ApartSettings.model_fields} - {"WEIGHTS_HOME", "WEIGHTS_SHA256"}
    assert engine["environment"].keys() == {f"UWORKER_{name}" for name in own}
    assert engine["environment"]["UWORKER_PROCESSES"] == "${UWORKER_PROCESSES:-}"
    assert (engine["network_mode"], engine["mem_limit"]) == ("none", "${WORKER_MEMORY_LIMIT:-0}")
    assert engine["memswap_limit"] == engine["mem_limit"]
    assert [volume for volume in engine["volumes"] if volume in worker["volumes"]] == ["engine:/run/engine"]
    assert "runtime" not in engine
    gpu = compose_file(tmp_path, images, gpu=True)["services"]["engine"]
    assert (gpu["runtime"], gpu["environment"]["NVIDIA_VISIBLE_DEVICES"]) == ("nvidia", "${NVIDIA_VISIBLE_DEVICES:-}")


def test_a_disk_must_have_room_for_both_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    # Others make room and take it.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    free = usage.free
    half = replace(IMAGE, size_bytes=free * 2 // 3)
    folder.require_room(tmp_path, folder.Images(half))
    with pytest.raises(SnapshotError, match="make room"):
        folder.require_room(tmp_path, folder.Images(half, half))


SOURCES = {
    "file:///data/patents": "/data/patents",
    "file:///data/Gr%C3%B6%C3%9Fe%20(a)": "'/data/Größe (a)'",
    "file:///data/O'Neil%20${x}": r"'/data/O\'Neil ${x}'",
    "az://container/x": "",
    None: "",
}


@pytest.mark.parametrize("source", SOURCES)
def test_worker_env_says_what_the_worker_needs_and_is_its_owners(tmp_path: Path, source: str | None) -> None:
    told = folder.Told("http://host:8800", PROJECT, "dj_secret", source)
    folder.write_environment(tmp_path, told, gpu=source is None, engine_apart=False)
    assert stat.S_IMODE((tmp_path / "worker.env").stat().st_mode) == 0o600
    settings = settings_of(tmp_path)
    assert settings["UWORKER_JOB_API_ROOT"] == "http://host:8800"
    assert settings["UWORKER_JOB_API_PROJECT"] == PROJECT
    assert settings["UWORKER_JOB_API_TOKEN"] == "dj_secret"
    assert settings["WORKER_MOUNT"] == SOURCES[source]
    assert settings.get("NVIDIA_VISIBLE_DEVICES") == ("all" if source is None else None)


@pytest.mark.parametrize("source", ["file:///data/a%5Cb", "file:///data/a%0Ab"])
def test_a_folder_that_compose_would_read_otherwise_is_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(SnapshotError, match=r"^the folder '/data/a.+b' cannot stand in worker.env"):
        folder.write_environment(
            tmp_path, folder.Told("http://h", PROJECT, "dj_secret", source), gpu=False, engine_apart=False
        )


def test_a_folder_that_cannot_be_filled_is_told(tmp_path: Path) -> None:
    gone = tmp_path / "gone" / "folder"
    with pytest.raises(SnapshotError, match=r"docker-compose\.yml: No such file or directory; make room"):
        folder.write_recipe(gone, CLONE, "patents_261121", folder.Images(IMAGE), size_bytes=1000, gpu=False)
    with pytest.raises(SnapshotError, match=r"worker\.env: No such file or directory; make room"):
        folder.write_environment(
            gone, folder.Told("http://h", PROJECT, "dj_secret", None), gpu=False, engine_apart=False
        )


def test_the_image_is_one_gzip_file_for_those_who_read_it(tmp_path: Path) -> None:
    content = os.urandom(9 << 20) + bytes(20 << 20)
    target = io.BytesIO()
    assert saving._compress(io.BytesIO(content), target) == len(content)
    assert gzip.decompress(target.getvalue()) == content
    assert len(target.getvalue()) < 10 << 20
    (tmp_path / "image").write_bytes(target.getvalue())
    gunzipped = subprocess.run(["gzip", "-dc", tmp_path / "image"], capture_output=True, check=True, stdin=None)  # noqa: S607
    assert gunzipped.stdout == content


# --- uworker check ---


def check(service: RunningService, token: str, **settings: str) -> tuple[int, str]:
    given = {"JOB_API_ROOT": service.root, "JOB_API_TOKEN": token, **settings}
    result = CliRunner().invoke(app, ["check"], env={f"UWORKER_{name}": value for name, value in given.items()})
    assert token not in result.output
    return result.exit_code, result.output


def test_check_says_that_a_worker_may_work(patents: RunningService, tmp_path: Path) -> None:
    for project in ("", PROJECT):
        token = patents.token("worker", project or None)
        code, said = check(patents, token, JOB_API_PROJECT=project, SPOOL_DIR=str(tmp_path))
        assert code == 0, said
        assert said.startswith(f"job service {patents.root}, version ")
    assert patents.sql("SELECT * FROM workers") == [], "it is no worker yet"


def test_check_says_why_a_worker_may_not_work(patents: RunningService) -> None:
    admin = patents.client("admin")
    admin.put_user("robot", NewUser(password=PASSWORD, role=Role.WORKER))
    bound, how = patents.token("worker", PROJECT), "job-api token add NAME --role worker --project"
    refusals = [
        ("dj_wrong-one", PROJECT, "the token is not valid", f"{how} {PROJECT}"),
        (bound, "others", f"may only see the project {PROJECT}", f"{how} others"),
        (patents.token("worker"), "others", "there is no project 'others'", "./add_jobs.py others CONFIG"),
        (patents.token("read"), PROJECT, "has the role read", f"{how} {PROJECT}"),
        (patents.token("admin"), PROJECT, "has the role admin", f"{how} {PROJECT}"),
    ]
    for token, project, why, what_to_do in refusals:
        code, said = check(patents, token, JOB_API_PROJECT=project)
        assert code == 4
        assert len(said.splitlines()) == 1
        assert said.startswith("uworker: ")
        assert why in said
        assert what_to_do in said


def test_check_says_that_the_service_is_away_and_that_settings_are_wrong(
    patents: RunningService, tmp_path: Path
) -> None:
    token = patents.token("worker")
    code, said = check(patents, token, JOB_API_ROOT="http://127.0.0.1:1")
    assert (code, "UWORKER_JOB_API_ROOT is its address" in said) == (4, True)
    code, said = check(patents, token, JOB_API_ROOT="nonsense")
    assert (code, "nonsense" in said) == (2, True)
    code, said = check(patents, token, SOURCE_ROOT="/not/there")
    assert (code, "UWORKER_SOURCE_ROOT" in said) == (2, True)
    (tmp_path / "file").touch()
    code, said = check(patents, token, SPOOL_DIR=str(tmp_path / "file"))
    assert (code, "UWORKER_SPOOL_DIR" in said) == (4, True)


# --- start_worker.sh, before it asks docker ---


@pytest.fixture
def start_folder(tmp_path: Path) -> Path:
    made = tmp_path / "decimer_snapshot_patents_261121"
    made.mkdir()
    folder.write_recipe(made, CLONE, "patents_261121", folder.Images(IMAGE), size_bytes=1000, gpu=False)
    told = folder.Told("http://host:8800", PROJECT, "dj_secret", None)
    folder.write_environment(made, told, gpu=False, engine_apart=False)
    return made


def start(made: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["bash", made / "start_worker.sh", *arguments],  # noqa: S607 - wherever the system has it
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("start_worker.sh: ")
    assert "dj_secret" not in line + done.stdout
    return line


def test_a_machine_without_docker_is_told_what_to_install(start_folder: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in ("bash", "dirname", "grep", "sed", "tail", "stat", "chmod"):
        (programs / tool).symlink_to(str(shutil.which(tool)))
    assert "apt-get install docker.io docker-compose" in start(start_folder, PATH=str(programs))


@pytest.mark.parametrize(("engine", "compose", "refused"), [("29.1.3", "1.29.2", True), ("20.10.24", "1.29.2", False)])
def test_a_compose_that_is_too_old_for_the_engine_is_told(
    start_folder: Path, tmp_path: Path, engine: str, compose: str, *, refused: bool
) -> None:
    """Also by the service's script; with one that is not, both come as far as to ask an engine that is not there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, says in {
        "docker": f'[ "$1" = version ] && echo {engine} || exit 1',
        "docker-compose": f'[ "$1" = version ] && echo {compose} || exit 1',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{says}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    commands = [["start_worker.sh", "stop"], [str(CLONE / "docker" / "service" / "service.sh"), "status"]]
    for command in commands:
        done = subprocess.run(
            ["bash", *command],  # noqa: S607 - wherever the system has it
            cwd=start_folder,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        assert ("docker-compose 1 cannot work with Docker 29.1.3; install" in done.stderr) == refused


def test_a_folder_that_was_not_copied_well_is_told(start_folder: Path) -> None:
    env = start_folder / "worker.env"
    text = env.read_text()
    env.write_text(text.replace("\n", "\r\n"))
    assert "line ends of Windows" in start(start_folder)
    env.write_text(text.replace("UWORKER_JOB_API_PROJECT=patents", "UWORKER_JOB_API_PROJECT="))
    assert "write UWORKER_JOB_API_PROJECT=" in start(start_folder)
    env.unlink()
    assert "worker.env is missing" in start(start_folder)
    assert "[start|stop|status|logs|remove]" in start(start_folder, "begin")


def test_a_token_that_others_may_read_is_hidden_again(start_folder: Path) -> None:
    (start_folder / "worker.env").chmod(0o644)
    start(start_folder, DOCKER_HOST="unix:///nowhere.sock")
    assert stat.S_IMODE((start_folder / "worker.env").stat().st_mode) == 0o600


def test_worker_env_is_read_as_compose_reads_it(start_folder: Path) -> None:
    env = start_folder / "worker.env"
    text = (start_folder / "start_worker.sh").read_text()
    (start_folder / "read.sh").write_text(text.partition("usage=")[0] + '\nsetting "$1"\n')
    for line, value in {
        "X=plain": "plain",
        " X = with blanks  ": "with blanks",
        "export X=exported": "exported",
        "X=a # comment": "a",
        "X=a#b": "a#b",
        "X= # nothing": "",
        "X='a # b'  # comment": "a # b",
        'X="a b"  ': "a b",
        r"X='O\'Neil'": "O'Neil",
        "X='${HOME} $x'": "${HOME} $x",
        "XY=another\n#X=comment": "",
        "X=first\nX=last": "last",
    }.items():
        env.write_text(line)
        said = subprocess.run(["bash", start_folder / "read.sh", "X"], capture_output=True, text=True, check=True)  # noqa: S607
        assert said.stdout == value, line


def test_the_scripts_are_clean(tmp_path: Path) -> None:
    try:
        install("shellcheck")
    except NoEngine as error:
        pytest.skip(f"NO SHELLCHECK, so the scripts were not checked: {error}")
    command = ["shellcheck", str(CLONE / "build_snapshot.sh"), str(CLONE / "docker/worker/start_worker.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
