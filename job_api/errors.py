"""What the domain refuses: one exception root, each with its problem type and HTTP status."""

from typing import Any, ClassVar

from job_api.schemas import ProblemType


class JobApiError(Exception):
    """Root of every refusal; its text is the `detail` of the problem document."""

    status: ClassVar[int] = 500
    problem_type: ClassVar[ProblemType] = ProblemType.INTERNAL
    title: ClassVar[str] = "Internal error"
    retry_after_seconds: float | None = None
    errors: list[dict[str, Any]] | None = None


class NotFound(JobApiError):
    """There is no such thing, or none the caller may know of."""

    status = 404
    problem_type = ProblemType.NOT_FOUND
    title = "Not found"


class InvalidRequest(JobApiError):
    """The request makes no sense beyond what its schema can say."""

    status = 422
    problem_type = ProblemType.INVALID_REQUEST
    title = "Invalid request"


class Unauthenticated(JobApiError):
    """No valid login or token came with the request."""

    status = 401
    problem_type = ProblemType.UNAUTHENTICATED
    title = "Not logged in"


class Forbidden(JobApiError):
    """The caller may not do this."""

    status = 403
    problem_type = ProblemType.FORBIDDEN
    title = "Not allowed"


class WorkerIdTaken(JobApiError):
    """The worker id belongs to another user or token."""

    status = 403
    problem_type = ProblemType.WORKER_ID_TAKEN
    title = "Worker id taken"


class LeaseLost(JobApiError):
    """The caller does not hold the lease it names, or has ended it otherwise."""

    status = 409
    problem_type = ProblemType.LEASE_LOST
    title = "Lease lost"


class ResultsMissing(JobApiError):
    """Fewer rows are stored than images were listed."""

    status = 409
    problem_type = ProblemType.RESULTS_MISSING
    title = "Results missing"


class WrongState(JobApiError):
    """The job's state does not allow this."""

    status = 409
    problem_type = ProblemType.WRONG_STATE
    title = "Wrong state"


class NameTaken(JobApiError):
    """There is one of that name already."""

    status = 409
    problem_type = ProblemType.NAME_TAKEN
    title = "Name taken"


class ProjectBusy(JobApiError):
    """The project still has unfinished jobs."""

    status = 409
    problem_type = ProblemType.PROJECT_BUSY
    title = "Project busy"


class WorkerGone(JobApiError):
    """The worker has said goodbye; a new process takes a new id."""

    status = 409
    problem_type = ProblemType.WORKER_GONE
    title = "Worker gone"


class WorkerStopped(JobApiError):
    """The worker was told to drain or is quarantined."""

    status = 409
    problem_type = ProblemType.WORKER_STOPPED
    title = "Worker stopped"


class TooLarge(JobApiError):
    """The request's body is larger than allowed."""

    status = 413
    problem_type = ProblemType.TOO_LARGE
    title = "Body too large"


class TooManyRequests(JobApiError):
    """Too many failed logins, or too many exports at once."""

    status = 429
    problem_type = ProblemType.TOO_MANY_REQUESTS
    title = "Too many requests"

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class FormatUnavailable(JobApiError):
    """The service lacks what a format of results takes."""

    status = 501
    problem_type = ProblemType.FORMAT_UNAVAILABLE
    title = "Format unavailable"


class DatabaseUnavailable(JobApiError):
    """The database cannot be reached or is not ready."""

    status = 503
    problem_type = ProblemType.DATABASE_UNAVAILABLE
    title = "Database unavailable"
    retry_after_seconds = 2


class NoDiskSpace(JobApiError):
    """The database's disk is full."""

    status = 503
    problem_type = ProblemType.NO_DISK_SPACE
    title = "No disk space"
    retry_after_seconds = 30
