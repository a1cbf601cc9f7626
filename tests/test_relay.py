"""The relay that makes faults for other tests passes on what it should, and nothing but the fault that is asked for."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.emulators.processes import run_server
from tests.emulators.relay import COUNT_PATH, Answer, Cut, Hang, Relay, Reset, _Framing
from tests.emulators.web import WebServer
from tests.scripted import Answer as Scripted
from tests.scripted import Asked, serving

DATA = bytes(range(256)) * 1000
RelayTo = Callable[[str], Relay]


@pytest.fixture
def relay(web_server: WebServer, relay_to: RelayTo) -> Relay:
    """Before a web server that has one file."""
    web_server.fill({"file": DATA, "other": b"other"})
    return relay_to(web_server.address)


def test_requests_and_answers_pass_as_they_are(relay_to: RelayTo) -> None:
    with serving([Scripted(201, b"made", {"X-Answer": "yes"})]) as server:
        relay = relay_to(server.root)
        answer = httpx.put(f"{relay.address}/a%20b?c=%2F", json=[*DATA], headers={"X-Asked": "Yes"})
        [asked] = server.asked
    assert (answer.status_code, answer.content, answer.headers["X-Answer"]) == (201, b"made", "yes")
    assert (asked.path, asked.query) == ("/a%20b", {"c": "/"})
    assert asked.body == [*DATA]
    assert asked.headers["X-Asked"] == "Yes"
    # Signatures cover it.
    assert f"http://{asked.headers['Host']}" == relay.address
    assert relay.seen == ["PUT /a%20b?c=%2F"]


def test_one_connection_carries_many_requests(relay: Relay) -> None:
    with httpx.Client(base_url=relay.address) as client:
        for _ in range(3):
            assert client.get("/file").content == DATA
            assert client.head("/file").headers["Content-Length"] == str(len(DATA))
            assert client.get("/not there").status_code == 404
    assert relay.count() == 9
    assert relay.count("^HEAD /file") == 3


def test_a_delay_is_each_requests_own(relay_to: RelayTo) -> None:
    """The server answers once it has heard of all, which it would not if they waited for each other's delays."""
    together = threading.Barrier(8)

    def answer(_: Asked) -> Scripted:
        together.wait(60)
        return Scripted(200, b"other")

    with serving(answer) as server:
        relay = relay_to(server.root)
        relay.delay_seconds = 0.5
        with httpx.Client(base_url=relay.address, timeout=90) as client, ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(client.get, ["/other"] * 8))
    assert [answer.content for answer in answers] == [b"other"] * 8
    assert min(answer.elapsed.total_seconds() for answer in answers) >= 0.5
    assert relay.most_waiting == 8


def test_an_answer_of_its_own_reaches_as_many_requests_as_planned(relay: Relay) -> None:
    relay.plan(Answer(503, retry_after=7, body=b"busy"), times=2, matching="^GET /file", after=1)
    with httpx.Client(base_url=relay.address) as client:
        statuses = [client.get(path).status_code for path in ("/file", "/other", "/file", "/file", "/file")]
        relay.plan(Answer(429, retry_after=7, body=b"slow down"))
        answer = client.get("/other")
        assert client.get("/other").content == b"other"
    assert statuses == [200, 200, 503, 503, 200]
    assert (answer.status_code, answer.headers["Retry-After"], answer.content) == (429, "7", b"slow down")


def test_a_connection_is_reset(relay: Relay) -> None:
    relay.plan(Reset())
    with pytest.raises(httpx.ReadError, match="reset"):
        httpx.get(f"{relay.address}/file")
    assert httpx.get(f"{relay.address}/file").content == DATA


def test_a_body_is_cut_half_way(relay: Relay) -> None:
    relay.plan(Cut())
    with httpx.stream("GET", f"{relay.address}/file") as answer:
        received: list[bytes] = []
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            received.extend(answer.iter_bytes())
    assert answer.headers["Content-Length"] == str(len(DATA))
    assert b"".join(received) == DATA[: len(DATA) // 2]


@pytest.mark.parametrize("fault", [Hang(), Cut(hang=True)])
def test_nothing_comes_any_more(relay: Relay, fault: Hang | Cut) -> None:
    relay.plan(fault)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{relay.address}/file", timeout=0.3)
    assert httpx.get(f"{relay.address}/file").content == DATA


def test_faults_that_were_planned_are_forgotten(relay: Relay) -> None:
    relay.plan(Reset(), times=1000)
    relay.heal()
    assert httpx.get(f"{relay.address}/file").content == DATA


CHUNKED = b"5;name=value\r\nhello\r\n3\r\n\r\n!\r\n0\r\nTrailer: x\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "method", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", "GET", CHUNKED),
        (b"HTTP/1.1 200 OK\r\nCONTENT-LENGTH: 5\r\n\r\n", "GET", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "PUT", b""),
    ],
)
def test_a_body_ends_where_http_says(head: bytes, method: str, body: bytes) -> None:
    async def read() -> tuple[bytes, bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(body + b"what follows")
        reader.feed_eof()
        found = b"".join([piece async for piece in _Framing.of_answer(head, method).pieces(reader)])
        return found, await reader.read()

    assert asyncio.run(read()) == (body, b"what follows")


def test_a_relay_in_a_process_of_its_own_counts(web_server: WebServer) -> None:
    web_server.fill({"file": DATA})
    command = [sys.executable, "-m", "tests.emulators.relay", web_server.address, "0.1"]
    with run_server(command, r"relaying at (\S+)\n") as relay, httpx.Client(base_url=relay.address) as client:
        began = time.monotonic()
        assert client.get("/file").content == DATA
        assert time.monotonic() - began >= 0.1
        assert client.get(COUNT_PATH).text == "1"
        assert client.get(COUNT_PATH).text == "1"
