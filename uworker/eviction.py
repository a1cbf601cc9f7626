"""The watch for eviction notices: a thread that asks the cloud's metadata service whether this machine is to go.

At a notice the worker is told, once, and ends as by SIGTERM. What a notice looks like is known by `clouds.py`.
"""

import logging
import threading
import time
from collections.abc import Callable

from uworker.clouds import CLOUDS, Cloud, Metadata, MetadataError, NoAnswerInTime, Notice

log = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"

# Of the 30 s that Azure and Google Cloud give at least, at most these pass before the notice is seen.
POLL_SECONDS = 2.0
MEET_SECONDS = 1.0
GUESSES = 5
FAILURES_BEFORE_WARNING = 5
WARNING_SECONDS = 3600.0


class Eviction:
    """Watches for a notice.

    Args:
        cloud: a name in `CLOUDS`; `auto` to ask each of them at the start, those that are too slow a few times; `off`
            to watch nothing.
        root: address of the metadata service.
        on_notice: called once, by the thread, when there is a notice.
        poll_seconds: from one look to the next.
    """

    def __init__(
        self, cloud: str, root: str, on_notice: Callable[[], None], *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._choice = cloud
        self._metadata = Metadata(root)
        self._on_notice = on_notice
        self._poll_seconds = poll_seconds
        self._cloud: Cloud | None = None
        self._stop = threading.Event()
        self._failures = 0
        self._warned_at: float | None = None
        self.notice: Notice | None = None
        self._thread = threading.Thread(target=self._watch, name="eviction", daemon=True)

    def start(self) -> None:
        """Start the thread, which may take minutes over an answer; nothing waits for it."""
        if self._choice != OFF:
            self._thread.start()

    def finish(self) -> None:
        """Watch no more; where there was a notice, let the cloud go ahead. To be called last of all."""
        self._stop.set()
        if self._cloud is None or self.notice is None or self.notice.event_id is None:
            return
        try:
            self._cloud.acknowledge(self.notice)
            log.info("%s was told that it need not wait for this machine any more", self._cloud.name)
        except MetadataError as error:
            log.warning("%s could not be told that this worker has ended: %s", self._cloud.name, error)

    def _watch(self) -> None:
        cloud = self._cloud = self._guess() if self._choice == AUTO else self._meet(CLOUDS[self._choice])
        while cloud is not None and not self._stop.is_set():
            try:
                notice = cloud.find_notice()
                self._failures = 0
            except Exception as error:  # noqa: BLE001 (whatever it is, the next look must come)
                notice = None
                self._note_failure(cloud, error)
            if notice is not None:
                log.warning("%s takes this machine away: %s; the worker ends", cloud.name, notice.text)
                self.notice = notice
                self._on_notice()
                return
            self._stop.wait(self._poll_seconds)

    def _guess(self) -> Cloud | None:
        """The cloud that this machine is in, or None; no cloud is no matter for a line in anyone's log."""
        open_kinds = list(CLOUDS.values())
        for _ in range(GUESSES):
            unanswered = []
            for kind in open_kinds:
                cloud = kind(self._metadata)
                try:
                    cloud.meet(MEET_SECONDS)
                except MetadataError as error:
                    log.debug("not %s: %s", cloud.name, error)
                    if isinstance(error, NoAnswerInTime):
                        unanswered.append(kind)
                else:
                    log.info("this machine is in %s, whose eviction notices are watched for", cloud.name)
                    return cloud
            # A machine that has just started may be too busy to answer in time.
            open_kinds = unanswered
            if not open_kinds or self._stop.wait(self._poll_seconds):
                break
        return None

    def _meet(self, kind: Callable[[Metadata], Cloud]) -> Cloud | None:
        """The cloud that was named in the settings, as soon as it answers; None where the worker ends before."""
        cloud = kind(self._metadata)
        while not self._stop.is_set():
            try:
                cloud.meet(MEET_SECONDS)
            except MetadataError as error:
                self._note_failure(cloud, error)
                self._stop.wait(self._poll_seconds)
            else:
                return cloud
        return None

    def _note_failure(self, cloud: Cloud, error: Exception) -> None:
        """Say it when it lasts, and then once an hour: one failure is nothing, and there may be thousands."""
        self._failures += 1
        now = time.monotonic()
        due = self._warned_at is None or now - self._warned_at >= WARNING_SECONDS
        if self._failures >= FAILURES_BEFORE_WARNING and due:
            self._warned_at = now
            log.warning("the metadata service of %s fails, so an eviction may come unseen: %s", cloud.name, error)
