"""The `uworker` command."""

import os
from pathlib import Path
from typing import Annotated

import typer

from job_api.version import VERSION
from uworker.check import EXIT_SETTINGS, check
from uworker.prepared.cli import prepare
from uworker.settings import (
    PREFIX,
    ApartSettings,
    EngineSettings,
    SettingsError,
    WorkerSettings,
    load_engine_settings,
    load_settings,
)
from uworker.state import READY, StateError, read_state

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _settings_of(model: type[EngineSettings]) -> str:
    """The model's settings for people: what is its own goes before what all have."""
    fields = sorted(model.model_fields.items(), key=lambda item: item[0] not in model.__annotations__)
    return "\n".join(
        f"  {PREFIX}{name.upper()}\n      {field.description}"
        + (f" [default: {field.default}]" if isinstance(field.default, str | int | float) else "")
        for name, field in fields
    )


def _help() -> str:
    return (
        "Claim jobs, recognise their images and post the SMILES, until it is stopped (Ctrl-C or SIGTERM: what is "
        "finished is posted and the rest given back, in under 20 s).\n\n"
        "\b\nSettings, all in the environment:\n" + _settings_of(WorkerSettings) + "\n\n"
        "\b\nExit codes: 0 done or stopped; 2 wrong settings; 3 the engine or its weights cannot be loaded;\n"
        "4 the service refuses this worker, or (with --once) is not there; 5 (with --once) it is quarantined;\n"
        "6 the storage does not let this worker in."
    )


@app.callback(invoke_without_command=True, help=_help())
def uworker(
    context: typer.Context,
    *,
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
    project: Annotated[
        str | None, typer.Option(help="Work on this project only; goes before UWORKER_JOB_API_PROJECT.")
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Start a worker, unless a command follows; what people are told is in `_help`."""
    if version:
        typer.echo(VERSION)
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    try:
        settings = load_settings(job_api_project=project)
    except SettingsError as error:
        typer.echo(f"uworker: {error}", err=True)
        raise SystemExit(EXIT_SETTINGS) from None
    # Imported here so that --help and a wrong setting are answered at once.
    from uworker.worker import main  # noqa: PLC0415

    try:
        main(settings, once=once)
    except ValueError as error:
        # An address or login that makes no sense is only found out by the client.
        typer.echo(f"uworker: {error}", err=True)
        raise SystemExit(EXIT_SETTINGS) from None


def _engine_help() -> str:
    return (
        "Recognise images for a worker that runs in another container, until it is stopped. It needs neither a token "
        "nor a network: the worker reaches it over a Unix socket.\n\n"
        "\b\nSettings, all in the environment:\n" + _settings_of(ApartSettings) + "\n\n"
        "\b\nExit codes: 0 stopped; 2 wrong settings, or the socket cannot be made."
    )


@app.command(help=_engine_help())
def engine() -> None:
    """Start an engine apart; what people are told is in `_engine_help`."""
    try:
        settings = load_engine_settings()
    except SettingsError as error:
        typer.echo(f"uworker: {error}", err=True)
        raise SystemExit(EXIT_SETTINGS) from None
    # Imported here so that --help and a wrong setting are answered at once.
    from uworker.apart.door import DoorError  # noqa: PLC0415
    from uworker.apart.engine import main  # noqa: PLC0415

    try:
        main(settings)
    except DoorError as error:
        typer.echo(f"uworker: {error}", err=True)
        raise SystemExit(EXIT_SETTINGS) from None


@app.command()
def state(*, as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Say what the worker does that keeps UWORKER_STATE_FILE; exit code 0 where it may work, else 1."""
    path = os.environ.get(f"{PREFIX}STATE_FILE")
    if not path:
        typer.echo(f"uworker: set {PREFIX}STATE_FILE as it is set for the worker", err=True)
        raise typer.Exit(EXIT_SETTINGS)
    try:
        report = read_state(Path(path))
    except StateError as error:
        typer.echo(f"uworker: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(report.model_dump_json() if as_json else report)
    raise typer.Exit(0 if report.state in READY else 1)


app.command()(check)
app.command()(prepare)
