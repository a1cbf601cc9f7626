"""The command that sends what people say of results, from an XLSX or CSV file such as `job-api results` writes."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from job_api.cli.options import Config, ProjectArgument
from job_api.client import ClientError
from job_api.config import connect
from job_api.formats import INSTALL
from job_api.schemas import MAX_REVIEWS_PER_PUT, ExportFormat, NewReview, ReviewStatus
from job_api.terminal import printable
from job_api.text import mistake

app = typer.Typer()

NEEDED = ("directory", "image", "review_status")
SAID = ("review_status", "corrected_smiles", "note", "review_note")
"""Where all of these are empty, a row says nothing."""
TAKE_BACK = "none"
WORKBOOK = f".{ExportFormat.XLSX}"
UNREAD = {f".{other}" for other in ExportFormat} - {f".{ExportFormat.CSV}", WORKBOOK} | {".gz"}
# A row of an export may hold thousands of tokens.
csv.field_size_limit(16 << 20)


@dataclass(frozen=True)
class Line:
    """A row of the file: where it begins, of which image it is, what it says or why that makes no sense."""

    number: int
    image: str
    said: NewReview | str


@app.command()
def review(
    project: ProjectArgument,
    *,
    file: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="XLSX or CSV with the columns directory, image, review_status (accepted, corrected, rejected, or none "
            "to take it back), corrected_smiles; engine, note and smiles (the answer that was looked at) where wanted.",
        ),
    ],
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Refuse corrections that RDKit cannot read, where it is there.")
    ] = True,
    config: Config = None,
) -> None:
    """Accept, correct or reject results: the rows of a file whose review columns say something.

    A file of `job-api results` will do, with these columns filled in. Sending it again changes nothing.
    """
    stored = removed = unchanged = refused = 0
    with connect(config) as client:
        # Read as a whole first: of a file that is damaged nothing is sent.
        said = list(_lines(file, project))
        judged = _each_once(_judged(said, check=check), client.project(project).engine)
        while lines := list(islice(judged, MAX_REVIEWS_PER_PUT)):
            bad = [(line, line.said) for line in lines if isinstance(line.said, str)]
            good = {line.number: line.said for line in lines if isinstance(line.said, NewReview)}
            if good:
                answer = client.review(project, list(good.values()))
                stored, removed = stored + answer.stored, removed + answer.removed
                unchanged += answer.unchanged
                by_number = {line.number: line for line in lines}
                numbers = list(good)
                bad += [(by_number[numbers[row.index]], row.reason) for row in answer.refused]
            refused += len(bad)
            for line, reason in sorted(bad, key=lambda one: one[0].number):
                typer.echo(f"line {line.number}: {printable(line.image, 1000)}: {printable(reason, 1000)}", err=True)
    typer.echo(f"{stored} reviews stored, {removed} taken back, {unchanged} there already, {refused} refused")
    if refused:
        raise typer.Exit(1)


def _lines(path: Path, project: str) -> Iterator[Line]:
    """The rows that say something; those that are of another project say that instead."""
    if (ending := path.suffix.lower()) in UNREAD:
        raise ClientError(f"{path} ends in {ending}; wanted is an .xlsx or a .csv, as `job-api results` writes them")
    rows = _rows_of_workbook(path) if ending == WORKBOOK else _rows_of_csv(path)
    _, heading = next(rows, (0, []))
    if missing := [name for name in NEEDED if name not in heading]:
        raise ClientError(f"{path} has no column {', '.join(missing)}{_other_separator(heading)}")
    for number, cells in rows:
        # What is missing at the end is empty.
        row = dict.fromkeys(heading, "") | dict(zip(heading, cells, strict=False))
        if len(cells) > len(heading):
            yield Line(number, _image(row), "has more fields than the heading")
        elif row.get("project", project) not in ("", project):
            yield Line(number, _image(row), f"is of the project {row['project']}")
        elif any(row.get(name, "").strip() for name in SAID):
            yield Line(number, _image(row), _review(row))


def _rows_of_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of the line it begins in."""
    ended = 0
    try:
        # A spreadsheet may write a mark at the beginning.
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Strict: a quote that nobody closes would make all that follows one field.
            rows = csv.reader(file, strict=True)
            for cells in rows:
                number, ended = ended + 1, rows.line_num
                yield number, cells
    except UnicodeDecodeError:
        raise ClientError(f"{path} is not UTF-8; save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ClientError(f"{path} is no CSV: the row that begins in line {ended + 1}: {error}") from None
    except OSError as error:
        raise ClientError(f"cannot read {path}: {error.strerror}") from None


def _rows_of_workbook(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row of the first sheet with its number there."""
    try:
        from python_calamine import CalamineError, load_workbook  # noqa: PLC0415 - not everywhere installed
    except ModuleNotFoundError:
        raise ClientError(f"an xlsx takes python-calamine, which is not installed; {INSTALL}, or send a CSV") from None
    try:
        with path.open("rb") as file:
            sheet = load_workbook(file).get_sheet_by_index(0)
    except OSError as error:
        raise ClientError(f"cannot read {path}: {error.strerror}") from None
    except CalamineError as error:
        raise ClientError(f"{path} is no workbook: {error}") from None
    for number, cells in enumerate(sheet.to_python(skip_empty_area=False), start=1):
        # Each number of a workbook is a float.
        yield number, [f"{cell:.15g}" if isinstance(cell, float) else str(cell) for cell in cells]


def _other_separator(heading: list[str]) -> str:
    """What to say of a heading that other programs than ours would take apart."""
    other = any(separator in name for name in heading for separator in ";\t")
    return "; the separator must be a comma" if other else ""


def _image(row: dict[str, str]) -> str:
    return f"{row['directory']}/{row['image']}"


def _review(row: dict[str, str]) -> NewReview | str:
    """What a row says, or why it says nothing that makes sense."""
    said = {name: row.get(name, "").strip() for name in SAID}
    status = said["review_status"].lower()
    if status not in {*ReviewStatus, TAKE_BACK}:
        given = repr(said["review_status"]) if status else "nothing"
        return f"review_status: says {given}; say accepted, corrected, rejected or none"
    fields: dict[str, str | None] = {name: row[name] for name in ("directory", "image")}
    if "smiles" in row:
        fields["smiles"] = row["smiles"]
    if engine := row.get("engine"):
        fields["engine"] = engine
    if status == TAKE_BACK:
        return _checked(fields | {"review_status": None})
    if row.get("review_outdated", "").lower() == "true":
        return "is of an earlier answer; look at this one, then empty review_outdated"
    corrected, note = said["corrected_smiles"], said["note"] or said["review_note"]
    return _checked(fields | {"review_status": status, "corrected_smiles": corrected or None, "note": note or None})


def _checked(fields: dict[str, str | None]) -> NewReview | str:
    try:
        return NewReview.model_validate(fields)
    except ValidationError as error:
        return mistake(error)


def _judged(lines: Iterable[Line], *, check: bool) -> Iterator[Line]:
    """Refuse corrections that are no structures, where there is something that knows structures."""
    if not check or find_spec("rdkit") is None:
        yield from lines
        return
    from job_api.chemistry import check_smiles  # noqa: PLC0415 - RDKit

    for line in lines:
        smiles = line.said.corrected_smiles if isinstance(line.said, NewReview) else None
        if smiles is not None and check_smiles(smiles).normalized_smiles is None:
            yield Line(line.number, line.image, "corrected_smiles: RDKit cannot read it; --no-check sends it anyway")
        else:
            yield line


def _each_once(lines: Iterable[Line], engine: str) -> Iterator[Line]:
    """Refuse what is said of an answer after something was said of it; `engine` is meant where none is named."""
    first: dict[tuple[str | None, str, str], int] = {}
    for line in lines:
        if isinstance(line.said, NewReview):
            answer = (line.said.directory, line.said.image, line.said.engine or engine)
            if (number := first.setdefault(answer, line.number)) != line.number:
                yield Line(line.number, line.image, f"line {number} is of the same answer")
                continue
        yield line
