"""The streamed export of a project's results."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from job_api import projects, results
from job_api.routes.context import ProjectPath, ServiceDep, route
from job_api.schemas import MAX_INT8, NEXT_SINCE_HEADER, ExportFormat, ResultStatus, Role
from job_api.text import MAX_PATH_BYTES

router = APIRouter(prefix="/v4", tags=["results"])

CONTENT_TYPES = {ExportFormat.CSV: "text/csv; charset=utf-8; header=present", ExportFormat.JSONL: "application/jsonl"}


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
            }
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

    A download that breaks off is taken up again with the last row's `seq` as `since`.
    """
    async with running.database.connection() as connection:
        project_id = await projects.project_id(connection, project)
        until = await results.settled_seq(connection)
    rows = results.export(
        running.database, project_id, format, since=since, until=until, statuses=status, directory=directory
    )
    return StreamingResponse(
        rows,
        media_type=CONTENT_TYPES[format],
        headers={
            NEXT_SINCE_HEADER: str(max(since, until)),
            "Content-Disposition": f'attachment; filename="{project}.{format}"',
        },
    )
