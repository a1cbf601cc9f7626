"""`job-api serve` and `job-api migrate`: what needs the `api` extra, imported only when they run."""

import socket
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from job_api.settings import Settings

app = typer.Typer()

NO_EXTRA = "the service is not installed; install it with: pip install '/path/to/decimer-jobs[api]'"


def _settings(**given: object) -> "Settings":
    try:
        from job_api.settings import StartupError, load_settings
    except ImportError as error:
        raise SystemExit(f"job-api: {NO_EXTRA} (missing: {error.name})") from error
    try:
        settings = load_settings()
    except StartupError as error:
        raise SystemExit(f"job-api: {error}") from None
    return settings.model_copy(update={name: value for name, value in given.items() if value is not None})


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [env: JOB_API_HOST; 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port, 0 for any free one. [env: JOB_API_PORT; 8800]")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=256, help="API processes on the port. [env: JOB_API_PROCESSES; 1]")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every request.")] = False,
) -> None:
    """Run the service until it is told to stop (Ctrl-C or SIGTERM).

    The database is embedded in JOB_API_DATA_DIR unless JOB_API_DATABASE_URL names a PostgreSQL server. The first
    start makes the user `admin` and says where its password lies. Further settings, all in the environment:
    JOB_API_LEASE_SECONDS, JOB_API_HEARTBEAT_SECONDS, JOB_API_SWEEP_SECONDS, JOB_API_BACKOFF_SECONDS,
    JOB_API_MAX_BODY_BYTES, JOB_API_POOL_SIZE, JOB_API_TOKEN_SECONDS, JOB_API_JANITOR_SECONDS, JOB_API_KEEP_LOG_DAYS,
    JOB_API_KEEP_LOG_LINES, JOB_API_KEEP_ATTEMPT_DAYS, JOB_API_KEEP_WORKER_DAYS, JOB_API_KEEP_TOKEN_DAYS.
    """
    settings = _settings(host=host, port=port, processes=processes)
    from job_api.processes import serve_all
    from job_api.server import begin_log, say_address
    from job_api.server import serve as serve_alone
    from job_api.settings import StartupError

    begin_log()
    listener = _listen(settings.host, settings.port)
    try:
        if settings.processes > 1:
            serve_all(settings, listener, access_log=verbose)
        else:
            serve_alone(settings, listener, ready=lambda: say_address(listener), access_log=verbose)
    except KeyboardInterrupt:
        pass
    except StartupError as error:
        raise SystemExit(f"job-api: {error}") from None
    finally:
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise SystemExit(
            f"job-api: cannot listen on {host} port {port}: {error.strerror or error}; is another service "
            "running there? Choose another with --port or JOB_API_PORT"
        ) from None
    return listener


@app.command()
def migrate() -> None:
    """Bring the database's schema to the version this code needs; run it once after an upgrade.

    For an external database (JOB_API_DATABASE_URL). An embedded one is brought up to date whenever the service starts.
    """
    settings = _settings()
    import asyncio

    from job_api import migrations
    from job_api.db import check_external, connect
    from job_api.settings import StartupError

    if settings.database_url is None:
        typer.echo("the embedded database is migrated when the service starts; nothing to do")
        return
    url = settings.database_url.get_secret_value()

    async def revision() -> str | None:
        connection = await connect(url)
        try:
            return await migrations.current(connection)
        finally:
            await connection.close()

    try:
        before = asyncio.run(revision())
        migrations.upgrade(url)
        asyncio.run(check_external(url))
        typer.echo(f"the database's schema was {before or 'empty'} and is {asyncio.run(revision())}")
    except StartupError as error:
        raise SystemExit(f"job-api: {error}") from None


@app.command("reset-admin")
def reset_admin() -> None:
    """Give the user admin a new random password, where the old one is lost; says in which file it is.

    Stop a service with an embedded database first.
    """
    settings = _settings()
    import asyncio

    from job_api import main
    from job_api.auth import Authenticator
    from job_api.db import Database
    from job_api.embedded import EmbeddedPostgres
    from job_api.settings import StartupError

    if settings.database_url is None and not EmbeddedPostgres(settings.data_dir).pgdata.is_dir():
        where = f"there is no database in {settings.data_dir}"
        raise SystemExit(f"job-api: {where}; set JOB_API_DATA_DIR, or JOB_API_DATABASE_URL, as the service has it")

    async def reset() -> None:
        database = Database(settings)
        await database.open()
        try:
            path = await main.reset_admin(Authenticator(database, settings.token_seconds), settings.data_dir)
            typer.echo(f"the user {main.ADMIN} has a new password; it is in {path}")
        finally:
            await database.close()

    try:
        asyncio.run(reset())
    except StartupError as error:
        raise SystemExit(f"job-api: {error}") from None
