"""What has failed, in groups."""

from datetime import datetime

from pydantic import (
    Field,
)

from job_api.schemas.fields import Wire
from job_api.schemas.words import FailureKind, ResultStatus


class FailureExample(Wire):
    """One failure of a group."""

    job_id: int
    directory: str
    image: str | None
    message: str | None = Field(description="its first 500 characters")


class FailureGroup(Wire):
    """Failures whose messages are the same but for numbers, paths, names and ids."""

    id: str = Field(description="names the group in a filter of jobs (`failure`); the same as long as there is one")
    kind: FailureKind
    status: ResultStatus | None = Field(description="of the images; null where jobs have failed")
    reason: str | None = Field(description="why the jobs have failed; null where images have")
    shape: str = Field(description="what the messages have in common")
    count: int = Field(description="images or jobs")
    jobs: int = Field(description="different jobs of those counted")
    exact: bool = Field(
        description="false: counting was cut off, there may be more; first and last are of those counted"
    )
    first_at: datetime
    last_at: datetime
    examples: list[FailureExample] = Field(description="of different jobs")


class Failures(Wire):
    """What has failed in a project, the rare kinds first."""

    items: list[FailureGroup]
    total: int = Field(description="groups that were found, also those beyond `limit`")
    complete: bool = Field(description="false: there are more groups, and these are some of them")
