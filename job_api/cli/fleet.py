"""Commands that steer workers."""

from collections.abc import Callable
from typing import Annotated

import typer

from job_api import schemas
from job_api.cli.options import Config
from job_api.client import Client, ClientError
from job_api.config import connect
from job_api.schemas import WorkerState
from job_api.terminal import printable

app = typer.Typer(help="Steer workers.", no_args_is_help=True)

WorkerIds = Annotated[list[str], typer.Argument(metavar="ID...", help="The worker, as `job-api workers` shows it.")]


def _steer(action: Callable[[Client, str], schemas.Worker], worker_ids: list[str], config: Config) -> None:
    with connect(config) as client:
        for worker_id in worker_ids:
            told = action(client, worker_id)
            why = f": {printable(told.reason, 1000)}" if told.reason else ""
            typer.echo(f"worker {told.id} is told: {told.state.value}{why}")


@app.command()
def drain(worker_ids: WorkerIds, *, config: Config = None) -> None:
    """Let a worker finish what it holds, and end."""
    _steer(Client.drain, worker_ids, config)


@app.command()
def quarantine(worker_ids: WorkerIds, *, config: Config = None) -> None:
    """Let a worker claim no more until it is lifted; what it failed since its last success is queued again."""
    _steer(Client.quarantine, worker_ids, config)


@app.command()
def lift(
    worker_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="The worker, as `job-api workers` shows it.")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All that are quarantined; instead of any ID.")] = False,
    config: Config = None,
) -> None:
    """Let a drained or quarantined worker claim again."""
    if every == bool(worker_ids):
        raise ClientError("say which workers: their IDs, or --all for every one that is quarantined")
    if every:
        with connect(config) as client:
            worker_ids = [worker.id for worker in client.workers() if worker.state is WorkerState.QUARANTINED]
    _steer(Client.lift, worker_ids or [], config)
