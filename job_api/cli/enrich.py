"""The command that computes the chemistry of stored results again."""

from importlib.util import find_spec

import typer

from job_api.cli.options import Config, ProjectArgument
from job_api.client import ClientError
from job_api.config import connect
from job_api.terminal import progress_bar

app = typer.Typer()


@app.command()
def enrich(project: ProjectArgument, *, config: Config = None) -> None:
    """Compute the chemistry of stored results again, after an upgrade or a new image_name_pattern.

    Nothing is recognised again: SMILES and confidence stay. Rows that come out as they are stay untouched, so it may
    be broken off and run again.
    """
    if find_spec("rdkit") is None or find_spec("re2") is None:
        raise ClientError("this needs RDKit and RE2: pip install '/path/to/decimer-jobs[chemistry]'")
    # What it stands on is not in the base install.
    from job_api.enriching import Counts, enrich  # noqa: PLC0415

    with connect(config) as client, progress_bar() as progress:
        task = progress.add_task("results", total=client.project(project).images.stored)

        def show(counts: Counts) -> None:
            progress.update(task, completed=counts.rows)

        done = enrich(client, project, show)
    typer.echo(
        f"{done.rows} rows looked at: {done.changed} changed, {done.replaced} replaced meanwhile and left alone"
        + (f"; RDKit failed on {done.failed}, whose chemistry is left as it is" if done.failed else "")
    )
