"""Log lines."""

from datetime import datetime
from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
)

from job_api.schemas.fields import JobId, LeaseSeq, Message, Name, ShortText, Wire, no_nul
from job_api.schemas.limits import MAX_LOG_LINES_PER_POST
from job_api.schemas.words import LogLevel
from job_api.text import (
    MAX_TRACEBACK_CHARS,
)


class LogLine(Wire):
    """A line of a worker's log; project, job, lease and image where it has them."""

    level: LogLevel = LogLevel.INFO
    message: Message
    logger: ShortText | None = None
    traceback: Annotated[str, StringConstraints(max_length=MAX_TRACEBACK_CHARS), AfterValidator(no_nul)] | None = None
    project: Name | None = None
    job_id: JobId | None = None
    lease_seq: LeaseSeq | None = None
    image: Message | None = None


class LogLines(Wire):
    """A batch of log lines."""

    lines: Annotated[list[LogLine], Field(max_length=MAX_LOG_LINES_PER_POST)]


class StoredLogLine(LogLine):
    """A log line as read back."""

    id: int
    received_at: datetime
    worker_id: str
