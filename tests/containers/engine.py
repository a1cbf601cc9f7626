"""A Docker engine that the tests start and end themselves, in folders of its own.

It needs no registry and no network of the machine's: containers that must reach something outside use the host's
network, and those that must only reach each other a network of their own (`docker network create`), where names are
found and ports can be published. Nothing routes from such a network to the outside.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

# Debian's packages of the programs that are not called like theirs.
PACKAGES = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "munged": "munge",
    "sbatch": "slurm-client",
    "setpriv": "util-linux",
}
START_SECONDS = 60.0
_LOCK = Path(tempfile.gettempdir()) / "decimer-jobs-apt.lock"


class NoEngine(Exception):
    """No Docker engine can be run here; says why."""


@dataclass(frozen=True)
class Engine:
    """A running engine.

    Attributes:
        data: Holds its images, containers and volumes.
        address: What `DOCKER_HOST` is set to.
        pid: The process id of dockerd.
    """

    data: Path
    address: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables of this process, less settings of this project's, for programs that shall use this engine."""
        own = ("UWORKER_", "JOB_API_", "COMPOSE_", "DOCKER_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        return clean | {"DOCKER_HOST": self.address}

    def docker(
        self, *arguments: str, check: bool = True, timeout_seconds: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker client and return what it said; fails the test where it fails, unless `check` is off."""
        return self.run("docker", *arguments, check=check, timeout_seconds=timeout_seconds)

    def run(
        self, *command: str, check: bool = True, timeout_seconds: float = 600, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run any program that uses this engine."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def image_ids(self) -> set[str]:
        """The images it has."""
        return set(self.docker("images", "--all", "--quiet", "--no-trunc").stdout.split())


def install(*programs: str) -> None:
    """Have Debian's packages of these programs installed, where they are missing; whoever comes first does it.

    Raises:
        NoEngine: one is missing and cannot be installed here.
    """
    with FileLock(_LOCK):
        missing = [program for program in programs if shutil.which(program) is None]
        if not missing:
            return
        names = sorted({PACKAGES.get(program, program) for program in missing})
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise NoEngine(f"{', '.join(missing)} not found; install {' '.join(names)} of Debian, or run as root")
        command = ["apt-get", "install", "--yes", "--no-install-recommends", *names]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for step in (["apt-get", "update"], command):
            done = subprocess.run(step, env=environment, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise NoEngine(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
        if missing := [program for program in programs if shutil.which(program) is None]:
            raise NoEngine(f"{', '.join(missing)} not found, though {' '.join(names)} of Debian are installed")


@contextmanager
def run_engine(home: Path) -> Iterator[Engine]:
    """Run an engine that keeps everything in `home`; at the end nothing of it is left, not even its containers.

    Raises:
        NoEngine: it does not start here; says what it said last.
    """
    install("dockerd", "docker", "setpriv")
    if os.geteuid() != 0:
        raise NoEngine("a Docker engine is started by root only")
    home.mkdir(parents=True, exist_ok=True)
    # A socket's path may have 108 characters, and the folders of tests are deep.
    runtime = Path(tempfile.mkdtemp(prefix="dj-"))
    log_file = home / "dockerd.log"
    # A test process that is killed ends nothing any more: the system ends it then, and dockerd its containerd. Linux
    # means the thread that starts it, so that has to be one that stays.
    command = [
        *("setpriv", "--pdeathsig=TERM", "--"),
        "dockerd",
        "--iptables=false",
        "--bridge=none",
        f"--data-root={home / 'data'}",
        f"--exec-root={runtime / 'exec'}",
        f"--pidfile={runtime / 'pid'}",
        f"--host=unix://{runtime / 'docker.sock'}",
    ]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    engine = Engine(home / "data", f"unix://{runtime / 'docker.sock'}", process.pid)
    try:
        deadline = time.monotonic() + START_SECONDS
        while engine.docker("info", check=False).returncode != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoEngine(f"dockerd does not start: {log_file.read_text(errors='replace').strip()[-800:]}")
            time.sleep(0.1)
        yield engine
    finally:
        _end(engine, process)
        # A killed one leaves the file systems of its containers mounted.
        for folder in (runtime, engine.data):
            _unmount(folder)
        shutil.rmtree(runtime, ignore_errors=True)
        shutil.rmtree(engine.data, ignore_errors=True)


def _unmount(folder: Path) -> None:
    """Take away all that is mounted below a folder, what was mounted last first."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    for line in reversed(lines):
        # A space is written \\040.
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4])
        if Path(place).is_relative_to(folder.resolve()):
            command = ["umount", "--lazy", place]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _end(engine: Engine, process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        containers = engine.docker("ps", "--all", "--quiet", check=False).stdout.split()
        if containers:
            engine.docker("rm", "--force", "--volumes", *containers, check=False)
        networks = engine.docker("network", "ls", "--quiet", "--filter", "type=custom", check=False).stdout.split()
        if networks:
            engine.docker("network", "rm", *networks, check=False)
        process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        # With its session: containerd would stay otherwise.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
