"""The service in containers, as docker/service/service.sh runs it from a copy of the clone."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from job_api.client import Client
from tests.containers.engine import Engine
from tests.serving import wait_for

CLONE = Path(__file__).parents[2]
# What an image is made of, and the script that makes it.
_PARTS = (".gitignore", "Makefile", "alembic", "docker", "job_api", "pyproject.toml", "uv.lock")
_GIT = ("git", "-c", "user.name=Test", "-c", "user.email=test@localhost")


@dataclass
class Installation:
    """A copy of the clone, and what its service.sh does to an engine."""

    engine: Engine
    clone: Path
    http_port: int = 80
    https_port: int = 443

    @property
    def url(self) -> str:
        return f"https://localhost:{self.https_port}"

    @property
    def settings(self) -> Path:
        return self.clone / "docker/service/.env"

    @property
    def authority(self) -> Path:
        return self.clone.parent / "authority.crt"

    def set(self, name: str, value: str) -> None:
        """Write a setting into .env."""
        lines = self.settings.read_text().splitlines() if self.settings.exists() else []
        kept = [line for line in lines if not line.startswith(f"{name}=")]
        self.settings.write_text("\n".join([*kept, f"{name}={value}", ""]))

    def commit(self) -> str:
        """Commit all; returns the commit."""
        for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=as it is")):
            subprocess.run([*_GIT, *command], cwd=self.clone, check=True)
        return subprocess.check_output([*_GIT, "rev-parse", "HEAD"], cwd=self.clone, text=True).strip()

    def run(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run service.sh."""
        return self.engine.run(
            "bash", "docker/service/service.sh", *arguments, cwd=self.clone, check=check, timeout_seconds=400
        )

    def begin(self, *arguments: str) -> "subprocess.Popen[str]":
        """Run service.sh in a session of its own, as in a terminal; what it says is in `stderr`."""
        return subprocess.Popen(
            [shutil.which("bash") or "bash", "docker/service/service.sh", *arguments],
            cwd=self.clone,
            env=self.engine.environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def containers(self, service: str, *options: str) -> list[str]:
        """The containers of a service that run, or, with --all, that are there."""
        service = f"--filter=label=com.docker.compose.service={service}"
        once = "--filter=label=com.docker.compose.oneoff=False"
        return self.engine.docker("ps", "--no-trunc", "--quiet", service, once, *options).stdout.split()

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What the database's administrator gets for a statement."""
        return self.engine.docker(*self._psql(statement, database)).stdout.strip()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """While somebody is connected to the service's database, as a backup is."""
        command = ["docker", *self._psql("SELECT pg_sleep(600)", "decimer_jobs")]
        process = subprocess.Popen(command, env=self.engine.environment, stdout=subprocess.DEVNULL)
        sleeping = "FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'"
        try:
            wait_for(lambda: self.sql(f"SELECT count(*) {sleeping}") == "1")
            yield
        finally:
            self.sql(f"SELECT pg_terminate_backend(pid) {sleeping}")
            process.wait(30)

    def _psql(self, statement: str, database: str) -> list[str]:
        [container] = self.containers("db")
        options = ["--username=decimer", f"--dbname={database}", "--tuples-only", "--no-align", "--quiet"]
        return ["exec", container, "psql", *options, f"--command={statement}"]

    def inspect(self, name: str, wanted: str) -> str:
        """What `docker inspect` says of something."""
        return self.engine.docker("inspect", "--format", wanted, name).stdout.strip()

    def password(self) -> str:
        """The first one of the user admin."""
        return self.run("password").stdout.strip()

    def trust(self) -> None:
        """Get the certificate of the proxy's authority."""
        self.authority.write_text(self.run("certificate").stdout)

    def client(self, *, token: str | None = None, username: str | None = None, password: str | None = None) -> Client:
        """A client that trusts the proxy's authority and no other, as SSL_CERT_FILE tells all programs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(self.authority))
            return Client(self.url, token=token, username=username, password=password)

    @contextmanager
    def http(self, token: str) -> Iterator[httpx.Client]:
        """Requests that are not tried again."""
        trusted = ssl.create_default_context(cafile=self.authority)
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=self.url, headers=headers, verify=trusted, timeout=60) as client:
            yield client


def copy_clone(target: Path) -> None:
    """Copy what is needed of the clone, but no settings that somebody made in it."""
    target.mkdir()
    for part in _PARTS:
        if (CLONE / part).is_dir():
            shutil.copytree(CLONE / part, target / part, ignore=shutil.ignore_patterns("__pycache__", ".env", "*.half"))
        else:
            shutil.copy(CLONE / part, target / part)
    # What waits for containers to be ready would else do so for seconds.
    for file, slow, quick in (
        ("docker/api/Dockerfile", "--interval=5s", "--interval=1s"),
        ("docker/service/docker-compose.yml", "interval: 5s", "interval: 1s"),
    ):
        text = (target / file).read_text()
        assert slow in text
        (target / file).write_text(text.replace(slow, quick))
