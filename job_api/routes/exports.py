"""The streamed export of a project's results."""

import asyncio
import logging
from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from job_api import projects
from job_api.errors import JobApiError
from job_api.export import Export
from job_api.routes.context import ProblemAnswer, ProjectPath, ServiceDep, door, route
from job_api.schemas import MAX_INT8, NEXT_SINCE_HEADER, ExportFormat, ResultStatus, Role
from job_api.text import MAX_PATH_BYTES

log = logging.getLogger(__name__)

router = door("/v4", "results")

# A client that takes nothing for so long is cut off, which frees its place; it can go on from its last row.
STALLED_SECONDS = 300.0

CONTENT_TYPES = {ExportFormat.CSV: "text/csv; charset=utf-8; header=present", ExportFormat.JSONL: "application/jsonl"}


class ExportResponse(StreamingResponse):
    """Sends an export, and closes it whatever happens.

    Where the export breaks, the response is left without its end, so that nobody takes it for whole.
    """

    def __init__(self, export: Export, *, stalled_seconds: float = STALLED_SECONDS, **options: Any) -> None:
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
                    "application/jsonl": {"schema": {"type": "string", "description": "a `Result` on each line"}},
                },
                "headers": {
                    NEXT_SINCE_HEADER: {
                        "description": "give this as `since` next time, to get what is stored or replaced after this",
                        "schema": {"type": "integer"},
                    }
                },
            },
            429: {"description": "Too many failed logins, or too many exports at once", **ProblemAnswer},
        },
    ),
)
async def export_results(
    running: ServiceDep,
    project: ProjectPath,
    format: Annotated[ExportFormat, Query(description="csv or jsonl")] = ExportFormat.CSV,  # noqa: A002 - the query's name
    status: Annotated[list[ResultStatus] | None, Query(description="only rows with one of these")] = None,
    directory: Annotated[str | None, Query(max_length=MAX_PATH_BYTES, pattern="^[^\\x00]*$")] = None,
    since: Annotated[int, Query(ge=0, le=MAX_INT8, description="only rows with a higher `seq`")] = 0,
) -> StreamingResponse:
    """Stream the rows of a project that are stored by now, in the order of `seq`.

    A download that breaks off is taken up again with the last row's `seq` as `since`. A row that is replaced while a
    download runs has a higher `seq` then, and is in the next answer instead: ask again with `Next-Since` as `since`
    until an answer brings no rows.
    """
    async with running.database.connection() as connection:
        project_id = await projects.project_id(connection, project)
    export = await running.exports.open(
        running.database, project_id, format, since=since, statuses=status, directory=directory
    )
    return ExportResponse(
        export,
        media_type=CONTENT_TYPES[format],
        headers={
            NEXT_SINCE_HEADER: str(export.until),
            "Content-Disposition": f'attachment; filename="{project}.{format}"',
        },
    )
