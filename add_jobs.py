#!/usr/bin/env python3
"""Adds directories to a project of the job service, one job for each; see `./add_jobs.py --help`.

All directories are checked before anything is sent, and then sent in batches. Adding again changes nothing, so a run
that broke off may be repeated, or taken up with `--skip`.
"""

import os
import re
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, BinaryIO

try:
    import typer

    from job_api.client import Client, ClientError, NotFound, Refused, Unreachable
    from job_api.config import CREDENTIALS_HINT, connect
    from job_api.listing import CannotList, Choice, as_url, list_directories, same_place
    from job_api.schemas import MAX_JOBS_PER_ADD, ProjectSettings
    from job_api.terminal import printable, progress_bar
    from job_api.text import check_directory
except ImportError as missing:
    home = Path(__file__).resolve().parent
    python = home / ".venv/bin/python"
    install = (
        "" if python.exists() else f"install it with: python3 -m venv {home}/.venv && {python} -m pip install {home}; "
    )
    sys.exit(f"{sys.executable} lacks what add_jobs.py needs ({missing}); {install}run it with: {python} {sys.argv[0]}")

MAX_BAD_ROWS_NAMED = 20
FEWEST_PER_BATCH = 100

Rows = Callable[[], Iterator[tuple[str, str]]]
"""Reads the input from its beginning: where each directory stands, and its name as it is written there."""


class BadInput(Exception):
    """What was asked for cannot be added."""


@dataclass
class Tally:
    """How far the run came."""

    acknowledged: int
    """Directories in input order up to the last batch the service has answered, skipped ones included."""
    added: int = 0
    present: int = 0


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def add_jobs(
    project: Annotated[str, typer.Argument(help="Name of the project; it is created if there is none.")],
    config: Annotated[
        Path | None,
        typer.Argument(
            help="File of KEY=value lines with JOB_API_ROOT, and JOB_API_USERNAME and JOB_API_PASSWORD, or "
            "JOB_API_TOKEN; docker/example.conf is one. The environment overrides it."
        ),
    ] = None,
    *,
    jobs_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="One directory per row, relative to the source of the project; - is standard input. Blank rows and "
            "rows that begin with '# ' are comments; write './# name' for such a name.",
        ),
    ] = None,
    list_root: Annotated[
        str | None,
        typer.Option(
            "--list",
            metavar="ROOT",
            help="Add the directories directly below ROOT, sorted: a local path, az://container/prefix, "
            "s3://bucket/prefix or gs://bucket/prefix. ROOT is the source of a new project, unless --source says "
            "otherwise.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Only directories whose whole name matches: * is any text, slashes too, ? one character, [ab] one of "
            "these. Upper and lower case differ. May be repeated: what any of them matches.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave these out, also where --include matches; may be repeated."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the directories of a new project lie: a URL or a local path."),
    ] = None,
    skip: Annotated[int, typer.Option(min=0, metavar="N", help="Leave out the first N directories.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the input, show what it is, send nothing.")] = False,
    retry_seconds: Annotated[
        float, typer.Option(min=0, help="How long to try again while the service cannot be reached.")
    ] = 60,
) -> None:
    """Add directories of images to a project, one job for each. Those it has already stay as they are."""
    if (jobs_file is None) == (list_root is None):
        raise typer.BadParameter("give the directories either by --jobs-file or by --list")
    tally = Tally(acknowledged=skip)
    try:
        with ExitStack() as stack:
            url = None if source is None else as_url(source)
            root = None if list_root is None else as_url(list_root)
            given = written(jobs_file or "-", stack) if root is None else listed(list_root or root, root)
            choice = Choice(include or [], exclude or [])
            total = check(given, choice, skip)
            rows = chosen(given, choice)
            if dry_run:
                show(project, rows, total, skip, url or root)
                return
            client = stack.enter_context(connect(config, retry_seconds=retry_seconds))
            ensure_project(client, project, url or root, chosen=url is not None)
            send(client, project, rows, total, tally)
    except KeyboardInterrupt:
        give_up("interrupted", tally)
    except ClientError as error:
        hint = f"; {CREDENTIALS_HINT}" if isinstance(error, Refused) and error.status == 401 else ""
        resumable = isinstance(error, Unreachable) or tally.acknowledged > skip
        give_up(f"{error}{hint}", tally if resumable else None)
    except (BadInput, CannotList) as error:
        give_up(str(error), None)
    typer.echo(f"{tally.acknowledged - skip} directories: {tally.added} added, {tally.present} already present")


def give_up(why: str, tally: Tally | None) -> None:
    """Say why the run ends, and where it may be taken up; exit 1."""
    typer.echo(f"add_jobs.py: {why}", err=True)
    if tally is not None:
        typer.echo(f"Exiting, you can try add_jobs.py again with --skip={tally.acknowledged}")
    raise typer.Exit(1)


# --- the input ---


def written(jobs_file: str, stack: ExitStack) -> Rows:
    """The rows of a file, and a note on its comments. What cannot be read twice (a pipe) is copied to a file first."""
    try:
        file: BinaryIO = sys.stdin.buffer if jobs_file == "-" else Path(jobs_file).open("rb")  # noqa: SIM115 - the stack
        stack.callback(file.close)
        if jobs_file == "-" or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - as above
            shutil.copyfileobj(file, spool)
            file = spool
    except OSError as error:
        raise BadInput(f"cannot read {jobs_file}: {error.strerror}") from None
    place = "standard input" if jobs_file == "-" else jobs_file
    file.seek(0)
    if comments := sum(line.startswith(b"# ") for line in file):
        # A directory may be called so, too.
        note = f"note: rows that begin with '# ' are comments, here {comments}; write './# name' for a name"
        typer.echo(note, err=True)

    def rows() -> Iterator[tuple[str, str]]:
        file.seek(0)
        for number, row in enumerate(file, start=1):
            line = row.removeprefix(b"\xef\xbb\xbf") if number == 1 else row
            # Only the line end goes: any other space may belong to the name. What is not UTF-8 is refused by the check.
            name = re.sub(rb"\r?\n\Z", b"", line).decode("utf-8", "surrogateescape")
            if name.strip() and not name.startswith("# "):
                yield f"{place}, line {number}", name

    return rows


def listed(place: str, url: str) -> Rows:
    """The directories directly below a place, given as it was typed and as its URL."""
    with progress_bar() as progress:
        progress.add_task(f"listing {printable(place)}", total=None)
        names = list_directories(url)
    return lambda: ((f"in {place}", name) for name in names)


def chosen(rows: Rows, choice: Choice) -> Rows:
    """Those that are wanted."""
    return lambda: (row for row in rows() if choice.wants(row[1])) if choice else rows()


def check(rows: Rows, choice: Choice, skip: int) -> int:
    """Count the directories that are wanted, and tell of patterns that match none.

    Raises:
        BadInput: some cannot be added (names them), or there is none, or fewer than `skip`.
    """
    seen, total = 0, 0
    bad: list[str] = []
    for place, name in rows():
        seen += 1
        if not choice.wants(name):
            continue
        total += 1
        try:
            check_directory(name)
        except ValueError as error:
            bad.append(f"{place}: '{printable(name, 80)}' {error}" if len(bad) < MAX_BAD_ROWS_NAMED else "")
    if bad:
        more = len(bad) - MAX_BAD_ROWS_NAMED
        named = [*bad[:MAX_BAD_ROWS_NAMED], *([f"and {more} more"] if more > 0 else [])]
        raise BadInput("nothing was added, these rows must be put right, or excluded:\n  " + "\n  ".join(named))
    for option in choice.unmatched():
        typer.echo(f"note: {printable(option)} matches none of the {seen} directories", err=True)
    if total == 0:
        raise BadInput("there is no directory to add" + (f": none of {seen} is left by the patterns" if seen else ""))
    if skip > total:
        raise BadInput(f"--skip={skip} leaves nothing to add: there are {total} directories")
    return total


# --- the service ---


def ensure_project(client: Client, project: str, source: str | None, *, chosen: bool) -> None:
    """Create the project if there is none, and make sure that an existing one has that source.

    Args:
        client: the way to the service.
        project: its name.
        source: URL of where the directories lie, if that is known.
        chosen: whether it was given as the source, or is just the place that was listed.

    Raises:
        BadInput: the project needs a source, or has another.
    """
    try:
        existing = client.project(project)
    except NotFound:
        if source is None:
            raise BadInput(
                f"there is no project {project}; to create it, say with --source where its directories lie"
            ) from None
        client.put_project(project, ProjectSettings(source=source))
        typer.echo(f"project {project} created, source {source}")
        return
    if source is None or same_place(source, existing.source):
        return
    if not chosen:
        raise BadInput(
            f"project {project} has the source {existing.source}, not {source}, which was listed; list that, "
            f"or add --source '{existing.source}' if it is the same place under another name"
        )
    raise BadInput(
        f"project {project} has the source {existing.source}, not {source}; "
        "leave out --source, or choose another project for these directories"
    )


def send(client: Client, project: str, rows: Rows, total: int, tally: Tally) -> None:
    """Send the directories that `tally` does not count yet, in batches of about a hundredth."""
    size = min(MAX_JOBS_PER_ADD, max(FEWEST_PER_BATCH, total // 100))
    names = (check_directory(name) for _, name in islice(rows(), tally.acknowledged, None))
    with progress_bar() as progress:
        task = progress.add_task("adding", total=total, completed=tally.acknowledged)
        while batch := list(islice(names, size)):
            answer = client.add_jobs(project, batch)
            tally.acknowledged += len(batch)
            tally.added += answer.added
            tally.present += answer.present
            progress.update(task, completed=tally.acknowledged)


def show(project: str, rows: Rows, total: int, skip: int, source: str | None) -> None:
    """Print what would be sent."""
    typer.echo(f"dry run: {total - skip} directories for project {project}" + (f", source {source}" if source else ""))
    for _, name in islice(rows(), skip, skip + 10):
        typer.echo(f"  {printable(check_directory(name))}")
    if total - skip > 10:
        typer.echo(f"  and {total - skip - 10} more")


if __name__ == "__main__":
    # A polite end is an interruption like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()
