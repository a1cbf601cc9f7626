"""A cloud takes the machine away: its metadata service says so, and the worker leaves in good order."""

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from job_api.client import Client
from job_api.schemas import JobState
from tests.plugins.fleet import Corpus, WorkerProcess, WorkerStarter
from tests.plugins.service import RunningService
from tests.scripted import Answer, Asked, ScriptedServer, serving
from tests.serving import LOAD_SECONDS, WAIT_SECONDS, wait_for
from uworker import eviction
from uworker.clouds import MAX_ANSWER_BYTES, Metadata, MetadataError
from uworker.eviction import FAILURES_BEFORE_WARNING, Eviction

PROJECT = "patents"
MACHINE = "spot_7"
GONE_SECONDS = 20.0


# --- metadata services as they are documented ---


@dataclass
class AzureMetadata:
    """Instance metadata and Scheduled Events of a VM."""

    events: list[dict[str, Any]] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)

    def __call__(self, asked: Asked) -> Answer:
        if asked.headers.get("Metadata") != "true" or "api-version" not in asked.query:
            return Answer(400, {"error": "Bad request. Required metadata header not specified"})
        match asked.method, asked.path:
            case "GET", "/metadata/instance/compute/name":
                return Answer(200, MACHINE, {"Content-Type": "text/plain"})
            case "GET", "/metadata/scheduledevents":
                return Answer(200, {"DocumentIncarnation": 2, "Events": self.events})
            case "POST", "/metadata/scheduledevents":
                self.acknowledged.extend(request["EventId"] for request in asked.body["StartRequests"])
                return Answer(200)
        return Answer(404, {"error": "Not found"})

    def evict(self) -> None:
        self.events = [event()]


def event(kind: str = "Preempt", resources: Sequence[str] = (MACHINE,), **given: Any) -> dict[str, Any]:
    # Longer than all tests take: some are made before the first of them begins.
    not_before = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)
    return {
        "EventId": "A123BC45-1234-5678-AB90-ABCDEF123456",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": list(resources),
        "EventStatus": "Scheduled",
        "NotBefore": not_before,
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    } | given


@dataclass
class AwsMetadata:
    """EC2's, with IMDSv2 required: nothing is told without a valid token."""

    action: dict[str, str] | None = None
    lifecycle: str | None = None
    tokens: int = 0
    refusal: int = 401

    def __call__(self, asked: Asked) -> Answer:
        if (asked.method, asked.path) == ("PUT", "/latest/api/token"):
            assert 1 <= int(asked.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21_600
            self.tokens += 1
            return Answer(200, f"token-{self.tokens}==")
        if asked.headers.get("X-aws-ec2-metadata-token") != f"token-{self.tokens}==":
            return Answer(self.refusal, "<html>Unauthorized</html>")
        if asked.path == "/latest/meta-data/spot/instance-action" and self.action is not None:
            return Answer(200, self.action)
        if asked.path == "/latest/meta-data/autoscaling/target-lifecycle-state" and self.lifecycle is not None:
            return Answer(200, self.lifecycle)
        return Answer(404, "<html>404 - Not Found</html>")

    def evict(self) -> None:
        self.action = {"action": "terminate", "time": "2030-09-18T08:22:00Z"}


@dataclass
class GcpMetadata:
    """Compute Engine's."""

    preempted: str = "FALSE"
    maintenance: str = "NONE"

    def __call__(self, asked: Asked) -> Answer:
        google = {"Metadata-Flavor": "Google", "Content-Type": "application/text"}
        if asked.headers.get("Metadata-Flavor") != "Google":
            return Answer(403, "Missing Metadata-Flavor:Google header", google)
        found = {"preempted": self.preempted, "maintenance-event": self.maintenance}
        text = found.get(asked.path.removeprefix("/computeMetadata/v1/instance/"))
        return Answer(404, "", google) if text is None else Answer(200, text, google)

    def evict(self) -> None:
        self.preempted = "TRUE"


AnyMetadata = AzureMetadata | AwsMetadata | GcpMetadata
KINDS: dict[str, type[AnyMetadata]] = {"azure": AzureMetadata, "aws": AwsMetadata, "gcp": GcpMetadata}
NAMED = {
    "azure": f"azure takes this machine away: Preempt of {MACHINE}, not before ",
    "aws": "aws takes this machine away: spot interruption: terminate at 2030-09-18T08:22:00Z",
    "gcp": "gcp takes this machine away: the VM is preempted",
}


# --- the watch ---


class Watch:
    """A watch at work, and how often it has called."""

    def __init__(self, cloud: str, server: ScriptedServer) -> None:
        self.calls: list[float] = []
        self.called = threading.Event()
        self.server = server
        self.eviction = Eviction(cloud, server.root, self._call, poll_seconds=0.05)
        self.eviction.start()

    def _call(self) -> None:
        self.calls.append(time.monotonic())
        self.called.set()

    @property
    def notice(self) -> str:
        """The notice's text, waited for."""
        assert self.called.wait(WAIT_SECONDS)
        assert self.eviction.notice is not None
        return self.eviction.notice.text

    def sees_nothing(self) -> bool:
        """Whether it looks again and again and finds no notice."""
        asked = len(self.server.asked)
        wait_for(lambda: len(self.server.asked) > asked + 6 or self.called.is_set(), WAIT_SECONDS)
        return not self.called.is_set()


Watcher = Callable[..., Watch]


@pytest.fixture
def watch() -> Iterator[Watcher]:
    """Starts watches; they end with the test."""
    watches: list[Watch] = []

    def start(cloud: str, server: ScriptedServer) -> Watch:
        watches.append(Watch(cloud, server))
        return watches[-1]

    yield start
    for watched in watches:
        watched.eviction.finish()
        watched.eviction._thread.join(WAIT_SECONDS)
        assert not watched.eviction._thread.is_alive()


@pytest.mark.parametrize("cloud", KINDS)
@pytest.mark.parametrize("setting", ["auto", "named"])
def test_a_notice_is_seen_and_told_once(watch: Watcher, cloud: str, setting: str) -> None:
    metadata = KINDS[cloud]()
    with serving(metadata) as server:
        watched = watch("auto" if setting == "auto" else cloud, server)
        assert watched.sees_nothing()
        metadata.evict()
        assert watched.notice.startswith(NAMED[cloud].partition(": ")[2])
        watched.eviction._thread.join(WAIT_SECONDS)
        assert len(watched.calls) == 1


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_every_interruption_of_a_spot_instance_is_a_notice(watch: Watcher, action: str) -> None:
    with serving(AwsMetadata({"action": action, "time": "2030-09-18T08:22:00Z"})) as server:
        assert watch("aws", server).notice == f"spot interruption: {action} at 2030-09-18T08:22:00Z"


def test_an_instance_that_its_group_takes_away_is_a_notice_and_one_in_service_is_none(watch: Watcher) -> None:
    metadata = AwsMetadata(lifecycle="InService")
    with serving(metadata) as server:
        watched = watch("aws", server)
        assert watched.sees_nothing()
        metadata.lifecycle = "Terminated"
        assert watched.notice == "Auto Scaling: target lifecycle state Terminated"


@pytest.mark.parametrize("status", [401, 410])
def test_a_token_that_is_not_valid_any_more_is_renewed(watch: Watcher, status: int) -> None:
    metadata = AwsMetadata(refusal=status)
    with serving(metadata) as server:
        watched = watch("aws", server)
        assert watched.sees_nothing()
        assert metadata.tokens == 1
        metadata.tokens += 1
        assert watched.sees_nothing()
        assert metadata.tokens == 3
        metadata.evict()
        assert watched.notice


def test_maintenance_that_ends_the_vm_is_a_notice_and_one_that_migrates_it_is_none(watch: Watcher) -> None:
    metadata = GcpMetadata(maintenance="MIGRATE_ON_HOST_MAINTENANCE")
    with serving(metadata) as server:
        watched = watch("gcp", server)
        assert watched.sees_nothing()
        metadata.maintenance = "TERMINATE_ON_HOST_MAINTENANCE"
        assert watched.notice == "maintenance of the host ends the VM"


SOON = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)


@pytest.mark.parametrize(
    "ignored",
    [
        event(resources=["spot_6", "spot_8"]),
        event("Freeze"),
        event("Freeze", EventStatus="Started", NotBefore=""),
        event("Reboot"),
        event("Redeploy"),
        event(Resources=None),
        event(Resources=MACHINE),
        event(EventType=7),
    ],
)
def test_what_takes_nothing_from_this_vm_now_is_ignored(watch: Watcher, ignored: dict[str, Any]) -> None:
    metadata = AzureMetadata([ignored])
    with serving(metadata) as server:
        watched = watch("azure", server)
        assert watched.sees_nothing()
        metadata.events = [ignored, event()]
        assert watched.notice
        assert metadata.acknowledged == []


@pytest.mark.parametrize(
    ("noticed", "acknowledged"),
    [
        (event(), True),
        (event("Terminate"), True),
        (event(resources=[MACHINE.upper()]), True),
        (event(resources=["spot_6", MACHINE]), False),
        (event("Reboot", NotBefore=SOON), False),
        (event("Redeploy", EventStatus="Started", NotBefore=""), False),
        (event(EventId=None), False),
    ],
)
def test_only_what_ends_this_vm_alone_is_acknowledged_and_only_at_the_end(
    watch: Watcher, noticed: dict[str, Any], acknowledged: bool
) -> None:
    metadata = AzureMetadata([noticed])
    with serving(metadata) as server:
        watched = watch("azure", server)
        assert watched.notice.startswith(f"{noticed['EventType']} of {MACHINE}, not before ")
        assert metadata.acknowledged == []
        watched.eviction.finish()
        assert metadata.acknowledged == ([noticed["EventId"]] if acknowledged else [])


def test_an_acknowledgement_that_fails_is_said_and_costs_nothing(
    watch: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = AzureMetadata([event()])
    with serving(lambda asked: Answer(500) if asked.method == "POST" else metadata(asked)) as server:
        watched = watch("azure", server)
        assert watched.notice
        watched.eviction.finish()
    assert "azure could not be told that this worker has ended" in caplog.text


# --- services that do not do as they should ---

BAD_ANSWERS = [
    Answer(500, "Internal Server Error"),
    Answer(429, "Too many requests"),
    Answer(410, "Gone"),
    Answer(200, "<html>log in here</html>"),
    Answer(200, "[1, 2]"),
    Answer(200, {"Events": {"EventType": "Preempt"}, "action": 7}),
    Answer(200, b"\xff\xfe\x00"),
    Answer(200, "x" * 3_000_000),
    Answer(200, ""),
    Answer(200, "cut off", cut=True),
    Answer(0),
]


@pytest.mark.parametrize("cloud", KINDS)
def test_bad_answers_end_nothing_and_a_notice_after_them_is_seen(watch: Watcher, cloud: str) -> None:
    metadata = KINDS[cloud]()
    bad: list[Answer] = []
    met = threading.Event()

    def answer(asked: Asked) -> Answer:
        return bad.pop(0) if bad and met.is_set() else metadata(asked)

    with serving(answer) as server:
        watched = watch(cloud, server)
        assert watched.sees_nothing()
        bad.extend(BAD_ANSWERS)
        met.set()
        wait_for(lambda: not bad, WAIT_SECONDS)
        assert watched.sees_nothing()
        metadata.evict()
        assert watched.notice


@pytest.mark.parametrize("cloud", KINDS)
def test_a_service_that_fails_for_long_is_said_once(
    watch: Watcher, cloud: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving([Answer(503)]) as server:
        watch(cloud, server)
        wait_for(lambda: len(server.asked) >= 4 * FAILURES_BEFORE_WARNING, WAIT_SECONDS)
    said = [record for record in caplog.records if record.name.startswith("uworker") and record.levelno > logging.DEBUG]
    assert [record.levelname for record in said] == ["WARNING"]
    assert f"the metadata service of {cloud} fails" in said[0].getMessage()


def test_a_service_that_hangs_is_given_up_and_asked_again(watch: Watcher) -> None:
    metadata = GcpMetadata("TRUE")
    held: list[Asked] = []

    def answer(asked: Asked) -> Answer:
        held.append(asked)
        return Answer(hold=True) if len(held) == 1 else metadata(asked)

    with serving(answer) as server:
        assert watch("gcp", server).notice
        assert len(held) > 1


def test_an_answer_without_end_is_given_up() -> None:
    with serving([Answer(200, "x" * (MAX_ANSWER_BYTES + 1))]) as server, pytest.raises(MetadataError, match="no end"):
        Metadata(server.root).ask("GET", "/", {})


def test_an_answer_that_drips_is_given_up() -> None:
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not over.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        try:
            with pytest.raises(MetadataError, match="no end"):
                Metadata(f"http://127.0.0.1:{listener.getsockname()[1]}").ask("GET", "/", {}, seconds=0.5)
        finally:
            over.set()
            thread.join(WAIT_SECONDS)


def test_outside_of_a_cloud_nothing_is_said_and_nothing_asked_again(
    watch: Watcher, caplog: pytest.LogCaptureFixture
) -> None:
    with serving([Answer(404)]) as server:
        watched = watch("auto", server)
        watched.eviction._thread.join(WAIT_SECONDS)
        assert [(asked.method, asked.path.split("/")[1]) for asked in server.asked] == [
            ("GET", "metadata"),
            ("PUT", "latest"),
            ("GET", "computeMetadata"),
        ]
    assert not watched.called.is_set()
    assert not any(r.levelno > logging.DEBUG for r in caplog.records if r.name.startswith("uworker"))


def test_a_cloud_that_answers_late_at_first_is_asked_again(watch: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has just started and is busy."""
    monkeypatch.setattr(eviction, "MEET_SECONDS", 2.0)
    awake, metadata = threading.Event(), GcpMetadata("TRUE")
    asleep = iter([True, True])

    def answer(asked: Asked) -> Answer:
        if "Metadata-Flavor" in asked.headers and next(asleep, False):
            awake.wait(60)
        return metadata(asked) if "Metadata-Flavor" in asked.headers else Answer(404)

    with serving(answer) as server:
        try:
            assert "preempted" in watch("auto", server).notice
        finally:
            awake.set()
        assert sum("Metadata-Flavor" in asked.headers for asked in server.asked) >= 3


def test_a_network_that_answers_everything_with_a_page_is_no_cloud(watch: Watcher) -> None:
    with serving([Answer(200, "<html>Please log in</html>")]) as server:
        watched = watch("auto", server)
        watched.eviction._thread.join(WAIT_SECONDS)
        assert watched.eviction._cloud is None


def test_off_asks_nothing() -> None:
    with serving([Answer(404)]) as server:
        eviction = Eviction("off", server.root, lambda: None)
        eviction.start()
        eviction.finish()
        assert not eviction._thread.is_alive()
        assert server.asked == []


def test_neither_a_proxy_nor_a_redirect_leads_elsewhere(watch: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = GcpMetadata("TRUE")
    with serving([Answer(200, "TRUE", {"Metadata-Flavor": "Google"})]) as elsewhere:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.root)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        redirects = [Answer(307, "", {"Location": elsewhere.root + "/"})]
        with serving(lambda asked: redirects.pop() if redirects else metadata(asked)) as server:
            assert watch("gcp", server).notice
        assert elsewhere.asked == []


# --- the worker ---


def submit(service: RunningService, corpus: Corpus) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, corpus.project)
    admin.add_jobs(PROJECT, corpus.directories)
    return admin


def evict(
    service: RunningService, admin: Client, start_worker: WorkerStarter, metadata: AnyMetadata, server: ScriptedServer
) -> tuple[WorkerProcess, float]:
    """A worker in the middle of its jobs whose machine is taken away, and when that was."""
    worker = start_worker(service.root, service.token("worker"), once=False, eviction="auto", metadata_root=server.root)
    wait_for(lambda: admin.project(PROJECT).images.stored >= 10, LOAD_SECONDS)
    wait_for(lambda: "eviction notices are watched for" in worker.log)
    metadata.evict()
    return worker, time.monotonic()


def assert_left_in_order(service: RunningService, admin: Client, corpus: Corpus) -> None:
    """Nothing is claimed or charged, the worker has said goodbye, and what it had finished is stored."""
    counts = admin.project(PROJECT).jobs
    assert (counts.claimed, counts.waiting) == (0, 0)
    assert counts.queued >= 1
    assert counts.queued + counts.completed == len(corpus.directories)
    assert all(job.failures == 0 for job in admin.jobs(PROJECT))
    outcomes = {
        attempt.outcome
        for job in admin.jobs(PROJECT)
        if job.state is JobState.QUEUED
        for attempt in admin.job(PROJECT, job.id).attempts
    }
    assert outcomes == {"released"}
    [seen] = admin.workers()
    assert seen.state == "gone"
    assert all(row["smiles"] == corpus.smiles[row["directory"], row["image"]] for row in admin.results(PROJECT))
    service.assert_counters_equal_recount()


@pytest.mark.parametrize("cloud", KINDS)
def test_an_evicted_worker_leaves_in_order(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter, cloud: str
) -> None:
    admin = submit(service, paced_corpus)
    metadata = KINDS[cloud]()
    with serving(metadata) as server:
        worker, evicted_at = evict(service, admin, start_worker, metadata, server)
        children = worker.children()
        assert worker.wait(GONE_SECONDS) == 0, worker.log
        assert time.monotonic() - evicted_at < GONE_SECONDS
    assert not any(child.is_running() and child.status() != "zombie" for child in children)
    assert_left_in_order(service, admin, paced_corpus)
    assert NAMED[cloud] in worker.log
    [line] = [line for line in admin.logs(level="warning") if NAMED[cloud] in line.message]
    assert line.worker_id == next(admin.workers()).id
    ended = next(line for line in admin.logs() if " ends: " in line.message)
    said = int(ended.message.split(" jobs, ")[1].split()[0])
    assert admin.project(PROJECT).images.stored == said, "what it had finished is stored"
    if isinstance(metadata, AzureMetadata):
        assert metadata.acknowledged == [event()["EventId"]]
        assert worker.log.index("ends: ") < worker.log.index("need not wait"), "the machine may go only afterwards"


def test_a_sigterm_that_follows_a_notice_changes_nothing(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    # Google Cloud presses the power button at the very moment of its notice.
    admin = submit(service, paced_corpus)
    metadata = GcpMetadata()
    with serving(metadata) as server:
        worker, _ = evict(service, admin, start_worker, metadata, server)
        wait_for(lambda: NAMED["gcp"] in worker.log, GONE_SECONDS)
        worker.send(signal.SIGTERM)
        assert worker.wait(GONE_SECONDS) == 0, worker.log
    assert_left_in_order(service, admin, paced_corpus)


@pytest.mark.parametrize("trouble", ["another machine's event", "a service that fails", "a service that hangs"])
def test_a_worker_that_is_not_evicted_works_on(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter, trouble: str
) -> None:
    corpus = paced_corpus.part(2)
    admin = submit(service, corpus)
    metadata = AzureMetadata([event(resources=["spot_6"])])

    def answer(asked: Asked) -> Answer:
        if trouble == "another machine's event" or asked.path.endswith("/name"):
            return metadata(asked)
        return Answer(hold=True) if trouble == "a service that hangs" else Answer(500)

    with serving(answer) as server:
        root, token = service.root, service.token("worker")
        worker = start_worker(root, token, once=True, eviction="azure", metadata_root=server.root)
        assert worker.wait() == 0, worker.log
        assert any(asked.path == "/metadata/scheduledevents" for asked in server.asked)
    assert admin.project(PROJECT).jobs.completed == len(corpus.directories)
    assert metadata.acknowledged == []
