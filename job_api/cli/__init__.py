"""The `job-api` command. Needs the base install only; `serve` and `migrate` import the service when they run."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from job_api.cli import access, actions, download, enrich, failures, fleet, projects, remote, review, service, status
from job_api.client import ClientError, Refused
from job_api.config import CREDENTIALS_HINT
from job_api.version import VERSION


class _Commands(TyperGroup):
    """All commands: what goes wrong between here and the service is told in one line, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Refused as error:
            unknown = error.status == 401
            hint = CREDENTIALS_HINT if unknown else "log in as a user, or with a token, that may do this"
            typer.echo(f"job-api: {error}; {hint}", err=True)
        except ClientError as error:
            typer.echo(f"job-api: {error}", err=True)
        raise typer.Exit(1)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # they would show local variables, and with them passwords
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """The job service of decimer-jobs: run it, and look at what it does."""
    if version:
        typer.echo(VERSION)
        raise typer.Exit


app.add_typer(service.app)
app.add_typer(status.app)
app.add_typer(projects.app)
app.add_typer(remote.app)
app.add_typer(failures.app)
app.add_typer(actions.app)
app.add_typer(download.app)
app.add_typer(review.app)
app.add_typer(enrich.app)
app.add_typer(access.users, name="user")
app.add_typer(access.tokens, name="token")
app.add_typer(remote.job, name="job")
app.add_typer(fleet.app, name="worker")
