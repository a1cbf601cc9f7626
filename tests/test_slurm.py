"""The Slurm recipe on a real cluster: `docker/slurm/worker.sbatch`, with a bare venv, against a live service."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from job_api.client import Client
from job_api.schemas import ProjectSettings
from tests.engines import picture
from tests.plugins.fleet import Corpus
from tests.plugins.service import RunningService
from tests.serving import LOAD_SECONDS, wait_for
from tests.slurm import Cluster, NoSlurm, run_cluster

PROJECT, ENGINE = "patents", "slow"
SCRIPT = Path(__file__).parents[1] / "docker" / "slurm" / "worker.sbatch"
VENV = Path(sys.prefix)
# Of the machine that the tests run on there may be no more.
SMALL = ("--cpus-per-task=1", "--mem=4G")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    try:
        with run_cluster() as running:
            yield running
    except NoSlurm as error:
        pytest.skip(f"NO SLURM, so its recipe was not tested: {error}")


@pytest.fixture
def settings_file(service: RunningService, miniature_home: Path, tmp_path: Path) -> Path:
    """A `worker.env` as a snapshot's folder has one, and where the miniature model is."""
    path = tmp_path / "worker.env"
    settings = {
        "JOB_API_ROOT": service.root,
        "JOB_API_TOKEN": service.token("worker", PROJECT),
        "JOB_API_PROJECT": PROJECT,
        "WEIGHTS_HOME": str(miniature_home),
        "SPOOL_DIR": str(tmp_path / "spool"),
        "EVICTION": "off",
    }
    path.write_text("".join(f"UWORKER_{name}={value}\n" for name, value in settings.items()))
    path.chmod(0o600)
    return path


def add(service: RunningService, source: Path, directories: list[str], engine: str | None = None) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=source.as_uri(), engine=engine))
    admin.add_jobs(PROJECT, directories)
    return admin


def workers_in(folder: Path) -> list[psutil.Process]:
    """The workers that keep their spool below a folder, and their recognisers."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("UWORKER_SPOOL_DIR", "").startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def endless(tmp_path: Path, settings_file: Path) -> list[str]:
    """Directories below `tmp_path/source`, and an engine that an hour is too short for, however fast the machine."""
    names = [f"{number:02}" for number in range(60)]
    for name in names:
        (tmp_path / "source" / name).mkdir(parents=True)
        for place in range(60):
            # A worker recognises equal bytes once.
            content = picture(3) + f"{name}, {place}".encode()
            (tmp_path / "source" / name / f"{place:02}.png").write_bytes(content)
    program = tmp_path / "slow"
    program.write_text("sleep 1\necho C\n")
    with settings_file.open("a") as file:
        file.write(f"UWORKER_ENGINE_COMMAND=sh {program} {{image}}\nUWORKER_ENGINE_COMMAND_NAME={ENGINE}\n")
    return names


def test_an_array_of_two_does_all_directories_and_ends_when_the_queue_is_empty(
    service: RunningService, corpus: Corpus, cluster: Cluster, settings_file: Path, tmp_path: Path
) -> None:
    admin = add(service, corpus.root, corpus.directories)
    log = tmp_path / "decimer-%a.log"
    job = cluster.submit("--array=1-2", *SMALL, f"--output={log}", str(SCRIPT), str(settings_file), str(VENV))
    wait_for(lambda: cluster.ended(job), LOAD_SECONDS)
    logs = [(tmp_path / f"decimer-{number}.log").read_text() for number in (1, 2)]
    assert [(task.state, task.exit_code) for task in cluster.tasks(job)] == [("COMPLETED", "0:0")] * 2, logs
    rows = {(row["directory"], row["image"]): (row["status"], row["smiles"]) for row in admin.results(PROJECT)}
    assert rows == {key: ("recognised", smiles) for key, smiles in corpus.smiles.items()}
    assert admin.project(PROJECT).jobs.completed == len(corpus.directories)
    # Each kept to the one core that Slurm gave it.
    assert all("1 recogniser process with 1 thread (1 core)" in said for said in logs), logs
    assert workers_in(tmp_path) == []


def test_a_cancelled_task_and_one_whose_time_is_over_give_back_what_they_hold(
    service: RunningService, endless: list[str], cluster: Cluster, settings_file: Path, tmp_path: Path
) -> None:
    admin = add(service, tmp_path / "source", endless, ENGINE)
    log = tmp_path / "decimer-%a.log"
    # Slurm looks after the time every 30 s, and sends the signal up to as much too early.
    job = cluster.submit(
        "--array=1-2", *SMALL, "--time=2", f"--output={log}", str(SCRIPT), str(settings_file), str(VENV)
    )
    held = "SELECT worker_id, count(*) FROM jobs WHERE state = 'claimed' GROUP BY worker_id"
    wait_for(lambda: len(service.sql(held)) == 2 and next(admin.results(PROJECT), None) is not None, LOAD_SECONDS)
    cluster.run("scancel", f"{job}_1")
    # Long before the leases would run out.
    wait_for(lambda: len(service.sql(held)) == 1, 25)
    wait_for(lambda: cluster.ended(job), LOAD_SECONDS)
    logs = [(tmp_path / f"decimer-{number}.log").read_text() for number in (1, 2)]
    assert service.sql(held) == [], logs
    # Whom Slurm has to kill, for it did not end by itself, has another exit code.
    ends = [(task.state, task.exit_code) for task in cluster.tasks(job)]
    assert ends == [("CANCELLED", "0:0"), ("COMPLETED", "0:0")], logs
    assert admin.project(PROJECT).jobs.unfinished > 0
    outcomes = Counter(row["outcome"] for row in service.sql("SELECT outcome FROM attempts"))
    assert outcomes["released"] >= 2, outcomes
    assert set(outcomes) <= {"completed", "released"}, outcomes
    assert workers_in(tmp_path) == []
