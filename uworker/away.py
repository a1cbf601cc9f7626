"""What an error says of what was asked, and what of the service alone; and how long is waited for an answer."""

import logging

from job_api.client import ApiError, ClientError, LeaseLost, NotFound, Refused

log = logging.getLogger(__name__)

# To be waited between asking and asking again.
RETRY_SECONDS = 2.0
# How often a fault of the service's own, or a refusal, is waited out before it is the job's: five minutes of them.
MAX_FAULTS = 150


def is_away(error: ClientError) -> bool:
    """Whether the service is away, or something else answers in its place: then no answer says anything of the job."""
    if not isinstance(error, ApiError):
        # No document of the service's, or none at all.
        return True
    by_another = error.problem_type == "about:blank" and error.status not in (400, 413, 422)
    return by_another or error.status == 429


class Patience:
    """With the service, for one question about one job.

    Args:
        waiting: who waits and for what, for the log.
    """

    def __init__(self, waiting: str) -> None:
        self._waiting = waiting
        self._faults = 0
        self._said = ""

    def bears(self, error: ClientError) -> bool:
        """Whether to ask again: always where the service is away, and not where the answer is meant for the job."""
        if isinstance(error, LeaseLost | NotFound):
            return False
        # A refusal is the whole worker's as a rule, which the heartbeat then ends.
        passing = isinstance(error, Refused) or (isinstance(error, ApiError) and error.status >= 500)
        self._faults = 0 if is_away(error) else self._faults + 1
        if self._faults and not (passing and self._faults < MAX_FAULTS):
            return False
        if str(error) != self._said:
            log.warning("%s: %s", self._waiting, error)
        self._said = str(error)
        return True

    def renew(self) -> None:
        """The service has given some of what was asked for."""
        self._faults = 0
