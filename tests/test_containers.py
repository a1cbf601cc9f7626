"""The tests' own Docker engine: what the tests of the images rely on."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.containers.bases import DEBIAN, import_debian
from tests.containers.engine import Engine, run_engine
from tests.plugins.containers import EngineStarter
from tests.serving import LOAD_SECONDS, wait_for

# Starts an engine, says where its socket is, and waits to be killed.
KEEP_AN_ENGINE = """
import sys, time
from pathlib import Path
from tests.containers.engine import run_engine
with run_engine(Path(sys.argv[1])) as engine:
    print(engine.address, flush=True)
    time.sleep(600)
"""


def test_it_runs_a_debian_under_the_name_that_the_images_build_on(docker_engine: Engine) -> None:
    said = docker_engine.docker("run", "--rm", "--network=host", DEBIAN, "cat", "/etc/os-release").stdout
    assert "VERSION_CODENAME=bookworm" in said


def test_containers_of_a_network_find_each_other_by_name(docker_engine: Engine) -> None:
    serve = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 8080, Listen => 1) or die; "
    serve += 'while (my $c = $s->accept) { print $c "here\\n"; close $c }'
    docker_engine.docker("network", "create", "names")
    docker_engine.docker("run", "--detach", "--network=names", "--name=server", DEBIAN, "perl", "-e", serve)
    ask = "for i in $(seq 50); do exec 3<>/dev/tcp/server/8080 && break; sleep 0.1; done; cat <&3"
    answer = docker_engine.docker("run", "--rm", "--network=names", DEBIAN, "bash", "-c", ask).stdout
    docker_engine.docker("rm", "--force", "server")
    assert answer == "here\n"


def test_a_fresh_engine_has_no_image(docker_engine: Engine, fresh_engine: EngineStarter) -> None:
    fresh = fresh_engine()
    assert fresh.image_ids() == set()
    assert fresh.address != docker_engine.address


def programs_of(folder: Path) -> set[bytes]:
    """The names of the programs that have something of a folder among their arguments."""
    lines = [_read(process / "cmdline") for process in Path("/proc").glob("[0-9]*")]
    return {line.partition(b"\0")[0].rpartition(b"/")[2] for line in lines if bytes(folder) in line}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_an_engine_ends_with_the_process_that_started_it(docker_engine: Engine, tmp_path: Path) -> None:
    assert docker_engine.image_ids(), "engines can be run here"
    command = [sys.executable, "-c", KEEP_AN_ENGINE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        runtime = Path(process.stdout.readline().strip().removeprefix("unix://")).parent
        assert programs_of(runtime) == {b"dockerd", b"containerd"}
        process.kill()
    wait_for(lambda: programs_of(runtime) == set(), LOAD_SECONDS)
    shutil.rmtree(runtime)


def test_nothing_stays_mounted_where_an_engine_was_killed(docker_engine: Engine, tmp_path: Path) -> None:
    assert docker_engine.image_ids(), "engines can be run here"
    with run_engine(tmp_path) as engine:
        import_debian(engine)
        name = engine.docker("run", "--detach", "--network=none", DEBIAN, "sleep", "600").stdout.strip()
        inside = int(engine.docker("inspect", "--format={{.State.Pid}}", name).stdout)
        assert str(tmp_path) in Path("/proc/self/mountinfo").read_text()
        os.kill(engine.pid, signal.SIGKILL)
        os.kill(inside, signal.SIGKILL)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not engine.data.exists()
