"""What Prometheus is told: requests by route and status, and jobs by state over all projects.

Several processes of one command add their requests up in files (prometheus_client's multiprocess mode), so that any of
them may be asked; the queue is read from the database by the one that is asked, and stored nowhere.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from job_api.counters import COLUMNS
from job_api.db import Connection
from job_api.schemas import JobState

REQUESTS = Histogram(
    "job_api_request_seconds",
    "Time to answer a request, by route and status; long polls count with the time they waited.",
    ["method", "route", "status"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
    registry=None,
)

SUMS = (
    "SELECT "  # noqa: S608 - column names are constants
    + ", ".join(f"coalesce(sum({column}), 0)::bigint AS {column}" for column in COLUMNS)
    + " FROM project_slots"
)


async def read_queue(connection: Connection) -> Mapping[str, Any]:
    """The counters of all projects, summed."""
    return dict(await connection.fetchrow(SUMS) or {})


class _Queue(Collector):
    """The queue as it was read for one answer; nothing where it could not be read, rather than something old."""

    def __init__(self, sums: Mapping[str, Any]) -> None:
        self._sums = sums

    def collect(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("job_api_jobs", "Jobs over all projects, by state.", labels=["state"])
        images = GaugeMetricFamily("job_api_images", "Stored result rows over all projects.", labels=["recognised"])
        if self._sums:
            for state in JobState:
                jobs.add_metric([state], self._sums[state])
            images.add_metric(["true"], self._sums["images_recognised"])
            images.add_metric(["false"], self._sums["images_stored"] - self._sums["images_recognised"])
        return jobs, images


def exposition(queue: Mapping[str, Any]) -> tuple[bytes, str]:
    """The text Prometheus reads, and its content type; `queue` is what `read_queue` gave, or empty."""
    registry = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REQUESTS)
    registry.register(_Queue(queue))
    return generate_latest(registry), CONTENT_TYPE_LATEST
