"""Jobs, as people see and steer them."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    StringConstraints,
    model_validator,
)

from job_api.schemas.fields import Directory, FailureId, JobId, Reason, Request, Wire, WorkerId, no_nul
from job_api.schemas.limits import MAX_EXAMPLES, MAX_IDS_PER_FILTER, MAX_INT8, MAX_JOBS_PER_ADD
from job_api.schemas.words import FailureKind, JobAction, JobState, Outcome, ResultStatus


class NewJobs(Request):
    """Directories to add, relative to the project's source."""

    directories: Annotated[list[Directory], Field(min_length=1, max_length=MAX_JOBS_PER_ADD)]
    priority: int = Field(default=0, ge=-1000, le=1000)


class JobsAdded(Wire):
    """How many directories of a request were new, and how many the project already had."""

    added: int
    present: int


class Job(Wire):
    """A job as listed."""

    id: int
    project: str
    directory: str
    state: JobState
    run: int
    lease_seq: int
    worker_id: str | None
    lease_expires_at: datetime | None
    due_at: datetime | None
    failures: int
    releases: int
    image_count: int | None
    reason: str | None
    message: str | None
    added_at: datetime
    finished_at: datetime | None


class Attempt(Wire):
    """One lease of a job, from claim to its end."""

    lease_seq: int
    worker_id: str
    claimed_at: datetime
    ended_at: datetime | None
    outcome: Outcome | None
    charged: bool
    new_results: int
    reason: str | None
    message: str | None


class JobDetail(Job):
    """One job with its attempts, newest first, and its result rows counted by status."""

    attempts: list[Attempt]
    results_by_status: dict[ResultStatus, int]


class Rerun(Request):
    """Which images of a finished job to do again: all, or those whose result has one of these statuses.

    Results of the project's engine count; images that it has none of are done in any case.
    """

    statuses: list[ResultStatus] | None = Field(default=None, min_length=1)


class JobFilter(Request):
    """Which jobs of a project are meant: those for which all that is given holds. No filter at all must be said."""

    all: bool = Field(default=False, description="every job of the project; needed where nothing else is given")
    states: list[JobState] | None = Field(default=None, min_length=1)
    worker_id: WorkerId | None = Field(default=None, description="jobs that this worker holds now")
    text: Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(no_nul)] | None = Field(
        default=None, description="part of the directory's name"
    )
    reason: Reason | None = Field(default=None, description="why the job is in its state, such as storage")
    ids: list[JobId] | None = Field(default=None, min_length=1, max_length=MAX_IDS_PER_FILTER)
    failure: FailureId | None = Field(
        default=None, description="failed jobs of this group of failures, or jobs with images of it"
    )

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        given = (self.states, self.worker_id, self.text, self.reason, self.ids, self.failure)
        narrowed = any(one is not None for one in given)
        if not narrowed and not self.all:
            raise ValueError('names no jobs; say "all": true if every job of the project is meant')
        if narrowed and self.all:
            raise ValueError("asks for all jobs and for some of them")
        return self


class JobsAction(Request):
    """Something to do to all jobs of a project that a filter names."""

    action: JobAction
    filter: JobFilter
    statuses: list[ResultStatus] | None = Field(
        default=None,
        min_length=1,
        description="rerun only: do the images again whose result by the project's engine has one of these",
    )
    dry_run: bool = Field(default=False, description="count, show some of the jobs, and change nothing")
    after: int = Field(default=0, ge=0, le=MAX_INT8, description="go on after this job: `next` of the answer before")
    as_of: AwareDatetime | None = Field(
        default=None, description="`as_of` of the first answer: jobs that came into their state since are left alone"
    )

    @model_validator(mode="after")
    def _statuses_are_of_a_rerun(self) -> Self:
        if self.statuses is not None and self.action is not JobAction.RERUN:
            raise ValueError(f"statuses go with rerun, not with {self.action}")
        return self

    @model_validator(mode="after")
    def _images_are_done_again_by_rerun(self) -> Self:
        if self.images_of is None:
            return self
        if self.action is JobAction.RETRY:
            raise ValueError("retry takes failed jobs, and this is a group of images; rerun does images again")
        if self.statuses is not None:
            raise ValueError("a group of images says itself which images are done again; leave statuses out")
        return self

    @property
    def images_of(self) -> str | None:
        """The group of failures whose images are meant, not their whole jobs."""
        failure = self.filter.failure
        return failure if failure is not None and failure.startswith(f"{FailureKind.IMAGE}-") else None


class JobExample(Wire):
    """One of the jobs that an action would change."""

    id: int
    directory: str
    state: JobState


class JobsActed(Wire):
    """How far an action on many jobs came."""

    matched: int = Field(default=0, description="jobs that the filter names")
    changed: int = Field(default=0, description="those that were changed, or would be")
    unchanged: int = Field(default=0, description="those that were as wanted already")
    skipped: int = Field(default=0, description="those whose state does not allow it, or is newer than `as_of`")
    next: int | None = Field(default=None, description="ask again with this as `after`; null when all is done")
    as_of: datetime
    examples: list[JobExample] = Field(default=[], max_length=MAX_EXAMPLES, description="of a dry run")

    def __add__(self, later: Self) -> Self:
        """This part and the one after it, as one."""
        counts = {name: getattr(self, name) + getattr(later, name) for name in _COUNTS}
        examples = (self.examples + later.examples)[:MAX_EXAMPLES]
        return self.model_copy(update={**counts, "next": later.next, "examples": examples})


_COUNTS = ("matched", "changed", "unchanged", "skipped")
