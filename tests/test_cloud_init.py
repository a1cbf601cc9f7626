"""The file for cloud-init is what cloud-init takes, by its own schema, and its script fetches a snapshot for real."""

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import platformdirs
import pytest
import yaml
from filelock import FileLock
from jsonschema.validators import validator_for

from tests.scripted import Answer, Asked, ScriptedServer, serving
from uworker.snapshot.images import LABEL

FILE = Path(__file__).parents[1] / "docker" / "azure" / "cloud-init.yml"
BASH = "/bin/bash"
PRUNE_FORMER = "docker image prune --all --force"


@pytest.fixture(scope="module")
def cloud_schema() -> dict[str, Any]:
    """Debian's cloud-init says what a cloud-config may be; its package is fetched, and not installed."""
    kept = platformdirs.user_cache_path("decimer-jobs-tests") / "cloud-config.schema.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            _fetch_cloud_schema(kept)
    schema: dict[str, Any] = json.loads(kept.read_text())
    return schema


def _fetch_cloud_schema(kept: Path) -> None:
    folder = kept.with_suffix(".package")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        for command in (
            ["apt-get", "download", "cloud-init"],
            ["sh", "-c", "dpkg-deb --extract cloud-init_*.deb root"],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode != 0:
                pytest.skip(f"NO SCHEMA of cloud-init, so its recipe was not tested: {done.stderr.strip()[-300:]}")
        [found] = folder.glob("root/usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json")
        found.rename(kept)
    except FileNotFoundError as error:
        pytest.skip(f"NO SCHEMA of cloud-init, so its recipe was not tested: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cloud_config() -> dict[str, Any]:
    text = FILE.read_text()
    assert text.startswith("#cloud-config\n")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def written(path: str) -> str:
    """What cloud-init writes to a file of the VM."""
    [content] = [entry["content"] for entry in cloud_config()["write_files"] if entry["path"] == path]
    return str(content)


def test_cloud_init_takes_its_file(cloud_schema: dict[str, Any]) -> None:
    validator = validator_for(cloud_schema)(cloud_schema)
    assert [error.message for error in validator.iter_errors(cloud_config())] == []
    slips: list[Callable[[dict[str, Any]], object]] = [
        lambda it: it["write_files"][0].update(mode="0644"),
        lambda it: it["write_files"][0].pop("path"),
        lambda it: it.update(packages="docker.io"),
        lambda it: it.update(package_update="perhaps"),
        lambda it: it["runcmd"].append({"systemctl": "start"}),
    ]
    for slip in slips:
        broken = cloud_config()
        slip(broken)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(broken)


def test_every_boot_starts_the_worker_and_every_end_drains_it() -> None:
    unit = written("/etc/systemd/system/decimer-worker.service")
    lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    assert lines["ExecStartPre"] == "/usr/local/sbin/fetch-snapshot"
    assert lines["ExecStart"] == "/bin/bash /opt/decimer/snapshot/start_worker.sh"
    assert lines["ExecStop"] == f"{lines['ExecStart']} stop"
    assert lines["ExecStartPost"].removeprefix("-/usr/bin/") == f"{PRUNE_FORMER} --filter label={LABEL}.snapshot"
    # Stopped before Docker is, for it is started after it.
    assert "docker.service" in lines["After"].split()
    assert lines["WantedBy"] == "multi-user.target"
    assert ["systemctl", "enable", "--now", "--no-block", "decimer-worker.service"] in cloud_config()["runcmd"]


class Cloud:
    """A metadata service and a blob store in one server, and the fetching script of a VM beside them."""

    TOKEN = "eyJ0eXAi.of-the-vm"

    def __init__(self, tmp_path: Path) -> None:
        self.home = tmp_path / "opt"
        self.blob: bytes | None = None
        self.refusal: int | None = None
        self._tmp_path = tmp_path

    def answer(self, asked: Asked) -> Answer:
        if asked.path == "/metadata/identity/oauth2/token":
            assert asked.headers["Metadata"] == "true"
            assert asked.query["resource"] == "https://storage.azure.com/"
            return Answer(body={"access_token": self.TOKEN, "token_type": "Bearer"})
        if asked.authorization != f"Bearer {self.TOKEN}":
            return Answer(401)
        if self.refusal is not None or self.blob is None:
            return Answer(self.refusal or 404)
        etag = f'"{hash(self.blob)}"'
        if asked.headers["If-None-Match"] == etag:
            return Answer(304)
        return Answer(body=self.blob, headers={"ETag": etag})

    def put(self, name: str, said: str, *, mode: int = 0o600) -> None:
        """Upload a snapshot's folder as the documentation says."""
        folder = self._tmp_path / name
        folder.mkdir()
        (folder / "start_worker.sh").write_text(f"echo {said}\n")
        (folder / "worker.env").write_text("UWORKER_JOB_API_TOKEN=dj_secret\n")
        (folder / "worker.env").chmod(mode)
        packed = self._tmp_path / "packed.tar"
        with tarfile.open(packed, "w") as archive:
            archive.add(folder, name)
        self.blob = packed.read_bytes()

    def fetch(self, server: ScriptedServer) -> subprocess.CompletedProcess[str]:
        conf = self._tmp_path / "worker.conf"
        conf.write_text(f"SNAPSHOT_URL={server.root}/decimer/snapshot.tar\n")
        script = written("/usr/local/sbin/fetch-snapshot")
        for there, here in {
            "/etc/decimer-worker.conf": str(conf),
            "/opt/decimer": str(self.home),
            "http://169.254.169.254": server.root,
            "--retry 8": "--retry 0",
        }.items():
            assert there in script
            script = script.replace(there, here)
        return subprocess.run([BASH, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    @property
    def said(self) -> str:
        """What the snapshot's start script says."""
        return (self.home / "snapshot" / "start_worker.sh").read_text()


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


@pytest.fixture
def blob_store(cloud: Cloud) -> Iterator[ScriptedServer]:
    with serving(cloud.answer) as server:
        yield server


def test_a_vm_fetches_the_snapshot_with_its_identity_and_again_only_when_it_has_changed(
    cloud: Cloud, blob_store: ScriptedServer
) -> None:
    cloud.put("decimer_snapshot_patents_261121", "one", mode=0o644)
    fetched = cloud.fetch(blob_store)
    assert (fetched.returncode, fetched.stdout, fetched.stderr) == (0, "", "")
    assert cloud.said == "echo one\n"
    assert (cloud.home / "snapshot" / "worker.env").stat().st_mode & 0o777 == 0o600
    assert cloud.home.stat().st_mode & 0o777 == 0o700
    marker = cloud.home / "snapshot" / "marker"
    marker.touch()
    assert cloud.fetch(blob_store).returncode == 0
    assert marker.exists(), "it was fetched again"
    cloud.put("decimer_snapshot_patents_261122", "two")
    assert cloud.fetch(blob_store).returncode == 0
    assert cloud.said == "echo two\n"
    # Of a gigabyte and more none is left over.
    assert {path.name for path in cloud.home.iterdir()} == {"snapshot", "etag"}


@pytest.mark.parametrize(
    ("status", "advice"), [(403, "Storage Blob Data Reader"), (404, "upload the snapshot"), (409, "HTTP 409")]
)
def test_a_vm_that_gets_no_snapshot_says_why_and_goes_on_with_the_one_it_has(
    cloud: Cloud, blob_store: ScriptedServer, status: int, advice: str
) -> None:
    cloud.refusal = status
    refused = cloud.fetch(blob_store)
    assert refused.returncode == 1
    assert advice in refused.stderr
    assert Cloud.TOKEN not in refused.stderr + refused.stdout
    assert len(refused.stderr.splitlines()) == 1
    cloud.refusal = None
    cloud.put("decimer_snapshot_patents_261121", "one")
    assert cloud.fetch(blob_store).returncode == 0
    cloud.refusal = status
    assert cloud.fetch(blob_store).returncode == 0
    assert cloud.said == "echo one\n"


NOT_UNPACKED = r"tar: .*\nfetch-snapshot: \S+ cannot be unpacked; tar says above why\n"
EMPTY_TAR = bytes(tarfile.RECORDSIZE)
NO_SNAPSHOTS = {b"<html>no tar</html>": NOT_UNPACKED, b"": NOT_UNPACKED, EMPTY_TAR: "there is no snapshot's folder in "}


@pytest.mark.parametrize("content", NO_SNAPSHOTS, ids=["html", "nothing", "an empty tar"])
def test_what_is_no_snapshot_does_not_replace_one(cloud: Cloud, blob_store: ScriptedServer, content: bytes) -> None:
    cloud.blob = content
    refused = cloud.fetch(blob_store)
    assert refused.returncode == 1
    assert re.search(NO_SNAPSHOTS[content], refused.stderr), refused.stderr
    cloud.put("decimer_snapshot_patents_261121", "one")
    assert cloud.fetch(blob_store).returncode == 0
    cloud.blob = content
    assert cloud.fetch(blob_store).returncode == 0
    assert cloud.said == "echo one\n"
