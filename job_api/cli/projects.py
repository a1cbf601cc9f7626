"""The command that shows and changes a project's settings."""

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from job_api.cli.options import AsJson, Config, ProjectArgument, given, print_json, print_table
from job_api.client import ClientError
from job_api.config import connect
from job_api.schemas import Project, ProjectSettings
from job_api.text import mistake

app = typer.Typer()

SHIPPED_ENGINES = ("decimer", "osra")
"""What every worker may have; another name is that of a program which a worker's machine has and its settings name."""


@app.command()
def project(
    project: ProjectArgument,
    *,
    source: Annotated[
        str | None, typer.Option(metavar="URL", help="Where its directories lie; makes a project that is new.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="What its images are recognised with.")] = None,
    priority: Annotated[int | None, typer.Option(help="Projects with the highest are worked on first.")] = None,
    max_failures: Annotated[int | None, typer.Option(help="A job that has failed so often is given up.")] = None,
    results_file: Annotated[
        bool | None,
        typer.Option("--results-file/--no-results-file", help="Write smiles_output.json beside the images."),
    ] = None,
    image_name_pattern: Annotated[
        str | None, typer.Option(metavar="RE", help="Takes the images' file names apart; '' removes it.")
    ] = None,
    image_include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only images that match; may be repeated, '' means all."),
    ] = None,
    image_exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="No images that match; may be repeated, '' means none."),
    ] = None,
    keep_tokens: Annotated[
        bool | None, typer.Option("--keep-tokens/--no-keep-tokens", help="Store each answer's tokens.")
    ] = None,
    price_per_worker_hour: Annotated[
        float | None, typer.Option(metavar="PRICE", help="What a worker's machine costs an hour; 0 removes it.")
    ] = None,
    paused: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Hand out no more jobs, or hand them out again.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The settings of a project, changed where an option says so."""
    changes = given(
        source=source,
        engine=engine,
        priority=priority,
        max_failures=max_failures,
        results_file=results_file,
        image_name_pattern=image_name_pattern,
        image_include=_patterns("--image-include", image_include),
        image_exclude=_patterns("--image-exclude", image_exclude),
        keep_tokens=keep_tokens,
        price_per_worker_hour=price_per_worker_hour,
    )
    try:
        settings = ProjectSettings(**changes)
    except ValidationError as error:
        raise ClientError(mistake(error)) from None
    with connect(config) as client:
        if changes:
            client.put_project(project, settings)
        if paused is not None:
            (client.pause if paused else client.resume)(project)
        found = Project.model_validate(client.project(project).model_dump())
    if engine is not None and engine not in SHIPPED_ENGINES:
        typer.echo(
            f"note: {engine} is none of {', '.join(SHIPPED_ENGINES)}; only workers with "
            f"UWORKER_ENGINE_COMMAND_NAME={engine} can do this project's jobs",
            err=True,
        )
    if as_json:
        print_json([found])
    else:
        print_table(["", ""], _rows(found))


def _patterns(option: str, patterns: list[str] | None) -> list[str] | None:
    """What the options say: none at all, or, where the only one is empty, that a list is to be empty."""
    if patterns == [""]:
        return []
    if patterns and "" in patterns:
        raise ClientError(f"{option} '' removes all patterns and stands alone; those that are given replace the others")
    return patterns or None


def _rows(project: Project) -> list[tuple[str, Any]]:
    rows = project.model_dump()
    return [(name.replace("_", " "), _said(value)) for name, value in rows.items()]


def _said(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or None
    return value if value != {} else None
