"""What is measured, each as a program of its own: `python -m benchmarks.storage.clients`, a plan on its standard input.

So that each has its own processor time, and its connections begin anew.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from azure.storage.blob import ContainerClient

from job_api.client import Client
from job_api.schemas import Lease
from job_api.stores import locate, open_store
from uworker.holding import Holding
from uworker.reader import Reader
from uworker.settings import WorkerSettings

READ_SECONDS = 600.0


@dataclass(frozen=True)
class Plan:
    """What to do.

    Args:
        what: one of `WAYS`.
        source: URL of the storage; its credentials are in the environment.
        directories: whose images are read; `images`: how many there are in them.
    """

    what: str
    source: str
    directories: Sequence[str] = ()
    images: int = 0


@dataclass(frozen=True)
class Found:
    """What came of it.

    Args:
        names: directories that were listed, or images that were read.
        data_bytes: of the images.
        seconds: from the first request to the last answer.
        processor_seconds: of this process in that time.
    """

    names: int
    data_bytes: int
    seconds: float
    processor_seconds: float


def list_directories(plan: Plan) -> tuple[int, int]:
    """Find the directories as `add_jobs.py` does."""
    return len(set(open_store(plan.source).directories())), 0


def read_as_a_worker(plan: Plan) -> tuple[int, int]:
    """Read the images with the worker's reader, and throw them away."""
    settings = WorkerSettings(job_api_root="http://127.0.0.1", source_allow=[plan.source])
    ready = threading.Event()
    # It would be asked which images are done, of jobs that were begun before.
    client = Client(settings.job_api_root, token="none")  # noqa: S106 - nobody is there to look at it
    reader = Reader(client, settings, ready.set)
    leases = [_lease(plan.source, directory, number) for number, directory in enumerate(plan.directories)]
    holdings = [Holding(lease, "benchmark") for lease in leases]
    reader.start()
    for holding in holdings:
        reader.add(holding)
    read, data_bytes, deadline = set[tuple[int, str]](), 0, time.monotonic() + READ_SECONDS
    while len(read) < plan.images and time.monotonic() < deadline:
        ready.clear()
        while (image := reader.take()) is not None:
            read.add((image.holding.lease.job_id, image.task.name))
            data_bytes += len(image.task.data)
        if failed := [holding for holding in holdings if holding.failure is not None]:
            raise SystemExit(f"{failed[0]} failed: {failed[0].failure}")
        ready.wait(1)
    reader.stop()
    return len(read), data_bytes


def _lease(source: str, directory: str, number: int) -> Lease:
    return Lease(
        job_id=number + 1,
        lease_seq=1,
        project="benchmark",
        directory=directory,
        source=source,
        engine="none",
        engine_options={},
        lease_seconds=READ_SECONDS,
        results_count=0,
    )


def read_with_the_sdk(plan: Plan) -> tuple[int, int]:
    """Read the images with Azure's own library, one after another, as a plain script does."""
    names, data_bytes = 0, 0
    connection_string = os.environ["AZURE_STORAGE_CONNECTION_STRING"]
    with ContainerClient.from_connection_string(connection_string, locate(plan.source).bucket) as container:
        for directory in plan.directories:
            for blob in container.list_blobs(name_starts_with=f"{directory}/"):
                data_bytes += len(container.download_blob(blob.name).readall())
                names += 1
    return names, data_bytes


WAYS: Mapping[str, Callable[[Plan], tuple[int, int]]] = {
    "list": list_directories,
    "worker": read_as_a_worker,
    "sdk": read_with_the_sdk,
}


def main() -> None:
    """Do what the plan says; the last line of what is printed is what came of it."""
    given: dict[str, Any] = json.load(sys.stdin)
    plan = Plan(**given)
    began, used = time.monotonic(), time.process_time()
    names, data_bytes = WAYS[plan.what](plan)
    found = Found(names, data_bytes, time.monotonic() - began, time.process_time() - used)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
