"""Files that are made here of the rows of a download, so that one that breaks can be taken up again: see `formats`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import typer
from pydantic import ValidationError

from job_api.client import Client, ClientError
from job_api.formats import About, FormatUnavailable, Outbox, TooManyRows, columns_read, encoded, open_writer
from job_api.schemas import DEFAULT_COLUMNS, ExportFormat, Project, ResultQuery
from job_api.text import mistake

MADE_HERE = frozenset({ExportFormat.PARQUET, ExportFormat.SDF, ExportFormat.XLSX, ExportFormat.ZIP})
BATCH_BYTES = 2**20


class MadeFile:
    """A file of a format that the service is not asked for.

    Raises:
        ClientError: what the format takes is not installed, or what the service answers.
        typer.BadParameter: a column is none.
    """

    def __init__(
        self,
        client: Client,
        project: str,
        export_format: ExportFormat,
        columns: list[str] | None,
        filters: Mapping[str, Any],
    ) -> None:
        shown = _names(columns)
        self.columns = columns_read(export_format, shown)
        """What the rows must come with."""
        about = About(
            project=Project.model_validate(client.project(project).model_dump()),
            service_version=client.server().version,
            made_at=datetime.now(UTC),
            columns=shown,
            filters=dict(filters),
        )
        self._sink = Outbox()
        try:
            self._writer = open_writer(export_format, about, self._sink)
        except FormatUnavailable as error:
            raise ClientError(str(error)) from None

    def blocks(self, records: Iterable[bytes], last: Callable[[], int]) -> Iterator[bytes]:
        """The file, as the rows come.

        Raises:
            ClientError: the format is for fewer rows.
        """
        try:
            yield from encoded(self._writer, self._sink, _batches(records), last)
        except TooManyRows as error:
            raise ClientError(str(error)) from None

    def __str__(self) -> str:
        return str(self._writer.counts)


def _names(columns: list[str] | None) -> list[str]:
    try:
        return ResultQuery.model_validate({"columns": columns}).columns or list(DEFAULT_COLUMNS)
    except ValidationError as error:
        raise typer.BadParameter(mistake(error)) from None


def _batches(records: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch, size = [], 0
    for record in records:
        batch.append(record)
        size += len(record)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
