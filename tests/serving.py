"""`job-api` as a real process, on a data directory or a database of its own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil
import pytest

from job_api.client import Client
from job_api.main import PASSWORD_FILE

PROGRAM = str(Path(sys.executable).with_name("job-api"))
START_SECONDS = 90.0
# Less than a lease: what waits for its end is not to be taken for what ends it.
WAIT_SECONDS = 100.0
LOAD_SECONDS = 400.0
"""For what loads TensorFlow, or moves containers, on a machine whose cores are busy."""


def wait_for(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Wait until a condition holds; to wait long costs nothing where all is well."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def is_gone(process: psutil.Process | int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet has ended too."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return not found.is_running() or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def environment(data_dir: Path, **settings: str | int) -> dict[str, str]:
    """The environment of a `job-api` that sees no settings but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JOB_API_")}
    given = {"data_dir": data_dir, "port": 0, **settings}
    return clean | {f"JOB_API_{name.upper()}": str(value) for name, value in given.items()}


def job_api(data_dir: Path, *arguments: str, **settings: str | int) -> subprocess.CompletedProcess[str]:
    """Run a `job-api` that is expected to end by itself."""
    process = subprocess.Popen(
        [PROGRAM, *arguments],
        env=environment(data_dir, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said, complained = process.communicate(timeout=START_SECONDS)
    except subprocess.TimeoutExpired:
        # In an orderly way, so that no database is left behind.
        process.terminate()
        pytest.fail(f"job-api did not end by itself: {process.communicate(timeout=START_SECONDS)}")
    return subprocess.CompletedProcess(process.args, process.returncode, said, complained)


def refusal(data_dir: Path, *arguments: str, **settings: str | int) -> str:
    """The one line in which a `job-api` says why it does not start."""
    ended = job_api(data_dir, *(arguments or ("serve",)), **settings)
    assert ended.returncode != 0, ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    said = [line for line in ended.stderr.splitlines() if line.startswith("job-api: ")]
    assert len(said) == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == said[0], ended.stderr
    return said[0]


class Serving:
    """A `job-api serve`; as a context, nothing of it is left at the end."""

    def __init__(self, data_dir: Path, **settings: str | int) -> None:
        self.data_dir = data_dir
        self.settings: dict[str, str | int] = dict(settings)
        self.log_file = data_dir.with_name(data_dir.name + f"-{time.monotonic_ns()}.log")
        self._clients: list[Client] = []
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "serve"], env=environment(data_dir, **settings), stderr=log, stdout=log
            )
        try:
            wait_for(self._serves, START_SECONDS)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        self.stop()
        self.log_file.unlink(missing_ok=True)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def root(self) -> str:
        found = re.search(r"serving (http://\S+:\d+)", self.log)
        assert found is not None, self.log
        return found[1]

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.log
        with contextlib.suppress(httpx.TransportError, AssertionError):
            return self.get("/readyz").status_code == 200
        return False

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.root + path, timeout=20)

    @property
    def password(self) -> str:
        return (self.data_dir / PASSWORD_FILE).read_text().strip()

    def client(self, *, retry_seconds: float = 30.0) -> Client:
        """The administrator's client, closed at the end."""
        client = Client(self.root, username="admin", password=self.password, retry_seconds=retry_seconds)
        self._clients.append(client)
        return client

    def stop(self) -> None:
        """End it by SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=90) in (0, -signal.SIGTERM), self.log

    def kill(self) -> None:
        """End it by SIGKILL; its embedded database lives on."""
        self.process.kill()
        self.process.wait(timeout=90)

    @property
    def postmaster(self) -> psutil.Process:
        return psutil.Process(int((self.data_dir / "postgresql" / "postmaster.pid").read_text().split("\n", 1)[0]))


def postgres_processes(data_dir: Path) -> list[int]:
    """Processes of the embedded database of a data directory."""
    return [process.pid for process in psutil.process_iter() if _is_of(process, data_dir / "postgresql")]


def _is_of(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == directory
    except psutil.Error:
        return False


@contextlib.contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[None]:
    """A file system of a given size on a directory; needs root.

    Raises:
        PermissionError: mounting is not allowed here.
    """
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        raise PermissionError("mount is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)  # noqa: S607 - wherever the system has it
