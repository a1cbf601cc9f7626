"""Whether an error says anything of what was asked, or only that the service is not there at present."""

from job_api.client import ApiError, ClientError


def is_away(error: ClientError) -> bool:
    """Whether the service is away, or something else answers in its place: then no answer says anything of the job."""
    if not isinstance(error, ApiError):
        # No document of the service's, or none at all.
        return True
    by_another = error.problem_type == "about:blank" and error.status not in (400, 413, 422)
    return by_another or error.status == 429
