"""The streamed export of a project's results."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from job_api import projects
from job_api.encoding import EncodedExport
from job_api.errors import InvalidRequest, JobApiError
from job_api.export import Export
from job_api.formats import MAX_XLSX_ROWS, TOO_MANY_FOR_XLSX, About, columns_read
from job_api.routes.context import ProblemAnswer, ProjectPath, Service, ServiceDep, door, route, while_on_the_line
from job_api.schemas import (
    DEFAULT_COLUMNS,
    NEXT_SINCE_HEADER,
    ROWS_OMITTED_HEADER,
    ExportFormat,
    Project,
    ResultQuery,
    Role,
)
from job_api.version import VERSION

log = logging.getLogger(__name__)

router = door("/v4", "results")

# A client that takes nothing for so long is cut off, which frees its place; it can go on from its last row.
STALLED_SECONDS = 300.0

CONTENT_TYPES = {
    ExportFormat.CSV: "text/csv; charset=utf-8; header=present",
    ExportFormat.JSONL: "application/jsonl",
    ExportFormat.SMI: "chemical/x-daylight-smiles",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
    ExportFormat.SDF: "chemical/x-mdl-sdfile",
    ExportFormat.XLSX: "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ExportFormat.ZIP: "application/zip",
}
# Of these PostgreSQL writes the rows, and a child process the file (`encoding`).
ENCODED = frozenset({ExportFormat.PARQUET, ExportFormat.SDF, ExportFormat.XLSX, ExportFormat.ZIP})
# How many they are is known when the last is sent, and no header comes after that; `job-api results` counts them.
OMITTED = {
    ExportFormat.SMI: "without a SMILES; with white space in it; rejected by a review",
    ExportFormat.SDF: "without a SMILES; with one that RDKit cannot parse or draw; rejected by a review",
}


BINARY = {"type": "string", "format": "binary"}


class ExportResponse(StreamingResponse):
    """Sends an export, and closes it whatever happens.

    Where the export breaks, the response is left without its end, so that nobody takes it for whole.
    """

    def __init__(
        self, export: Export | EncodedExport, *, stalled_seconds: float = STALLED_SECONDS, **options: Any
    ) -> None:
        super().__init__(export, **options)
        self._export = export
        self._stalled_seconds = stalled_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._export.close()

    async def stream_response(self, send: Send) -> None:
        """Send it, block by block; compressing is left to the application's middleware, which does it in a thread."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for block in self._export:
                async with asyncio.timeout(self._stalled_seconds):
                    await send({"type": "http.response.body", "body": block, "more_body": True})
        except JobApiError as error:
            log.warning("an export broke off: %s", error)
        except TimeoutError:
            log.warning("an export was cut off: its client took nothing for %.0f s", self._stalled_seconds)
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@router.get(
    "/{project}/results",
    response_class=StreamingResponse,
    **route(
        Role.READ,
        404,
        responses={
            200: {
                "description": "The rows in the order of `seq`",
                "content": {
                    "text/csv": {"schema": {"type": "string"}},
                    "application/jsonl": {
                        "schema": {
                            "type": "string",
                            "description": "a `Result`, of the columns that were asked for, on each line",
                        }
                    },
                    "chemical/x-daylight-smiles": {
                        "schema": {
                            "type": "string",
                            "description": "on each line a SMILES (the corrected one where there is one), a tab, and "
                            "the image's path with its directory",
                        }
                    },
                    **{CONTENT_TYPES[export_format]: {"schema": BINARY} for export_format in sorted(ENCODED)},
                },
                "headers": {
                    NEXT_SINCE_HEADER: {
                        "description": "give this as `since` next time, to get what is stored or replaced after this",
                        "schema": {"type": "integer"},
                    },
                    ROWS_OMITTED_HEADER: {
                        "description": "which rows the format cannot hold and leaves out; absent where it holds all",
                        "schema": {"type": "string"},
                    },
                },
            },
            429: {"description": "Too many failed logins, or too many exports at once", **ProblemAnswer},
            501: {"description": "This service lacks the library that writes the format", **ProblemAnswer},
        },
    ),
)
async def export_results(
    request: Request, running: ServiceDep, project: ProjectPath, query: Annotated[ResultQuery, Query()]
) -> Response:
    """Stream the rows of a project that are stored by now, in the order of `seq`.

    A download that breaks off is taken up again with the last row's `seq` as `since`. A row that is replaced while a
    download runs has a higher `seq` then, and is in the next answer instead: ask again with `Next-Since` as `since`
    until an answer brings no rows. A directory that the project does not have, and an engine that no project has had,
    are refused (404).

    Parquet, XLSX and zip come as they are, whatever encoding is accepted. An XLSX is for at most 100,000 rows, and is
    refused where there are more (422). The last record of an SDF says in the field `EXPORT_COUNTS` how many rows were
    left out; a zip says it in its manifest.
    """
    async with running.database.connection() as connection:
        row = await projects.row_of(connection, project)
    project_id, settings = row["id"], Project.model_validate(dict(row))
    export: Export | EncodedExport
    if query.format in ENCODED:
        try:
            export = await _encoded(request, running, project_id, settings, query)
        except ClientDisconnect:
            # Nobody reads it.
            return Response(status_code=499)
    else:
        export = await running.exports.open(running.database, project_id, query)
    headers = {
        NEXT_SINCE_HEADER: str(export.until),
        "Content-Disposition": f'attachment; filename="{project}.{query.format}"',
    }
    if query.format in OMITTED:
        headers[ROWS_OMITTED_HEADER] = OMITTED[query.format]
    return ExportResponse(export, media_type=CONTENT_TYPES[query.format], headers=headers)


async def _encoded(
    request: Request, running: Service, project_id: int, project: Project, query: ResultQuery
) -> EncodedExport:
    shown = query.columns or list(DEFAULT_COLUMNS)
    rows = query.model_copy(
        update={"format": ExportFormat.JSONL, "columns": columns_read(query.format, shown)},
    )
    export = await running.exports.open(running.database, project_id, rows)
    about = About(
        project=project,
        service_version=VERSION,
        made_at=datetime.now(UTC),
        columns=shown,
        filters=query.model_dump(mode="json", exclude={"format", "columns"}, exclude_none=True),
        next_since=export.until,
    )
    # At once where no filter could let fewer pass; otherwise the one who writes them counts.
    if query.format is ExportFormat.XLSX and about.filters.keys() <= {"since"}:
        await _refuse_too_many(export)
    # An XLSX begins when it is made.
    async with while_on_the_line(request):
        return await running.encoders.open(export, query.format, about, running.settings.data_dir.expanduser())


async def _refuse_too_many(export: Export) -> None:
    try:
        rows = await export.count(MAX_XLSX_ROWS + 1)
    except BaseException:
        await export.close()
        raise
    if rows > MAX_XLSX_ROWS:
        await export.close()
        raise InvalidRequest(TOO_MANY_FOR_XLSX)
