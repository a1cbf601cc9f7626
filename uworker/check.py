"""Whether a worker could work here: asked before one is started, so that what is wrong is said at once and in words.

It asks the service whom it takes this worker for and whether it may work on its project, and claims nothing.
"""

import os
from pathlib import Path

import typer

from job_api.client import Client, ClientError, NotFound, Refused, Unreachable
from job_api.schemas import ProjectEngine, Role, ServerInfo
from uworker.commands import ProgramMissing, find_command, find_program
from uworker.prepared.choice import is_wanted, refusal
from uworker.prepared.files import Unusable, find_prepared, prepared_directory
from uworker.settings import PREFIX, SettingsError, WorkerSettings, load_settings
from uworker.weights import (
    AS_SHIPPED_IS_WANTED,
    FOLDER,
    find_prepared_weights,
    find_weights,
    is_hand_drawn,
    missing_models,
    reads_shipped,
    why_none_will_do,
)

EXIT_SETTINGS, EXIT_REFUSED = 2, 4
RETRY_SECONDS = 5.0


class CheckFailed(Exception):
    """A worker could not work here; the message says why and what to do."""


def check() -> None:
    """Ask whether the service is there and lets this worker work on its project, with these weights; claims nothing.

    Exit codes: 0 all is well; 2 wrong settings; 4 the service is not there or refuses, or something here is missing.
    """
    try:
        settings = load_settings()
        server = check_service(settings)
        check_spool(settings)
        if server.project_source is not None:
            check_source(settings, server.project_source)
        if server.project_engine is not None:
            check_program(settings, server.project_engine)
            check_weights(settings, server.project_engine)
    except (SettingsError, ValueError) as error:
        # A ValueError: an address or login that makes no sense is only found out by the client.
        _give_up(error, EXIT_SETTINGS)
    except CheckFailed as error:
        _give_up(error, EXIT_REFUSED)
    else:
        where = f"the project {settings.job_api_project}" if settings.job_api_project else "any project"
        typer.echo(f"job service {settings.job_api_root}, version {server.version}: this worker may work on {where}")
        if server.project_paused:
            typer.echo(
                f"note: the project {settings.job_api_project} is paused, and workers wait; "
                f"`job-api project {settings.job_api_project} --resume` ends that"
            )
        if server.project_engine is not None:
            _say_what_is_to_come(settings, server.project_engine)


def _give_up(error: Exception, code: int) -> None:
    typer.echo(f"uworker: {error}", err=True)
    raise typer.Exit(code)


def check_service(settings: WorkerSettings) -> ServerInfo:
    """What the service answers.

    Raises:
        CheckFailed: it is not there, or would refuse a worker with these settings.
        ValueError: the address or the login makes no sense.
    """
    root, project = settings.job_api_root, settings.job_api_project
    token, password = settings.job_api_token, settings.job_api_password
    client = Client(
        root,
        username=None if token else settings.job_api_username,
        password=password.get_secret_value() if password and not token else None,
        token=token.get_secret_value() if token else None,
        retry_seconds=RETRY_SECONDS,
        timeout_seconds=RETRY_SECONDS,
    )
    try:
        with client:
            server = client.server(project)
    except Unreachable as error:
        raise CheckFailed(
            f"{error}; see that {PREFIX}JOB_API_ROOT is its address as seen from this machine, that it runs, and that "
            "no firewall is in between"
        ) from None
    except Refused as error:
        raise CheckFailed(f"{error}; {_how_to_get_in(project)}") from None
    except NotFound as error:
        raise CheckFailed(
            f"{error}; correct {PREFIX}JOB_API_PROJECT, or make the project by adding its directories: ./add_jobs.py "
            f"{project} CONFIG --source URL --jobs-file FILE"
        ) from None
    except ClientError as error:
        raise CheckFailed(str(error)) from None
    if server.caller is not None and server.caller.role is not Role.WORKER:
        raise CheckFailed(
            f"{server.caller.name} has the role {server.caller.role}, and a worker needs the role worker; "
            f"{_how_to_get_in(project)}"
        )
    return server


def check_spool(settings: WorkerSettings) -> None:
    """Refuse a folder that results cannot be kept in.

    Raises:
        CheckFailed: it cannot be made or written to.
    """
    folder = settings.spool_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckFailed(f"{folder} cannot be made ({error.strerror}); set {PREFIX}SPOOL_DIR") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckFailed(f"{folder} cannot be written to by user {os.getuid()}; let it, or set {PREFIX}SPOOL_DIR")


def check_source(settings: WorkerSettings, source: str) -> None:
    """Refuse a worker that would not read the project's images; asks no storage.

    Raises:
        CheckFailed: it may not, or it knows no such storage, or has no credentials for it.
    """
    from uworker.images import SourceError  # noqa: PLC0415 (as below)
    from uworker.sources import open_source  # noqa: PLC0415 (what speaks to object storage)

    try:
        open_source(source, settings)
    except SourceError as error:
        raise CheckFailed(str(error)) from None


def check_program(settings: WorkerSettings, wanted: ProjectEngine) -> None:
    """Refuse a worker that has not the project's engine, or not the program that is this engine.

    Raises:
        CheckFailed: it is not on this machine.
    """
    if settings.engine_socket is not None:
        return
    from uworker.engines import UnknownEngineError, find_loader  # noqa: PLC0415 (NumPy)

    command = find_command(settings, wanted.engine)
    try:
        if command is None:
            find_loader(wanted.engine)
        else:
            find_program(command)
    except ProgramMissing as error:
        raise CheckFailed(str(error)) from None
    except UnknownEngineError as error:
        named = f"{PREFIX}ENGINE_COMMAND_NAME={wanted.engine}"
        raise CheckFailed(f"{error}; for a program of that name set {PREFIX}ENGINE_COMMAND and {named}") from None


def _has_weights_here(settings: WorkerSettings, wanted: ProjectEngine) -> bool:
    """Whether they are this worker's: an engine of another name brings what it needs itself; one apart has its own."""
    return wanted.engine == "decimer" and settings.engine_socket is None


def _say_what_is_to_come(settings: WorkerSettings, wanted: ProjectEngine) -> None:
    """Say that weights are not here yet, where they would be downloaded. Their digests are not looked at."""
    if not _has_weights_here(settings, wanted):
        return
    home, hand_drawn = settings.weights_home.expanduser(), is_hand_drawn(wanted.engine_options)
    if missing_models(home, hand_drawn=hand_drawn) and not prepared_directory(home, hand_drawn=hand_drawn).is_dir():
        typer.echo(f"note: DECIMER's weights are not in {home / FOLDER} yet; the worker downloads them first, 1 GB")
        if home.name == FOLDER:
            typer.echo(f"  ({PREFIX}WEIGHTS_HOME is the folder that holds {FOLDER}: {home.parent}?)")


def _has_prepared(home: Path, *, hand_drawn: bool) -> bool:
    try:
        return find_prepared(home, hand_drawn=hand_drawn) is not None
    except Unusable:
        return False


def check_weights(settings: WorkerSettings, wanted: ProjectEngine) -> None:
    """Refuse weights that the project's engine would refuse at its first job.

    Raises:
        CheckFailed: they are of another model, or missing where none can be downloaded to or read.
    """
    if not _has_weights_here(settings, wanted):
        return
    if (wrong := refusal(wanted.engine_options)) is not None:
        raise CheckFailed(f"the project {settings.job_api_project} cannot be worked on: {wrong}")
    home, hand_drawn = settings.weights_home.expanduser(), is_hand_drawn(wanted.engine_options)
    if missing_models(home, hand_drawn=hand_drawn) and not reads_shipped():
        wanted_here = settings.prepared and is_wanted(wanted.engine_options)
        if not wanted_here or not _has_prepared(home, hand_drawn=hand_drawn):
            raise CheckFailed(why_none_will_do(home, hand_drawn=hand_drawn))
    pins = (settings.weights_sha256, wanted.engine_options.get("weights_sha256"))
    may_download = _can_be_written(home / FOLDER)
    if may_download and not any(pins):
        return
    try:
        found = find_weights(home, hand_drawn=hand_drawn)
        alone = find_prepared_weights(home, hand_drawn=hand_drawn) if found is None else None
    except OSError as error:
        raise CheckFailed(f"DECIMER's weights below {home / FOLDER} cannot be read ({error.strerror})") from None
    if alone is not None and settings.prepared and is_wanted(wanted.engine_options):
        found = alone
    elif alone is not None and not may_download:
        raise CheckFailed(f"this worker has a prepared model alone, and {AS_SHIPPED_IS_WANTED}")
    if found is None:
        wrong = None if may_download else f"has none of that model in {home / FOLDER}"
    else:
        # Not text at all, it will be refused as well.
        others = [pin for pin in pins if pin is not None and str(pin).lower() != found.sha256]
        wrong = f"has those of sha256 {found.sha256}, where {others[0]} is pinned" if others else None
    if wrong is not None:
        project, model = settings.job_api_project, "hand-drawn" if hand_drawn else "printed"
        raise CheckFailed(
            f"the project {project} wants weights for {model} structures, and this worker {wrong}; build a snapshot "
            f"for the project: ./build_snapshot.sh {project} CONFIG"
        )


def _can_be_written(folder: Path) -> bool:
    """Whether files can be put into a folder, which may have to be made."""
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    return os.access(there, os.W_OK | os.X_OK)


def _how_to_get_in(project: str | None) -> str:
    only = f" --project {project}" if project else ""
    command = f"job-api token add NAME --role worker{only} --config CONFIG"
    return f"for a token: {command}; it belongs into {PREFIX}JOB_API_TOKEN"
