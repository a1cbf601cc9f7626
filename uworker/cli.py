"""The `uworker` command."""

from typing import Annotated

import typer

from job_api.version import VERSION
from uworker.settings import PREFIX, SettingsError, WorkerSettings, load_settings

EXIT_SETTINGS = 2

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _help() -> str:
    lines = [
        f"  {PREFIX}{name.upper()}\n      {field.description}"
        + (f" [default: {field.default}]" if isinstance(field.default, str | int | float) else "")
        for name, field in WorkerSettings.model_fields.items()
    ]
    return (
        "Claim jobs, recognise their images and post the SMILES, until it is stopped (Ctrl-C or SIGTERM: what is "
        "finished is posted and the rest given back, in under 20 s).\n\n"
        "\b\nSettings, all in the environment:\n" + "\n".join(lines) + "\n\n"
        "\b\nExit codes: 0 done or stopped; 2 wrong settings; 3 the engine or its weights cannot be loaded;\n"
        "4 the service refuses this worker, or (with --once) is not there; 5 (with --once) it is quarantined;\n"
        "6 the storage does not let this worker in."
    )


@app.command(help=_help())
def uworker(
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
    project: Annotated[
        str | None, typer.Option(help="Work on this project only; goes before UWORKER_JOB_API_PROJECT.")
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Start a worker; what people are told is in `_help`."""
    if version:
        typer.echo(VERSION)
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
