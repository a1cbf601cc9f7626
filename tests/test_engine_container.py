"""Worker and engine in two containers: `build_snapshot.sh --engine-apart` and start_worker.sh.

The tests share one build, and its engine is the machine, too, without the images that were built: that a machine that
has nothing loads a snapshot is shown in test_start_worker.py. They run in their order: the first loads the images.
"""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.containers.compose import compose_plugin
from tests.containers.engine import Engine, NoEngine
from tests.plugins.model import DrawnSamples
from tests.plugins.snapshots import PROJECT, Machine, Snapshot, built_snapshot, open_folder
from tests.serving import wait_for
from uworker.snapshot.images import BuiltImage

pytestmark = pytest.mark.timeout(1800)

WAIT_SECONDS = 400.0
FEW = {"UWORKER_PROCESSES": "1", "UWORKER_THREADS_PER_PROCESS": "2"}


@pytest.fixture(scope="module")
def apart(
    docker_engine: Engine,
    samples: DrawnSamples,
    miniature_home: Path,
    worker_image: BuiltImage,
    small_worker_image: BuiltImage,
) -> Iterator[Snapshot]:
    """A snapshot whose engine is a container of its own; the two images bring the dependencies of earlier runs."""
    with built_snapshot(docker_engine, samples, miniature_home, "--engine-apart") as built:
        yield built


@pytest.fixture
def machine(apart: Snapshot) -> Iterator[Machine]:
    """A machine with no container."""
    with open_folder() as home:
        made = Machine(apart.engine, home)
        yield made
        made.clear()


def container(machine: Machine, service: str) -> str:
    [found] = machine.containers("--all", f"--filter=label=com.docker.compose.service={service}")
    return found


def log(machine: Machine, service: str) -> str:
    said = machine.engine.docker("logs", container(machine, service))
    return said.stdout + said.stderr


def test_a_new_machine_gets_all_results_right_and_the_engine_has_no_token(apart: Snapshot, machine: Machine) -> None:
    assert re.findall(r"^\[(\d)/7\] ", apart.said, re.MULTILINE) == list("1234567")
    folder = machine.copy(apart, **FEW, WORKER_MEMORY_LIMIT="3g")
    references = ("--filter=reference=decimer-worker", "--filter=reference=decimer-engine")
    images = ("images", *references, "--format={{.Repository}}:{{.Tag}}")
    built = machine.engine.docker(*images).stdout.split()
    # Of the snapshot, and of the project; a snapshot of other tests may lie in this engine, too.
    assert {*apart.images, f"decimer-worker:{PROJECT}", f"decimer-engine:{PROJECT}"} <= set(built)
    machine.engine.docker("rmi", *built)
    said = machine.start(folder)
    assert "loading the image" in said
    assert set(machine.engine.docker(*images).stdout.split()) == set(apart.images)
    assert len(apart.images) == 2
    assert "engine apart at /run/engine/engine.sock: 1 recogniser process" in said
    apart.wait_until_done(PROJECT)
    assert len(machine.containers()) == 2
    worker, engine = (machine.inspect(container(machine, service)) for service in ("worker", "engine"))
    assert apart.token in str(worker)
    assert apart.token not in str(engine)
    assert engine["HostConfig"]["NetworkMode"] == "none"
    assert (engine["HostConfig"]["Memory"], worker["HostConfig"]["Memory"]) == (3 << 30, 2 << 30)
    assert (engine["HostConfig"]["MemorySwap"], worker["HostConfig"]["MemorySwap"]) == (3 << 30, 2 << 30)
    for key in ("ReadonlyRootfs", "CapDrop", "SecurityOpt", "Init", "LogConfig"):
        assert engine["HostConfig"][key] == worker["HostConfig"][key]
        assert engine["HostConfig"][key]
    assert engine["Config"]["User"] == worker["Config"]["User"]
    shared = {m["Destination"] for m in worker["Mounts"]} & {m["Destination"] for m in engine["Mounts"]}
    assert shared == {"/run/engine"}
    how, *health_check = engine["Config"]["Healthcheck"]["Test"]
    assert (how, health_check[0]) == ("CMD", "uworker-alive")
    machine.engine.docker("exec", container(machine, "engine"), *health_check)
    said = machine.script(folder, "status").stdout
    assert re.search("^engine: (starting|healthy), was started again 0 times$", said, re.MULTILINE)
    assert ": waiting, " in said
    for option in ("--tail=50", "--timestamps"):
        said = machine.script(folder, "logs", option).stdout
        assert re.search(r"^engine \| .*listening at /run/engine/engine.sock", said, re.MULTILINE)
        assert re.search(r"^worker \| .*connected to the engine apart", said, re.MULTILINE)
    machine.engine.docker("stop", "--time=10", container(machine, "engine"))
    assert "the engine does not run; it ended with exit code 0" in machine.refused(folder, "status")


def test_an_engine_that_is_killed_costs_no_image_and_no_lease(apart: Snapshot, machine: Machine) -> None:
    apart.fill("killed", 3)
    changes = {"UWORKER_JOB_API_PROJECT": "killed", "UWORKER_JOB_API_TOKEN": apart.worker_token("killed")}
    # By compose as a plugin, for once, where it can be had.
    with suppress(NoEngine):
        machine.environment["DOCKER_CONFIG"] = str(compose_plugin())
    folder = machine.copy(apart, **changes, **FEW, WORKER_MOUNT=f"'{apart.source.parent}'")
    said = machine.start(folder)
    assert said.count("is loaded") == 2
    wait_for(lambda: apart.admin.project("killed").images.stored >= 10, WAIT_SECONDS)
    # As the kernel would; `docker kill` would keep it from its restart.
    os.kill(machine.inspect(container(machine, "engine"))["State"]["Pid"], signal.SIGKILL)
    wait_for(lambda: machine.inspect(container(machine, "engine"))["RestartCount"] == 1, WAIT_SECONDS)
    wait_for(lambda: apart.admin.project("killed").jobs.unfinished == 0, WAIT_SECONDS)
    apart.assert_filled_done("killed", 3)
    attempts = [a for job in apart.admin.jobs("killed") for a in apart.admin.job("killed", job.id).attempts]
    assert {a.outcome for a in attempts} == {"completed"}
    assert len(attempts) == 3 * len(apart.directories)
    wait_for(lambda: log(machine, "worker").count("connected to the engine apart") == 2, WAIT_SECONDS)
    assert "Traceback" not in log(machine, "worker") + log(machine, "engine")
    # Again: the worker leaves its engine in order, and both are new.
    before = [container(machine, service) for service in ("worker", "engine")]
    assert "replaced" in machine.start(folder)
    assert not set(before) & set(machine.containers("--all"))
    assert "stopped" in machine.script(folder, "stop").stdout
    ended = [machine.inspect(container(machine, service))["State"] for service in ("worker", "engine")]
    assert [state["ExitCode"] for state in ended] == [0, 0]
    assert ended[0]["FinishedAt"] < ended[1]["FinishedAt"], "what is finished is posted while there is an engine"
    assert machine.containers() == []


def test_an_engine_that_cannot_start_is_told(apart: Snapshot, machine: Machine) -> None:
    folder = machine.copy(apart, WORKER_MEMORY_LIMIT="24m")
    done = machine.script(folder)
    assert done.returncode == 1
    # Docker may have started it again by then, and has forgotten the code.
    assert re.search(
        r"the engine ended with exit code (137 \(killed, possibly for want of memory|unknown)", done.stderr
    )
    assert machine.containers() == []


def test_the_small_image_has_nothing_that_recognises(
    docker_engine: Engine, small_worker_image: BuiltImage, worker_image: BuiltImage
) -> None:
    look = "from importlib.util import find_spec; "
    look += "print([n for n in ('tensorflow', 'rdkit', 'PIL', 'numpy', 'cv2', 'DECIMER') if find_spec(n)])"
    python = ("--rm", "--network=none", "--entrypoint=/opt/venv/bin/python", small_worker_image.tag)
    assert docker_engine.docker("run", *python, "-c", look).stdout.strip() == "[]"
    assert small_worker_image.size_bytes < worker_image.size_bytes / 2
