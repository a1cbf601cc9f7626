"""The central log as the worker sends it: what a line carries, what is blanked, what is kept while nobody answers."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from job_api.client import Client
from job_api.schemas import LogLines
from tests.plugins.holder import LEASE
from tests.scripted import Answer, Asked, ScriptedServer, problem, serving
from tests.serving import WAIT_SECONDS, wait_for
from uworker.journal import BLANKED, MAX_LINES_KEPT, Journal, LineFormatter, SecretFilter

SECRET = "dj_a-very-secret-token"


def fail(reason: str) -> None:
    raise ValueError(reason)


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger that only the test's own handlers hear."""
    logger = logging.getLogger("uworker.test")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.propagate = True


class Service:
    """Takes log lines, or does not while it is `away`."""

    def __init__(self) -> None:
        self.away = threading.Event()
        self.posts: list[list[dict[str, Any]]] = []

    def __call__(self, asked: Asked) -> Answer:
        if self.away.is_set():
            return problem(503, "database-unavailable")
        assert asked.path == "/v4/workers/w-1/logs"
        LogLines.model_validate(asked.body)
        self.posts.append(asked.body["lines"])
        return Answer(204)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [line for post in self.posts for line in post]

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def server(service: Service) -> Iterator[ScriptedServer]:
    with serving(service) as running:
        yield running


Attach = Callable[..., Journal]


@pytest.fixture
def attach(server: ScriptedServer, log: logging.Logger) -> Iterator[Attach]:
    """Starts a journal and adds it to the logger; all end with the test."""
    made: list[tuple[Journal, Client]] = []

    def start(*secrets: str) -> Journal:
        client = Client(server.root, token=SECRET, retry_seconds=0)
        journal = Journal(client, "w-1", SecretFilter(secrets))
        made.append((journal, client))
        journal.start()
        log.addHandler(journal)
        return journal

    yield start
    for journal, client in made:
        journal.finish(WAIT_SECONDS)
        client.close()


def test_a_line_carries_where_it_belongs(attach: Attach, service: Service, log: logging.Logger) -> None:
    journal = attach()
    log.warning("%s was slow", "a.png", extra={"lease": LEASE, "image": "a.png"})
    log.info("plain")
    journal.finish(WAIT_SECONDS)
    assert service.lines == [
        {
            "level": "warning",
            "message": "a.png was slow",
            "logger": "uworker.test",
            "project": "patents",
            "job_id": 17,
            "lease_seq": 3,
            "image": "a.png",
        },
        {"level": "info", "message": "plain", "logger": "uworker.test"},
    ]


def test_an_exception_comes_with_its_traceback(attach: Attach, service: Service, log: logging.Logger) -> None:
    journal = attach()
    try:
        int("no number")
    except ValueError:
        log.exception("it failed")
    journal.finish(WAIT_SECONDS)
    [line] = service.lines
    assert (line["level"], line["message"]) == ("error", "it failed")
    assert line["traceback"].startswith("Traceback (most recent call last):")
    assert line["traceback"].rstrip().endswith("ValueError: invalid literal for int() with base 10: 'no number'")


def test_secrets_are_blanked_in_message_arguments_traceback_and_image(
    attach: Attach, service: Service, log: logging.Logger
) -> None:
    journal = attach(SECRET, "pass word")
    try:
        fail(f"wrong: {SECRET}")
    except ValueError:
        log.exception("asked with %s and %r", SECRET, {"password": "pass word"}, extra={"image": f"{SECRET}.png"})
    journal.finish(WAIT_SECONDS)
    [line] = service.lines
    assert line["message"] == f"asked with {BLANKED} and {{'password': '{BLANKED}'}}"
    assert SECRET not in str(line)
    assert f"wrong: {BLANKED}" in line["traceback"]


def test_a_line_for_people_has_no_secret_either() -> None:
    secrets = SecretFilter([SECRET])
    try:
        fail(SECRET)
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "with %s", (SECRET,), (ValueError, error, None))
    assert secrets.filter(record)
    line = LineFormatter(secrets).format(record)
    assert SECRET not in line
    assert line.count(BLANKED) == 2


def test_no_secrets_blank_nothing() -> None:
    assert SecretFilter([""]).blank("as it is") == "as it is"


def test_text_that_cannot_be_stored_is_cleaned(attach: Attach, service: Service) -> None:
    journal = attach()
    # Not by a logger: pytest keeps what they say, and its processes cannot pass such text on.
    record = {"name": "x", "levelno": logging.INFO, "msg": "caf\udce9\0 " + "x" * 10_000, "image": "caf\udce9.png"}
    journal.handle(logging.makeLogRecord(record))
    journal.finish(WAIT_SECONDS)
    [line] = service.lines
    assert line["message"].startswith("caf\\xe9\ufffd xxx")
    assert len(line["message"]) == 4000
    assert line["image"] == "caf\\xe9.png"


def test_lines_are_kept_in_order_while_the_service_is_away(
    attach: Attach, service: Service, server: ScriptedServer, log: logging.Logger
) -> None:
    service.away.set()
    journal = attach()
    for number in range(1_200):
        log.info("%d", number)
    wait_for(lambda: server.asked, WAIT_SECONDS)
    service.away.clear()
    log.info("back")
    journal.finish(WAIT_SECONDS)
    assert service.messages == [*map(str, range(1_200)), "back"]
    assert len(service.posts) > 1


def test_what_does_not_fit_is_dropped_oldest_first_and_counted(
    attach: Attach, service: Service, server: ScriptedServer, log: logging.Logger
) -> None:
    service.away.set()
    journal = attach()
    for number in range(MAX_LINES_KEPT + 25):
        log.info("%d", number)
    wait_for(lambda: server.asked, WAIT_SECONDS)
    service.away.clear()
    journal.finish(WAIT_SECONDS)
    assert service.messages == [
        "25 older log lines were dropped while the service could not be reached",
        *map(str, range(25, MAX_LINES_KEPT + 25)),
    ]


def test_logging_never_waits_for_the_service(log: logging.Logger) -> None:
    with serving([Answer(hold=True)]) as server, Client(server.root, token=SECRET, retry_seconds=0) as client:
        journal = Journal(client, "w-1", SecretFilter([]))
        journal.start()
        log.addHandler(journal)
        log.info("first")
        assert server.held.wait(WAIT_SECONDS)
        began = time.monotonic()
        for number in range(1_000):
            log.info("%d", number)
        assert time.monotonic() - began < 5
        began = time.monotonic()
        journal.finish(0.3)
        assert time.monotonic() - began < 5, "the end does not wait for it for long either"
        log.removeHandler(journal)
        # The server lets go of it, and the thread ends.
        server.ended.set()
        journal.finish(WAIT_SECONDS)


def test_a_journal_that_was_never_started_ends_at_once(server: ScriptedServer) -> None:
    with Client(server.root, token=SECRET, retry_seconds=0) as client:
        Journal(client, "w-1", SecretFilter([])).finish(WAIT_SECONDS)
    assert server.asked == []


def test_what_the_sending_itself_logs_is_not_sent(attach: Attach, service: Service, log: logging.Logger) -> None:
    journal = attach()
    # It logs a line for each request.
    http_log = logging.getLogger("httpx")
    http_log.addHandler(journal)
    level = http_log.level
    http_log.setLevel(logging.INFO)
    try:
        log.info("a line")
        journal.finish(WAIT_SECONDS)
    finally:
        http_log.removeHandler(journal)
        http_log.setLevel(level)
    assert service.messages == ["a line"]


def test_of_a_long_traceback_the_end_is_kept(attach: Attach, service: Service, log: logging.Logger) -> None:
    journal = attach()
    try:
        fail("x" * 30_000 + " the end")
    except ValueError:
        log.exception("long")
    journal.finish(WAIT_SECONDS)
    [line] = service.lines
    assert len(line["traceback"]) == 20_000
    assert line["traceback"].rstrip().endswith(" the end")


@pytest.mark.parametrize(
    ("number", "level"),
    [(5, "debug"), (10, "debug"), (25, "info"), (30, "warning"), (50, "critical"), (99, "critical")],
)
def test_a_level_of_ones_own_becomes_the_one_below(
    attach: Attach, service: Service, log: logging.Logger, number: int, level: str
) -> None:
    log.setLevel(1)
    journal = attach()
    journal.setLevel(1)
    log.log(number, "a line")
    journal.finish(WAIT_SECONDS)
    assert [line["level"] for line in service.lines] == [level]


def test_lines_that_are_refused_for_good_do_not_hold_up_later_ones(log: logging.Logger) -> None:
    messages: list[str] = []

    def picky(asked: Asked) -> Answer:
        found = [line["message"] for line in asked.body["lines"]]
        if "poison" in found:
            return problem(422, "invalid-request")
        messages.extend(found)
        return Answer(204)

    with serving(picky) as server, Client(server.root, token=SECRET, retry_seconds=0) as client:
        journal = Journal(client, "w-1", SecretFilter([]))
        log.addHandler(journal)
        log.info("poison")
        journal.start()
        wait_for(lambda: server.asked, WAIT_SECONDS)
        log.info("good")
        journal.finish(WAIT_SECONDS)
    assert messages == ["good"]


def test_the_traceback_of_another_process_travels_like_ones_own(
    attach: Attach, service: Service, log: logging.Logger
) -> None:
    journal = attach(SECRET)
    trace = f"Traceback (most recent call last):\nValueError: {SECRET}\n"
    log.warning("a.png failed", extra={"lease": LEASE, "image": "a.png", "traceback": trace})
    journal.finish(WAIT_SECONDS)
    [line] = service.lines
    assert line["traceback"] == trace.replace(SECRET, BLANKED)
    assert (line["job_id"], line["image"]) == (17, "a.png")


def test_the_traceback_of_another_process_is_shown_to_people_too() -> None:
    record = logging.makeLogRecord({"levelname": "WARNING", "msg": "a.png failed", "traceback": f"Trace:\n {SECRET}\n"})
    assert LineFormatter(SecretFilter([SECRET])).format(record).endswith(f"WARNING a.png failed\nTrace:\n {BLANKED}")


def test_lines_that_never_reached_the_service_are_counted_at_the_end(
    attach: Attach, service: Service, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    service.away.set()
    journal = attach()
    for number in range(3):
        log.info("%d", number)
    journal.finish(WAIT_SECONDS)
    assert "3 log lines did not reach the service" in caplog.text


def test_nothing_is_said_at_the_end_where_all_lines_arrived(
    attach: Attach, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    journal = attach()
    log.info("a line")
    journal.finish(WAIT_SECONDS)
    assert "did not reach" not in caplog.text
