"""What the metadata services of Azure, AWS and Google Cloud say about the end of the machine that asks them.

The forms they document are known here and nowhere else. When they are asked, and what follows, is `eviction.py`'s
matter. No secret is asked for; what they answer is believed only in the documented form.
"""

import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Protocol

import httpx

from job_api.text import clean_text

ANSWER_SECONDS = 5.0
ACKNOWLEDGE_SECONDS = 1.5
MAX_ANSWER_BYTES = 1_000_000
MAX_TEXT_CHARS = 300


class MetadataError(Exception):
    """The metadata service did not answer, or not as it is documented."""


class NoAnswerInTime(MetadataError):
    """It was too slow, which says nothing of what it would have answered."""


@dataclass(frozen=True)
class Notice:
    """The machine is going to be taken away.

    Attributes:
        text: What was announced, for people.
        event_id: What the cloud can be told to go ahead with, where this worker may say so.
    """

    text: str
    event_id: str | None = None


@dataclass(frozen=True)
class Reply:
    """An answer of the metadata service; `said` names the request."""

    said: str
    status: int
    text: str
    headers: httpx.Headers

    def expect(self, *statuses: int) -> "Reply":
        """Return this, or raise MetadataError where its status is none of these."""
        if self.status not in statuses:
            raise MetadataError(f"{self.said}: status {self.status}")
        return self

    def document(self) -> dict[str, Any]:
        """The JSON object in it.

        Raises:
            MetadataError: there is none.
        """
        try:
            document = json.loads(self.text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise MetadataError(f"{self.said}: no JSON object: {self.text[:80]!r}")
        return document


class Metadata:
    """The metadata service at an address; asked directly, whatever proxies are set, and never followed elsewhere."""

    def __init__(self, root: str) -> None:
        # No connection outlives its answer, so that there is nothing to close.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=root, trust_env=False, follow_redirects=False, limits=limits)

    def ask(
        self, method: str, path: str, headers: dict[str, str], *, seconds: float = ANSWER_SECONDS, body: Any = None
    ) -> Reply:
        """Send one request; waits at most `seconds` for each step of the answer.

        Raises:
            MetadataError: there was no answer, or one without an end.
        """
        said = f"{method} {path.partition('?')[0]}"
        deadline = time.monotonic() + seconds
        content = bytearray()
        try:
            with self._http.stream(method, path, headers=headers, json=body, timeout=seconds) as response:
                for part in response.iter_bytes():
                    content += part
                    if len(content) > MAX_ANSWER_BYTES:
                        raise MetadataError(f"{said}: the answer has no end")
                    if time.monotonic() > deadline:
                        raise NoAnswerInTime(f"{said}: the answer has no end after {seconds:g} s")
        except httpx.TimeoutException as error:
            raise NoAnswerInTime(f"{said}: {error or type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise MetadataError(f"{said}: {error or type(error).__name__}") from error
        return Reply(said, response.status_code, content.decode(errors="replace"), response.headers)


class Cloud(Protocol):
    """One cloud's metadata service."""

    name: str

    def meet(self, seconds: float) -> None:
        """Learn what must be known before notices can be looked for.

        Raises:
            MetadataError: this is another cloud, or none.
        """

    def find_notice(self) -> Notice | None:
        """Look for a notice that concerns this machine; or raise MetadataError."""

    def acknowledge(self, notice: Notice) -> None:
        """Tell the cloud that it need not wait for this machine any more; or raise MetadataError."""


class Azure:
    """Azure's Scheduled Events, which tell every VM of a scale set of the events of all.

    `Preempt` and `Terminate` are obeyed at once, however far ahead they are. From `Reboot` and `Redeploy`, which can be
    announced days before, the machine comes back: they are obeyed in their last minute. `Freeze` takes seconds and
    nothing is lost.
    """

    name = "azure"
    _HEADERS: ClassVar = {"Metadata": "true"}
    _NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    _EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
    _FINAL = frozenset({"Preempt", "Terminate"})
    _PASSING = frozenset({"Reboot", "Redeploy"})
    _LAST_SECONDS = 60.0
    # The first request of all switches the events on, and may take two minutes.
    _FIRST_ANSWER_SECONDS = 125.0

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._machine = ""
        self._switched_on = False

    def meet(self, seconds: float) -> None:
        """Learn the name of this VM."""
        reply = self._metadata.ask("GET", self._NAME, self._HEADERS, seconds=seconds).expect(200)
        name = reply.text.strip()
        if not re.fullmatch(r"[\w.-]{1,100}", name):
            raise MetadataError(f"{reply.said}: {name[:80]!r} is no name of a VM")
        self._machine = name

    def find_notice(self) -> Notice | None:
        """Look through the events of the whole scale set."""
        seconds = ANSWER_SECONDS if self._switched_on else self._FIRST_ANSWER_SECONDS
        reply = self._metadata.ask("GET", self._EVENTS, self._HEADERS, seconds=seconds).expect(200)
        self._switched_on = True
        events = reply.document().get("Events")
        if not isinstance(events, list):
            raise MetadataError(f"{reply.said}: no list of events")
        return next((self._notice(e) for e in events if isinstance(e, dict) and self._takes_this_machine(e)), None)

    def acknowledge(self, notice: Notice) -> None:
        """Start the event."""
        body = {"StartRequests": [{"EventId": notice.event_id}]}
        reply = self._metadata.ask("POST", self._EVENTS, self._HEADERS, seconds=ACKNOWLEDGE_SECONDS, body=body)
        reply.expect(200)

    def _takes_this_machine(self, event: dict[str, Any]) -> bool:
        kind = event.get("EventType")
        if self._machine.casefold() not in self._resources(event):
            return False
        return kind in self._FINAL or (kind in self._PASSING and self._is_due(event))

    def _is_due(self, event: dict[str, Any]) -> bool:
        try:
            starts_at = parsedate_to_datetime(str(event.get("NotBefore")))
        except ValueError:
            return True  # it has begun: then there is no time any more
        starts_at = starts_at if starts_at.tzinfo else starts_at.replace(tzinfo=UTC)
        return (starts_at - datetime.now(UTC)).total_seconds() < self._LAST_SECONDS

    def _notice(self, event: dict[str, Any]) -> Notice:
        event_id, kind = event.get("EventId"), event.get("EventType")
        # To acknowledge an event starts it for all machines that it names: the others are not ours to give up.
        alone = self._resources(event) == [self._machine.casefold()]
        text = f"{kind} of {self._machine}, not before {event.get('NotBefore') or 'now'}, event {event_id}"
        mine = alone and kind in self._FINAL and isinstance(event_id, str)
        return Notice(clean_text(text, MAX_TEXT_CHARS), event_id if mine else None)

    @staticmethod
    def _resources(event: dict[str, Any]) -> list[str]:
        resources = event.get("Resources")
        return [str(name).casefold() for name in resources] if isinstance(resources, list) else []


class Aws:
    """EC2's notices: the interruption of a spot instance, and an Auto Scaling group that takes the instance away.

    Rebalance recommendations are hints that often come to nothing, and maintenance is announced weeks ahead: neither is
    a notice. Asked by IMDSv2 alone.
    """

    name = "aws"
    _TOKEN = "/latest/api/token"  # noqa: S105 (a path)
    _SPOT = "/latest/meta-data/spot/instance-action"
    _LIFECYCLE = "/latest/meta-data/autoscaling/target-lifecycle-state"
    _LEAVING = frozenset({"Terminated", "Warmed:Terminated", "Warmed:Stopped", "Warmed:Hibernated"})
    _TOKEN_SECONDS = 21_600

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._token = ""

    def meet(self, seconds: float) -> None:
        """Get a session token."""
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(self._TOKEN_SECONDS)}
        reply = self._metadata.ask("PUT", self._TOKEN, headers, seconds=seconds).expect(200)
        if not re.fullmatch("[!-~]{1,1000}", reply.text):
            raise MetadataError(f"{reply.said}: no token")
        self._token = reply.text

    def find_notice(self) -> Notice | None:
        """Look for both."""
        reply = self._get(self._SPOT)
        if reply.status == 200:
            said = reply.document()
            if not isinstance(said.get("action"), str):
                raise MetadataError(f"{reply.said}: no action")
            return Notice(clean_text(f"spot interruption: {said['action']} at {said.get('time')}", MAX_TEXT_CHARS))
        state = self._get(self._LIFECYCLE)
        if state.status == 200 and state.text.strip() in self._LEAVING:
            return Notice(f"Auto Scaling: target lifecycle state {state.text.strip()}")
        return None

    def acknowledge(self, notice: Notice) -> None:
        """Nothing waits for this."""

    def _get(self, path: str) -> Reply:
        """The answer, or 404 where there is nothing; with a new token where the old one is not valid any more."""
        reply = self._metadata.ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
        if reply.status in (401, 410):
            self.meet(ANSWER_SECONDS)
            reply = self._metadata.ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
        return reply.expect(200, 404)


class Gcp:
    """Compute Engine's notices: preemption, and host maintenance that ends the VM instead of migrating it.

    Two keys are asked in turn instead of waiting for a change of one.
    """

    name = "gcp"
    _HEADERS: ClassVar = {"Metadata-Flavor": "Google"}
    _PREEMPTED = "/computeMetadata/v1/instance/preempted"
    _MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def meet(self, seconds: float) -> None:
        """Be sure that it is Google's."""
        self._get(self._PREEMPTED, seconds)

    def find_notice(self) -> Notice | None:
        """Look for both."""
        if (said := self._get(self._PREEMPTED, ANSWER_SECONDS)) == "TRUE":
            return Notice("the VM is preempted")
        if said != "FALSE":
            raise MetadataError(f"preempted is neither TRUE nor FALSE: {said[:80]!r}")
        if self._get(self._MAINTENANCE, ANSWER_SECONDS) == "TERMINATE_ON_HOST_MAINTENANCE":
            return Notice("maintenance of the host ends the VM")
        return None

    def acknowledge(self, notice: Notice) -> None:
        """Nothing waits for this."""

    def _get(self, path: str, seconds: float) -> str:
        reply = self._metadata.ask("GET", path, self._HEADERS, seconds=seconds).expect(200)
        if reply.headers.get("Metadata-Flavor") != "Google":
            raise MetadataError(f"{reply.said}: the answer is not Google's")
        return reply.text.strip()


CLOUDS: dict[str, type[Azure] | type[Aws] | type[Gcp]] = {cloud.name: cloud for cloud in (Azure, Aws, Gcp)}
