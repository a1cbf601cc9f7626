"""What becomes of an image that was in the hands of a process that died: it is tried again, alone, or has its row.

Decides, and marks the image; owns nothing.
"""

import hashlib
from typing import Any

from job_api.schemas import ResultStatus
from uworker.seat import Seat, Work

MAX_DEATHS_UNTOUCHED = 3
"""Children that may die with an image waiting in their hands before that image is suspected too."""


def judge(seat: Seat, work: Work, ending: str, image_timeout_seconds: float) -> dict[str, Any] | None:
    """Return the row of an image that its process cannot have survived, or note whether it must be alone next time.

    Args:
        seat: The dead process's, as it was.
        work: The image.
        ending: How the process ended, in words.
        image_timeout_seconds: The time that the image had.
    """
    task_id = work.task.task_id
    if task_id in seat.in_doubt:
        work.solo = True
        return None
    if task_id in seat.overdue:
        row = _row(work, ResultStatus.TIMEOUT, f"not recognised within {image_timeout_seconds:g} s")
        return row | {"duration_ms": round(image_timeout_seconds * 1000)}
    if seat.doomed:
        return None  # killed for another image's sake
    work.deaths += 1
    touched = task_id in seat.started_at
    if work.solo and (touched or work.deaths > MAX_DEATHS_UNTOUCHED):
        return _row(work, ResultStatus.CRASHED, f"the recogniser died on this image, tried alone ({ending})")
    work.solo = work.solo or touched or work.deaths >= MAX_DEATHS_UNTOUCHED
    return None


def _row(work: Work, status: ResultStatus, message: str) -> dict[str, Any]:
    digest = hashlib.sha256(work.task.data).hexdigest()
    return {"status": status.value, "error_message": message, "image_sha256": digest}
