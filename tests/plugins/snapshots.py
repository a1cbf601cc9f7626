"""A snapshot built by the real command, and a machine with an empty Docker engine that starts its workers."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from job_api.client import Client
from job_api.schemas import NewToken, NewUser, ProjectSettings, Role
from tests.containers.engine import Engine, run_engine
from tests.containers.workers import load_dependencies
from tests.plugins.model import DrawnSamples
from tests.serving import Serving, wait_for
from uworker.prepared.files import Prepared
from uworker.snapshot.images import ImageRequest
from uworker.weights import find_weights

CLONE = Path(__file__).parents[2]
PROJECT = "patents"
SUBMITTERS_PASSWORD = "a password of a submitter"


@dataclass
class Snapshot:
    """What `build_snapshot.sh` has made, and said; with the service that it asked."""

    folder: Path
    said: str
    service: Serving
    admin: Client
    engine: Engine
    samples: DrawnSamples
    source: Path

    @property
    def directories(self) -> list[str]:
        return sorted({item.directory for item in self.samples.items})

    @property
    def image(self) -> str:
        return self.images[0]

    @property
    def images(self) -> list[str]:
        """The images that its compose file names."""
        text = (self.folder / "docker-compose.yml").read_text()
        return [line.split('"')[1] for line in text.splitlines() if "image: " in line]

    @property
    def token(self) -> str:
        return settings_of(self.folder)["UWORKER_JOB_API_TOKEN"]

    def add_project(self, name: str) -> None:
        """A further project with the same directories."""
        self.admin.put_project(name, ProjectSettings(source=self.source.as_uri()))
        self.admin.add_jobs(name, self.directories)

    def fill(self, project: str, copies: int) -> None:
        """A project that takes a while: the directories several times."""
        source = self.source.parent / project
        for number in range(copies):
            shutil.copytree(self.source, source / f"{number:02}")
            for image in (source / f"{number:02}").rglob("*.*"):
                if image.is_file():
                    # A worker recognises equal bytes once.
                    image.write_bytes(image.read_bytes() + f"{number}".encode())
        source.chmod(0o755)
        self.admin.put_project(project, ProjectSettings(source=source.as_uri()))
        names = [f"{number:02}/{directory}" for number in range(copies) for directory in self.directories]
        self.admin.add_jobs(project, names)

    def worker_token(self, project: str | None) -> str:
        """A further token for workers, of one project or of all."""
        return self.admin.new_token(NewToken(name="another", role=Role.WORKER, project=project)).token

    def assert_filled_done(self, project: str, copies: int) -> None:
        """All jobs of such a project are completed, and each image has the SMILES that was drawn."""
        assert self.admin.project(project).jobs.completed == copies * len(self.directories)
        right = {(item.directory, item.image): item.smiles for item in self.samples.items}
        rows = list(self.admin.results(project))
        assert len(rows) == copies * len(right)
        assert all(row["smiles"] == right[row["directory"][3:], row["image"]] for row in rows)

    def assert_done(self, project: str) -> None:
        """All jobs of a project are completed, and each image has the SMILES that was drawn."""
        jobs = self.admin.project(project).jobs
        assert (jobs.completed, jobs.unfinished, jobs.failed) == (len(self.directories), 0, 0)
        rows = {(row["directory"], row["image"]): row for row in self.admin.results(project)}
        right = {(item.directory, item.image): item.smiles for item in self.samples.items}
        assert {key: row["smiles"] for key, row in rows.items()} == right

    def wait_until_done(self, project: str, seconds: float = 180) -> None:
        """Wait until a project has no unfinished job, and look at what came out."""
        wait_for(lambda: self.admin.project(project).jobs.unfinished == 0, seconds)
        self.assert_done(project)


def settings_of(folder: Path) -> dict[str, str]:
    """What worker.env says."""
    lines = (folder / "worker.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@dataclass
class Machine:
    """A machine to start workers on, and the folders that were copied to it."""

    engine: Engine
    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)

    def copy(self, snapshot: Snapshot, name: str = "", **changes: str) -> Path:
        """Copy the snapshot's folder, with other lines in worker.env; its large file is linked."""
        folder = self.home / (name or f"{len(self.folders)}") / snapshot.folder.name
        shutil.copytree(snapshot.folder, folder, copy_function=_copy_or_link)
        set_in(folder, **changes)
        self.folders.append(folder)
        return folder

    def script(self, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run start_worker.sh of a folder to its end."""
        return subprocess.run(
            ["bash", str(folder / "start_worker.sh"), *arguments],  # noqa: S607 - wherever the system has it
            env=self.engine.environment | self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, folder: Path, **environment: str) -> str:
        """Start the worker of a folder; returns what the script said."""
        done = self.script(folder, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    def refused(self, folder: Path, *arguments: str, **environment: str) -> str:
        """What the script says, which does not start a worker; no traceback, and nothing that runs is left."""
        done = self.script(folder, *arguments, **environment)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert all(line.startswith("start_worker.sh: ") for line in done.stderr.splitlines()), done.stderr
        return done.stderr

    def containers(self, *options: str) -> list[str]:
        return self.engine.docker("ps", "--quiet", "--no-trunc", *options).stdout.split()

    def inspect(self, container: str) -> dict[str, Any]:
        [found] = json.loads(self.engine.docker("inspect", container).stdout)
        shown: dict[str, Any] = found
        return shown

    def clear(self) -> None:
        """Remove all containers and volumes; the image stays."""
        if containers := self.containers("--all"):
            self.engine.docker("rm", "--force", "--volumes", *containers)
        if volumes := self.engine.docker("volume", "ls", "--quiet").stdout.split():
            self.engine.docker("volume", "rm", *volumes)


def _copy_or_link(source: str, target: str) -> None:
    if source.endswith("docker_image"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def set_in(folder: Path, **changes: str) -> None:
    """Change lines of worker.env as somebody with an editor does."""
    file = folder / "worker.env"
    lines = file.read_text().splitlines()
    for name, value in changes.items():
        lines = [f"{name}={value}" if line.startswith(f"{name}=") else line for line in lines]
        if f"{name}={value}" not in lines:
            lines.append(f"{name}={value}")
    file.write_text("\n".join(lines) + "\n")


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, as those of pytest may not be."""
    folder = Path(tempfile.mkdtemp(prefix="dj-snapshot-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def built_snapshot(
    engine: Engine, samples: DrawnSamples, weights: Path, *options: str, prepared: Prepared | None = None
) -> Iterator[Snapshot]:
    """A snapshot of the project and jobs of the sample directories, by the real command; and the service it asks.

    As shipped, unless a prepared model lies beside the weights: none can be made of the miniature model.
    """
    with open_folder() as home:
        data, source = home / "data", home / "samples of a project"
        data.mkdir()
        shutil.copytree(samples.root, source)
        source.chmod(0o755)
        jobs_file, config = home / "dirs.txt", home / "my.conf"
        names = sorted({item.directory for item in samples.items})
        jobs_file.write_text("".join(f"./{name}\n" if name.startswith("#") else f"{name}\n" for name in names))
        # Short, for what a killed worker held is only then given to others.
        with Serving(data, lease_seconds=20, heartbeat_seconds=3, sweep_seconds=1) as service:
            admin = service.client()
            admin.put_user("ada", NewUser(password=SUBMITTERS_PASSWORD, role=Role.SUBMIT))
            config.touch(0o600)
            config.write_text(
                f"JOB_API_ROOT={service.root}\nJOB_API_USERNAME=ada\nJOB_API_PASSWORD={SUBMITTERS_PASSWORD}\n"
            )
            command = [str(CLONE / "build_snapshot.sh"), PROJECT, str(config), str(jobs_file), *options]
            command += [] if prepared is not None else ["--as-shipped"]
            command += ["--source", str(source), "--weights", str(weights), "--output", str(home / "out")]
            # What the images need, of which the small one is for an engine apart, is kept, and found as built before.
            kinds = [find_weights(weights, hand_drawn=False)] + ([None] if "--engine-apart" in options else [])
            for baked_in in kinds:
                load_dependencies(engine, ImageRequest(PROJECT, PROJECT, CLONE, baked_in, prepared=prepared))
            done = engine.run(*command, timeout_seconds=1500)
            [folder] = (home / "out").iterdir()
            yield Snapshot(folder, done.stdout, service, admin, engine, samples, source)


@pytest.fixture(scope="module")
def snapshot(docker_engine: Engine, samples: DrawnSamples, miniature_home: Path) -> Iterator[Snapshot]:
    """A snapshot with the miniature model."""
    with built_snapshot(docker_engine, samples, miniature_home) as built:
        yield built


@pytest.fixture(scope="module")
def machine_of_module(docker_engine: Engine) -> Iterator[Machine]:
    with open_folder() as home, run_engine(home / "engine") as engine:
        yield Machine(engine, home / "folders")


@pytest.fixture
def machine(machine_of_module: Machine) -> Iterator[Machine]:
    """A machine with Docker and no container; its engine has the image when a test before has loaded it."""
    yield machine_of_module
    machine_of_module.clear()
