"""A worker whose images come from storage far away: reads side by side, and an end that waits for none of them."""

import signal
from collections.abc import Callable

import pytest

from job_api.schemas import JobState, ProjectSettings
from tests.emulators.buckets import Bucket
from tests.emulators.relay import Hang, Relay
from tests.plugins.clouds import Setter
from tests.plugins.fleet import WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import wait_for
from uworker.reader import READS_AT_ONCE

PROJECT = "patents"
IMAGES = 300
READS = "^GET .*[.]png"


@pytest.mark.parametrize("hang", [True, False], ids=["they hang", "they come meanwhile"])
def test_a_worker_ends_at_once_with_reads_on_their_way(
    service: RunningService,
    s3_bucket: Bucket,
    relay_to: Callable[[str], Relay],
    start_worker: WorkerStarter,
    set_environment: Setter,
    hang: bool,
) -> None:
    relay = relay_to(s3_bucket.emulator.server)
    # Nobody recognises them in this time: the weights are not even loaded.
    s3_bucket.fill({f"in/a/{number:04}.png": bytes(100) for number in range(IMAGES)})
    if hang:
        relay.plan(Hang(), times=IMAGES, matching=READS)
    relay.delay_seconds = 0.3 if hang else 3
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=f"{s3_bucket.url}/in"))
    admin.add_jobs(PROJECT, ["a"])
    set_environment(s3_bucket.behind(relay.address).environment)
    worker = start_worker(service.root, service.token("worker"), once=False, source_allow=s3_bucket.url)
    wait_for(lambda: relay.most_waiting >= READS_AT_ONCE)
    worker.send(signal.SIGTERM)
    assert worker.wait(20) == 0, worker.log
    assert "Traceback" not in worker.log
    assert relay.count(READS) < IMAGES
    [job] = admin.jobs(PROJECT)
    assert job.state is JobState.QUEUED
    [attempt] = admin.job(PROJECT, job.id).attempts
    assert attempt.outcome == "released"
