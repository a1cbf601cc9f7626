"""What Prometheus is told: requests by route and status, and jobs by state over all projects."""

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from job_api.counters import COLUMNS
from job_api.db import Connection
from job_api.schemas import JobState

REGISTRY = CollectorRegistry()
REQUESTS = Histogram(
    "job_api_request_seconds",
    "Time to answer a request, by route and status; long polls count with the time they waited.",
    ["method", "route", "status"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
    registry=REGISTRY,
)
JOBS = Gauge("job_api_jobs", "Jobs over all projects, by state.", ["state"], registry=REGISTRY)
IMAGES = Gauge("job_api_images", "Stored result rows over all projects.", ["recognised"], registry=REGISTRY)

SUMS = (
    "SELECT "  # noqa: S608 - column names are constants
    + ", ".join(f"coalesce(sum({column}), 0)::bigint AS {column}" for column in COLUMNS)
    + " FROM project_slots"
)


async def gauge_queue(connection: Connection) -> None:
    """Read the counters of all projects."""
    sums = await connection.fetchrow(SUMS)
    if sums is None:
        return
    for state in JobState:
        JOBS.labels(state).set(sums[state])
    IMAGES.labels("true").set(sums["images_recognised"])
    IMAGES.labels("false").set(sums["images_stored"] - sums["images_recognised"])


def forget_queue() -> None:
    """Say nothing of the queue, rather than something old."""
    JOBS.clear()
    IMAGES.clear()


def exposition() -> tuple[bytes, str]:
    """The text Prometheus reads, and its content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
