"""A Slurm cluster of a test's own: Debian's munged, slurmctld and slurmd on this machine, in a folder of their own."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.containers.engine import NoEngine, install
from tests.serving import LOAD_SECONDS, wait_for

CORES = 2
START_SECONDS = 120.0

# Two tasks of one core each have a core of their own, as task/affinity binds them. What a job was is remembered for
# five minutes, so that no accounting database is needed.
_CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=100000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(Exception):
    """Slurm cannot be installed here; says why."""


@dataclass(frozen=True)
class Task:
    """A job, or a task of an array, as the controller remembers it."""

    number: int
    state: str
    exit_code: str


@dataclass(frozen=True)
class Cluster:
    """A running cluster of this machine alone."""

    home: Path

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Run one of Slurm's commands and return what it said."""
        own = ("UWORKER_", "JOB_API_", "SLURM_", "SBATCH_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        clean |= {"SLURM_CONF": str(self.home / "slurm.conf"), **(environment or {})}
        done = subprocess.run(
            command, env=clean, cwd=self.home, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: str) -> int:
        """Submit a script; returns the job's number."""
        return int(self.run("sbatch", "--parsable", *arguments))

    def tasks(self, job: int) -> list[Task]:
        """The tasks of an array that were begun or are waiting, by their number."""
        found = []
        for line in self.run("scontrol", "--oneliner", "show", "job", str(job)).splitlines():
            fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
            if fields.get("ArrayTaskId", "0").isdigit():
                found.append(Task(int(fields.get("ArrayTaskId", "0")), fields["JobState"], fields["ExitCode"]))
        return sorted(found, key=lambda task: task.number)

    def ended(self, job: int) -> bool:
        """Whether all of its tasks have ended and nothing of them is left."""
        return not self.run("squeue", "--noheader", "--jobs", str(job))


@contextmanager
def run_cluster() -> Iterator[Cluster]:
    """Run a cluster; at the end none of its processes and files is left, not even its jobs.

    Raises:
        NoSlurm: its packages are not here and cannot be had.
        AssertionError: it does not start; says what was said last.
    """
    try:
        install("slurmctld", "slurmd", "munged", "sbatch")
    except NoEngine as error:
        raise NoSlurm(str(error)) from None
    # Not below pytest's own folders: a socket's path may have 108 characters.
    home = Path(tempfile.mkdtemp(prefix="dj-slurm-"))
    cluster = Cluster(home)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        _write_files(home)
        daemons.extend(_start(home, command) for command in _commands(home))
        _wait_until_idle(cluster, daemons)
        try:
            yield cluster
        finally:
            _end_jobs(cluster)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(home, ignore_errors=True)


def _write_files(home: Path) -> None:
    for name in ("state", "spool"):
        (home / name).mkdir()
    (home / "munge.key").write_bytes(os.urandom(128))
    (home / "munge.key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    controller_port, node_port = _free_ports(2)
    user = pwd.getpwuid(os.geteuid()).pw_name
    words = {"home": home, "host": host, "user": user, "cores": CORES}
    conf = _CONF.format(**words, controller_port=controller_port, node_port=node_port)
    (home / "slurm.conf").write_text(conf)


def _commands(home: Path) -> list[list[str]]:
    names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    files = [f"--{option}={home / 'munge'}.{ending}" for option, ending in names.items()]
    conf = str(home / "slurm.conf")
    # --force: munged would have all on the way to its socket open to everybody, and its user be no administrator.
    return [
        ["munged", "--foreground", "--force", *files],
        ["slurmctld", "-D", "-f", conf],
        ["slurmd", "-D", "-f", conf],
    ]


def _start(home: Path, command: list[str]) -> "subprocess.Popen[bytes]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "UWORKER_"))}
    with (home / f"{command[0]}.out").open("wb") as log:
        return subprocess.Popen(command, env=clean, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait_until_idle(cluster: Cluster, daemons: "list[subprocess.Popen[bytes]]") -> None:
    deadline = time.monotonic() + START_SECONDS
    command = ["sinfo", "--noheader", "--format=%T"]
    environment = os.environ | {"SLURM_CONF": str(cluster.home / "slurm.conf")}
    while True:
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        if asked.stdout.strip() == "idle":
            return
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
            said = {out.name: out.read_text(errors="replace")[-500:] for out in cluster.home.glob("*.out")}
            raise AssertionError(f"the cluster does not start: {said}")
        time.sleep(0.1)


def _end_jobs(cluster: Cluster) -> None:
    cluster.run("scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name)
    wait_for(lambda: not cluster.run("squeue", "--noheader"), LOAD_SECONDS)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
