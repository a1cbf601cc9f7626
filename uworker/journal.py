"""The central log: lines of the parent and its children, sent to the service in batches by a thread of its own.

Lines are kept while the service is away, up to a bound; how many were dropped is said. No secret passes: the values of
the worker's own credentials are blanked wherever they appear.
"""

import logging
import threading
import traceback
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime

from job_api.client import ApiError, Client, ClientError
from job_api.schemas import Lease, LogLevel, LogLine
from job_api.text import MAX_TRACEBACK_CHARS, clean_text

_log = logging.getLogger(__name__)

MAX_LINES_KEPT = 20_000
LINES_PER_POST = 500
POST_SECONDS = 2.0
BLANKED = "[secret]"
REFUSED_FOR_GOOD = frozenset({400, 413, 422})

# What children print is noise on a terminal and evidence in the central log.
CHILDREN_LOGGER = "uworker.recogniser"


class SecretFilter(logging.Filter):
    """Blanks secrets in every record it sees."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = sorted((secret for secret in secrets if secret), key=len, reverse=True)

    def blank(self, text: str) -> str:
        """`text` without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, BLANKED)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Blank the record's message; its traceback is blanked where it is written."""
        message = record.getMessage()
        if (blanked := self.blank(message)) != message:
            record.msg, record.args = blanked, None
        return True


class LineFormatter(logging.Formatter):
    """One line for people: time in UTC, level, message; tracebacks without secrets."""

    def __init__(self, secrets: SecretFilter) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._secrets = secrets

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        """The time as ISO 8601 with seconds."""
        return datetime.fromtimestamp(record.created, UTC).strftime(datefmt or "%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it the traceback, be it of an exception here or of one in a recogniser."""
        line = super().format(record)
        trace = getattr(record, "traceback", None)
        return self._secrets.blank(f"{line}\n{trace.rstrip()}" if isinstance(trace, str) else line)


class Journal(logging.Handler):
    """Collects records and posts them.

    Args:
        client: the way to the service; must not try for long.
        worker_id: whose lines they are.
        secrets: blanks what must not be seen.
    """

    def __init__(self, client: Client, worker_id: str, secrets: SecretFilter) -> None:
        super().__init__(logging.DEBUG)
        self._client = client
        self._worker_id = worker_id
        self._secrets = secrets
        self._changed = threading.Condition()
        self._lines: deque[LogLine] = deque()
        self._dropped = 0
        self._closing = False
        self._thread = threading.Thread(target=self._post_for_ever, name="journal", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record as a line. What the sending itself logs stays on this machine, or it would feed itself."""
        if threading.current_thread() is self._thread:
            return
        line = self._line(record)
        with self._changed:
            if len(self._lines) >= MAX_LINES_KEPT:
                self._lines.popleft()
                self._dropped += 1
            self._lines.append(line)

    def _line(self, record: logging.LogRecord) -> LogLine:
        lease: Lease | None = getattr(record, "lease", None)
        trace = getattr(record, "traceback", None)
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info))
        if isinstance(trace, str):
            # Of a long one the end is kept: it says what happened.
            trace = clean_text(self._secrets.blank(trace), len(trace) * 4)[-MAX_TRACEBACK_CHARS:]
        image = getattr(record, "image", None)
        return LogLine(
            level=_level(record.levelno),
            message=clean_text(self._secrets.blank(record.getMessage())),
            logger=record.name[:200],
            traceback=trace,
            project=lease.project if lease else None,
            job_id=lease.job_id if lease else None,
            lease_seq=lease.lease_seq if lease else None,
            image=clean_text(self._secrets.blank(image)) if isinstance(image, str) else None,
        )

    def finish(self, seconds: float) -> None:
        """Send what is there, at most for `seconds`; what cannot be sent is counted on this machine's console."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds)
            with self._changed:
                left = len(self._lines) + self._dropped
            if left:
                _log.warning("%d log lines did not reach the service; those that were shown are here alone", left)

    def _post_for_ever(self) -> None:
        while True:
            with self._changed:
                if not self._closing:
                    self._changed.wait(POST_SECONDS)
                closing = self._closing
            while self._post_batch():
                pass
            if closing:
                return

    def _post_batch(self) -> bool:
        """Send the oldest lines; False when there are none, or they could not be sent."""
        with self._changed:
            lines = [line for line, _ in zip(self._lines, range(LINES_PER_POST), strict=False)]
            dropped = self._dropped
        if not lines:
            return False
        if dropped:
            note = f"{dropped} older log lines were dropped while the service could not be reached"
            lines = [LogLine(level=LogLevel.WARNING, message=note, logger=__name__), *lines]
        try:
            self._client.post_logs(self._worker_id, lines)
        except ClientError as error:
            # The heartbeat says it already, and this would add a line for each line.
            if not (isinstance(error, ApiError) and error.status in REFUSED_FOR_GOOD):
                return False
            # They would be refused for ever, and all later ones with them.
        sent = {id(line) for line in lines}
        with self._changed:
            # Lines may have been dropped on the left meanwhile; only those that were sent go.
            while self._lines and id(self._lines[0]) in sent:
                self._lines.popleft()
            self._dropped -= dropped
        return True


def _level(number: int) -> LogLevel:
    """The level of a record, also of one between the named ones."""
    named = min(max(number // 10 * 10, logging.DEBUG), logging.CRITICAL)
    return LogLevel(logging.getLevelName(named).lower())
