"""What people say of the results."""

from typing import Annotated

from fastapi import Query, Request, Response

from job_api import projects, reviews
from job_api.routes.context import (
    AfterIdQuery,
    AfterNameQuery,
    CallerDep,
    LimitQuery,
    ProjectPath,
    ServiceDep,
    door,
    link_next,
    route,
)
from job_api.schemas import NewReviews, Page, Review, ReviewsStored, ReviewStatus, Role

router = door("/v4/{project}/reviews", "results")


@router.put("", **route(Role.SUBMIT, 404, 413))
async def put_reviews(
    running: ServiceDep, principal: CallerDep, project: ProjectPath, new: NewReviews
) -> ReviewsStored:
    """Say of up to 1,000 answers that they are accepted, corrected or rejected, or take that back.

    Each review is judged by itself: refused ones are named with reasons, the others are stored. They are signed with
    the caller's name, stay when an image is recognised again, and give their rows a new `seq`.
    """
    async with running.database.transaction() as connection:
        found = await projects.keep(connection, project)
        return await reviews.put(connection, found, new.reviews, principal.signature)


@router.get("", **route(Role.READ, 404))
async def list_reviews(
    request: Request,
    response: Response,
    running: ServiceDep,
    project: ProjectPath,
    status: Annotated[ReviewStatus | None, Query(description="only reviews that say this")] = None,
    after_job: AfterIdQuery = 0,
    after: AfterNameQuery = "",
    after_engine: AfterNameQuery = "",
    limit: LimitQuery = 100,
) -> Page[Review]:
    """The reviews of a project, by job, image and engine."""
    async with running.database.connection() as connection:
        project_id = await projects.project_id(connection, project)
        items = await reviews.page(connection, project_id, (after_job, after, after_engine), limit, status)
    if items:
        last = items[-1]
        link_next(request, response, items, limit, after_job=last.job_id, after=last.image, after_engine=last.engine)
    return Page(items=items)
