"""What images did to recognisers, said in the central log with the job, the image and the engine's traceback.

An engine with a fault may fail a million images in the same way: of each kind the 1st, the 10th, the 100th and so on
are warnings, which hides none and floods nobody; all of them are debug lines, and each has its row.
"""

import logging
from collections import Counter

from job_api.schemas import ResultStatus
from uworker.holding import Holding
from uworker.tasks import Finished

log = logging.getLogger(__name__)

MAX_KINDS = 1_000
DEADLY = frozenset({ResultStatus.TIMEOUT.value, ResultStatus.CRASHED.value})


class FaultLog:
    """Counts the faults of one worker by their kind. Owned by the main thread."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def note(self, holding: Holding, image: str, report: Finished) -> None:
        """Say what is to be said about a finished image; of one that went well, nothing, unless its batch did not."""
        status, message = report.row.get("status"), report.row.get("error_message")
        context = {**holding.log_context, "image": image}
        if status in DEADLY:
            # Each of these has cost a process, so there are never many.
            log.warning("%s: %s: %s, %s", holding, image, status, message, extra=context)
        if report.fault is None:
            return
        if len(self._seen) >= MAX_KINDS:
            self._seen.clear()
        self._seen[report.fault.kind] += 1
        count = self._seen[report.fault.kind]
        level = logging.WARNING if _is_power_of_ten(count) else logging.DEBUG
        often = "" if count == 1 else f" (for the {count}th time)"
        context["traceback"] = report.fault.traceback
        words = message or "its batch failed, and each of its images was tried alone"
        log.log(level, "%s: %s: %s%s", holding, image, words, often, extra=context)


def _is_power_of_ten(count: int) -> bool:
    return str(count).rstrip("0") == "1"
