"""The worker's image, built and run in a real engine: what it can do with few rights, and what is in it."""

import json
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from job_api.client import Client
from job_api.schemas import JobState, ProjectSettings
from tests.containers.engine import Engine
from tests.containers.workers import REPOSITORY, SNAPSHOT
from tests.plugins.fleet import Corpus
from tests.plugins.model import DrawnSamples
from tests.plugins.replica import Replica
from tests.plugins.service import RunningService
from tests.plugins.snapshots import built_snapshot
from tests.serving import wait_for
from uworker.prepared.files import Prepared, find_prepared
from uworker.snapshot.images import BuildError, BuiltImage, ImageRequest, build_image
from uworker.snapshot.tree import CODE, RECIPE, code_files
from uworker.weights import Weights, find_weights

PROJECT = "patents"
WAIT_SECONDS = 600.0
HARDENED = (
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:size=256m",
    "--tmpfs=/run/uworker:size=1m",
    "--network=host",
)

RunWorker = Callable[..., str]


@pytest.fixture
def run_worker(
    docker_engine: Engine, worker_image: BuiltImage, service: RunningService, corpus: Corpus, tmp_path: Path
) -> Iterator[RunWorker]:
    """Starts containers of an image, which see the samples: `run_worker(*options, command=("--once",))`."""
    data = tmp_path / "data"
    shutil.copytree(corpus.root, data)
    # Not the user of the container owns it.
    data.chmod(0o755)
    environment = tmp_path / "worker.env"
    environment.touch(mode=0o600)
    environment.write_text(
        f"UWORKER_JOB_API_ROOT={service.root}\nUWORKER_JOB_API_TOKEN={service.token('worker')}\nUWORKER_EVICTION=off\n"
    )
    names: list[str] = []

    def start(*options: str, image: BuiltImage = worker_image, command: tuple[str, ...] = ()) -> str:
        name = f"worker-{uuid.uuid4().hex[:8]}"
        names.append(name)
        mounts = (f"--volume={data}:/data:ro", f"--volume={name}:/var/lib/uworker")
        given = (f"--name={name}", f"--env-file={environment}", *HARDENED, *mounts, *options)
        docker_engine.docker("run", "--detach", *given, image.tag, *command)
        return name

    yield start
    for name in names:
        docker_engine.docker("rm", "--force", name)
        docker_engine.docker("volume", "rm", name)


def submit(service: RunningService, *directories: str) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source="file:///data"))
    admin.add_jobs(PROJECT, list(directories))
    return admin


def wait_for_end(engine: Engine, name: str) -> int:
    """The exit code of a container."""
    return int(engine.docker("wait", name, timeout_seconds=WAIT_SECONDS).stdout)


def logs(engine: Engine, name: str) -> str:
    said = engine.docker("logs", name)
    return said.stdout + said.stderr


def test_it_recognises_the_samples_with_no_rights_at_all(
    docker_engine: Engine,
    worker_image: BuiltImage,
    run_worker: RunWorker,
    service: RunningService,
    corpus: Corpus,
    miniature_home: Path,
) -> None:
    admin = submit(service, *corpus.directories)
    name = run_worker(command=("--once",))
    assert wait_for_end(docker_engine, name) == 0, logs(docker_engine, name)
    rows = list(admin.results(PROJECT))
    assert Counter((row["directory"], row["image"]) for row in rows) == Counter(corpus.smiles.keys())
    assert {(row["directory"], row["image"]): row["smiles"] for row in rows} == corpus.smiles
    weights = find_weights(miniature_home, hand_drawn=False)
    assert weights is not None
    assert {row["weights_sha256"] for row in rows} == {weights.sha256}
    assert {row["snapshot"] for row in rows} == {worker_image.snapshot}
    said = logs(docker_engine, name)
    assert "(verified)" in said, "the digest is pinned in the image"
    # What it cannot write it would tell.
    assert "WARNING" not in said, said
    [worker] = admin.workers()
    assert worker.version not in (None, "unknown")


def test_with_a_prepared_model_it_recognises_without_tensorflow(
    docker_engine: Engine,
    prepared_worker_image: BuiltImage,
    run_worker: RunWorker,
    service: RunningService,
    corpus: Corpus,
    samples: DrawnSamples,
    prepared_replica: Replica,
) -> None:
    prepared_home = prepared_replica.home
    weights, prepared = find_weights(prepared_home, hand_drawn=False), find_prepared(prepared_home, hand_drawn=False)
    assert weights is not None
    assert prepared is not None
    admin = submit(service, *corpus.directories)
    name = run_worker("--env=UWORKER_LOG_LEVEL=DEBUG", image=prepared_worker_image, command=("--once",))
    assert wait_for_end(docker_engine, name) == 0, logs(docker_engine, name)
    rows = list(admin.results(PROJECT))
    assert Counter((row["directory"], row["image"]) for row in rows) == Counter(corpus.smiles.keys())
    # As the shipped model says where TensorFlow is; of some images it says nothing.
    found = {(row["directory"], row["image"]): row["smiles"] or "" for row in rows}
    shipped = zip(samples.items, prepared_replica.answers["printed"], strict=False)
    assert all(found[item.directory, item.image] == answer.smiles for item, answer in shipped)
    assert len(set(found.values())) > 5, "so that this says something"
    assert {row["status"] for row in rows} <= {"recognised", "engine_error"}
    assert {(row["weights_sha256"], row["prepared"]) for row in rows} == {(weights.sha256, prepared.sha256)}
    assert {row["weights"] for row in rows} == {weights.name}
    said = logs(docker_engine, name)
    assert f"sha256 {weights.sha256} (unverified)" in said
    # What ONNX Runtime warns of would stand there, too.
    assert [line for line in said.splitlines() if "WARNING" in line or "warn" in line.lower()] == [], said

    # Nothing of what it was made of, and of what that needs, is there; and it is told who wants that.
    assert_holds_the_prepared_model_alone(docker_engine, prepared_worker_image.tag, prepared)
    assert prepared_worker_image.size_bytes < 900_000_000
    for options, refused in ({}, 0), ({"prepared": False}, 4):
        admin.put_project(PROJECT, ProjectSettings(engine_options=options))
        name = run_worker(f"--env=UWORKER_JOB_API_PROJECT={PROJECT}", image=prepared_worker_image, command=("check",))
        assert wait_for_end(docker_engine, name) == refused
    assert "build the snapshot with --as-shipped" in logs(docker_engine, name)


def assert_holds_the_prepared_model_alone(engine: Engine, image: str, prepared: Prepared) -> None:
    look = "from importlib.util import find_spec; "
    look += "print([n for n in ('tensorflow', 'DECIMER', 'keras', 'onnx', 'scipy', 'onnxruntime') if find_spec(n)])"
    ask = ("run", "--rm", "--network=none", "--entrypoint=python", image, "-c", look)
    assert engine.docker(*ask).stdout.strip() == "['onnxruntime']"
    find = ("run", "--rm", "--network=none", "--entrypoint=find", image, "/opt/weights")
    files = engine.docker(*find, "-type", "f", "-printf", "%P\\n").stdout.split()
    assert sorted(files) == [
        f"DECIMER-V2/DECIMER_prepared/{name}" for name in ("encoder.onnx", "model.json", "report.json", "step.onnx")
    ]
    labels = inspected(engine, image)["Config"]["Labels"]
    assert labels["decimer-jobs.prepared"] == prepared.sha256
    assert labels["decimer-jobs.weights-sha256"] == prepared.about.weights_sha256


@pytest.mark.usefixtures("prepared_worker_image")  # whose layers it has
def test_a_snapshot_holds_the_prepared_model_unless_it_is_told_otherwise(
    docker_engine: Engine, samples: DrawnSamples, prepared_home: Path
) -> None:
    prepared = find_prepared(prepared_home, hand_drawn=False)
    assert prepared is not None
    with built_snapshot(docker_engine, samples, prepared_home, prepared=prepared) as built:
        assert f"made before: {prepared.directory}, sha256 {prepared.sha256}" in built.said
        assert_holds_the_prepared_model_alone(docker_engine, built.image, prepared)


def test_its_user_owns_a_fresh_spool_and_nothing_else(docker_engine: Engine, run_worker: RunWorker) -> None:
    name = run_worker("--entrypoint=sh", command=("-c", "id -u && touch /var/lib/uworker/a && touch /opt/a"))
    assert wait_for_end(docker_engine, name) == 1
    said = logs(docker_engine, name)
    assert said.startswith("10001\n")
    assert "/var/lib/uworker/a" not in said
    assert "'/opt/a': Read-only file system" in said


def health(engine: Engine, name: str) -> str:
    return engine.docker("inspect", "--format={{.State.Health.Status}}", name).stdout.strip()


def test_it_is_healthy_while_the_service_is_away_and_unhealthy_when_it_is_stuck(
    docker_engine: Engine, run_worker: RunWorker
) -> None:
    often = ("--health-cmd=uworker-alive 7", "--health-interval=1s", "--health-retries=1", "--health-start-period=0s")
    name = run_worker("--env=UWORKER_JOB_API_ROOT=http://127.0.0.1:9", *often)
    wait_for(lambda: health(docker_engine, name) == "healthy", WAIT_SECONDS)
    ask = ("exec", name, "uworker", "state")
    waits = "starting, the job service at http://127.0.0.1:9 cannot be reached"
    wait_for(lambda: waits in docker_engine.docker(*ask, check=False).stdout, WAIT_SECONDS)
    assert docker_engine.docker(*ask, check=False).returncode == 1
    docker_engine.docker("kill", "--signal=STOP", name)
    wait_for(lambda: health(docker_engine, name) == "unhealthy", WAIT_SECONDS)
    docker_engine.docker("kill", "--signal=CONT", name)
    wait_for(lambda: health(docker_engine, name) == "healthy", WAIT_SECONDS)
    began = time.monotonic()
    docker_engine.docker("stop", "--time=60", name)
    assert time.monotonic() - began < 20
    assert docker_engine.docker("inspect", "--format={{.State.ExitCode}}", name).stdout.strip() == "0"


def test_the_image_itself_says_how_its_health_is_looked_up(docker_engine: Engine, worker_image: BuiltImage) -> None:
    config = inspected(docker_engine, worker_image.tag)["Config"]
    assert config["Healthcheck"]["Test"] == ["CMD", "uworker-alive"]
    assert (config["User"], config["StopSignal"]) == ("10001:10001", "SIGTERM")


def test_the_memory_limit_is_obeyed_and_a_recogniser_killed_for_it_costs_its_image_alone(
    docker_engine: Engine, run_worker: RunWorker, service: RunningService, corpus: Corpus, tmp_path: Path
) -> None:
    # Decoded it is 190 MB, and floating-point numbers of it are several times that.
    huge = tmp_path / "data" / corpus.directories[0] / "huge.png"
    Image.new("RGB", (7_900, 7_900), "white").save(huge)
    with Image.open(huge) as image:
        image.paste((0, 0, 0), (100, 100, 4_000, 4_000))
        image.save(huge)
    admin = submit(service, corpus.directories[0])
    limits = ("--memory=1200m", "--memory-swap=1200m", "--env=UWORKER_THREADS_PER_PROCESS=1")
    name = run_worker(*limits, command=("--once",))
    assert wait_for_end(docker_engine, name) == 0, logs(docker_engine, name)
    said = logs(docker_engine, name)
    assert "possible out of memory" in said
    assert "1 recogniser process with 1 thread (1.3 GB of memory bear no more)" in said
    rows = {row["image"]: row for row in admin.results(PROJECT)}
    assert rows.pop("huge.png")["status"] == "crashed"
    assert {row["status"] for row in rows.values()} == {"recognised"}
    [job] = admin.jobs(PROJECT)
    assert job.state is JobState.COMPLETED


def inspected(engine: Engine, image: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(engine.docker("image", "inspect", image).stdout)[0]
    return found


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What an image is built of, as in the working tree, and no repository."""
    root = tmp_path / "clone"
    for place in (*CODE, *RECIPE):
        source = REPOSITORY / place
        files = [REPOSITORY / path for path in code_files(REPOSITORY)] if place in CODE else [source]
        if source.is_dir() and place not in CODE:
            files = [path for path in source.rglob("*") if path.is_file()]
        for file in files:
            target = root / file.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return root


@pytest.fixture
def weights(miniature_home: Path) -> Weights:
    found = find_weights(miniature_home, hand_drawn=False)
    assert found is not None
    return found


def test_a_change_of_the_code_changes_the_code_alone(
    docker_engine: Engine,
    worker_image: BuiltImage,
    clone: Path,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_engine.address)
    # For this step alone: the others are not run again, or it would keep them from the network.
    monkeypatch.setenv("HTTPS_PROXY", "http://user:a-secret-of-the-proxy@127.0.0.1:9")
    monkeypatch.setenv("UWORKER_JOB_API_TOKEN", "dj_a-secret-token")
    with (clone / "uworker" / "__init__.py").open("a") as file:
        file.write("\nCHANGED = 'here'\n")
    said: list[str] = []
    built = build_image(ImageRequest("decimer-tests:changed", "other", clone, weights), said.append)
    assert [line for line in said if "built before" in line] == said[:2], said
    assert (built.snapshot, built.revision, built.dirty) == ("other (unknown)", "unknown", False)
    before, after = (inspected(docker_engine, image)["RootFS"]["Layers"] for image in (worker_image.tag, built.tag))
    different = [place for place, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    # Above the code there are only the two scripts.
    assert min(different) == len(before) - 2
    ask = (
        "run",
        "--rm",
        "--network=none",
        "--entrypoint=python",
        built.tag,
        "-c",
        "import uworker; print(uworker.CHANGED)",
    )
    assert docker_engine.docker(*ask).stdout.strip() == "here"
    told = docker_engine.docker("history", "--no-trunc", built.tag).stdout + json.dumps(
        inspected(docker_engine, built.tag)
    )
    assert "secret" not in told


def test_size_and_labels_are_told(docker_engine: Engine, worker_image: BuiltImage, weights: Weights) -> None:
    assert [layer.what for layer in worker_image.layers] == [
        "debian:bookworm-slim",
        "Python",
        "dependencies",
        "weights",
        "code",
    ]
    assert abs(sum(layer.size_bytes for layer in worker_image.layers) - worker_image.size_bytes) < 100_000
    sizes = {layer.what: layer.size_bytes for layer in worker_image.layers}
    assert sizes["dependencies"] < 1_500_000_000, "neither CUDA nor what slim.sh takes out"
    assert sizes["code"] < 5_000_000
    labels = inspected(docker_engine, worker_image.tag)["Config"]["Labels"]
    assert labels["org.opencontainers.image.revision"] == worker_image.revision
    assert labels["decimer-jobs.changed"] == str(worker_image.dirty).lower()
    assert labels["decimer-jobs.weights-sha256"] == weights.sha256
    assert labels["decimer-jobs.snapshot"] == worker_image.snapshot
    assert worker_image.snapshot.startswith(f"{SNAPSHOT} ({worker_image.revision[:7]}")


def test_nothing_of_the_machine_that_built_it_is_in_it(docker_engine: Engine, worker_image: BuiltImage) -> None:
    strangers = "-name ca-bundle* -o -path /build -o -name pip -o -name uv -o -name *.conf -path *decimer*"
    ask = ("run", "--rm", "--network=none", "--user=0", "--entrypoint=find", worker_image.tag, "/", "-xdev")
    assert docker_engine.docker(*ask, "(", *strangers.split(), ")").stdout.split() == []


def test_without_an_engine_it_is_small(docker_engine: Engine, small_worker_image: BuiltImage) -> None:
    assert [layer.what for layer in small_worker_image.layers] == [
        "debian:bookworm-slim",
        "Python",
        "dependencies",
        "code",
    ]
    assert small_worker_image.size_bytes < 400_000_000
    ask = ("run", "--rm", "--network=none", "--entrypoint=python", small_worker_image.tag, "-c")
    docker_engine.docker(*ask, "import uworker.worker, boto3, obstore")
    assert "No module named 'tensorflow'" in docker_engine.docker(*ask, "import tensorflow", check=False).stderr


def test_a_build_that_fails_shows_what_the_builder_said_last(
    docker_engine: Engine, worker_image: BuiltImage, clone: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_engine.address)
    with (clone / "docker" / "worker" / "Dockerfile").open("a") as file:
        file.write("USER 0\nRUN echo it went wrong here && exit 7\n")
    said: list[str] = []
    with pytest.raises(BuildError, match="its last lines are above"):
        build_image(ImageRequest("decimer-tests:failed", "other", clone, weights), said.append)
    assert "  it went wrong here" in said
    assert any("7" in line for line in said[-2:])


def test_without_docker_or_its_engine_it_says_so(
    clone: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    request = ImageRequest("decimer-tests:none", "other", clone, weights)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    if shutil.which("docker"):
        with pytest.raises(BuildError, match="the Docker engine does not answer"):
            build_image(request, print)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="docker is not installed here"):
        build_image(request, print)
