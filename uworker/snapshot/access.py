"""What a build asks of the job service: whether it may, what the project is, and a token for the workers."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from job_api.client import Client, ClientError, NotFound, Refused
from job_api.config import CREDENTIALS_HINT
from job_api.schemas import IssuedToken, NewToken, ProjectStatus, Role

DAY_SECONDS = 86_400
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CLONE = Path(__file__).resolve().parents[2]


class SnapshotError(Exception):
    """A snapshot cannot be built; the message is one line that says what to do."""


def ask(client: Client, project: str) -> ProjectStatus | None:
    """Return the project, or None where there is none yet.

    Raises:
        SnapshotError: the service refuses this login, or the login may not do what a build does.
        ClientError: the service cannot be reached.
    """
    try:
        client.tokens()
    except Refused as error:
        if error.status == 401:
            raise SnapshotError(f"{error}; {CREDENTIALS_HINT}") from None
        raise SnapshotError(
            f"{error}; a snapshot brings a worker's token, which takes a login of the role submit or admin to make"
        ) from None
    try:
        return client.project(project)
    except NotFound:
        return None


def worker_root(root: str) -> str:
    """The service's address as it was given for the workers, as all clients write it.

    Raises:
        SnapshotError: it can be none.
    """
    try:
        with Client(root) as client:
            found = client.root.rstrip("/")
    except ValueError as error:
        raise SnapshotError(f"--api-root: {error}") from None
    # It stands in worker.env as it is.
    if re.fullmatch(r"[A-Za-z0-9/:._~%\[\]-]+", found) is None:
        raise SnapshotError(f"--api-root: {root!r} is no address of a job service")
    return found


def is_local(root: str) -> bool:
    """Whether an address leads to the machine that uses it."""
    return urlsplit(root).hostname in _LOOPBACK


@contextmanager
def worker_token(client: Client, project: str, name: str, days: float) -> Iterator[IssuedToken]:
    """A new token for workers of a project; it is revoked when what follows fails."""
    wanted = NewToken(name=name, role=Role.WORKER, project=project, expires_in_seconds=days * DAY_SECONDS)
    made = client.new_token(wanted)
    try:
        yield made
    except BaseException:
        try:
            client.revoke_token(made.id)
        except ClientError as error:
            raise SnapshotError(
                f"nothing was made, and the token made for it could not be revoked ({error}); job-api token revoke "
                f"{made.id}"
            ) from error
        raise


def add_jobs(project: str, config: Path, jobs_file: Path, source: str | None, *, dry_run: bool = False) -> None:
    """Run `add_jobs.py`, which says itself what it does; a dry run is silent when all is well.

    Raises:
        SnapshotError: it failed, and has said why; or it was interrupted, when all else was done.
    """
    program = str(_CLONE / "add_jobs.py")
    arguments = [project, str(config), f"--jobs-file={jobs_file}"] + ([] if source is None else [f"--source={source}"])
    again = f"then add its jobs: {shlex.join([program, *arguments])}"
    try:
        done = subprocess.run(
            [sys.executable, program, *arguments, *(["--dry-run"] if dry_run else [])],
            stdout=subprocess.DEVNULL if dry_run else None,
            check=False,
        )
    except KeyboardInterrupt:
        if dry_run:
            raise
        raise SnapshotError(f"interrupted; the snapshot is complete, and its jobs are not: {again}") from None
    if done.returncode != 0:
        what = "nothing was built" if dry_run else "the snapshot is complete, and its jobs are not"
        put_right = "add_jobs.py says above what is to be put right"
        raise SnapshotError(f"{what}: {put_right}" + ("" if dry_run else f"; {again}"))
