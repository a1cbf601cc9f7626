"""The client against a real HTTP server: what it tries again, how long, and what it makes of the answers."""

import base64
import json
import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from job_api import schemas
from job_api.client import (
    ApiError,
    Client,
    ClientError,
    LeaseLost,
    NotFound,
    Refused,
    ResultsMissing,
    Unreachable,
    WorkerStopped,
)
from job_api.sending import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, jitter_seconds
from tests.scripted import Answer, Asked, ScriptedServer, problem, serving

INFO = {"version": "1", "lease_seconds": 120, "heartbeat_seconds": 20, "limits": {"max_body_bytes": 1}}
HTML = Answer(200, "<html><body>Welcome to the intranet</body></html>", {"Content-Type": "text/html"})
PASSWORD = "correct horse battery staple"
FIRST_CEILING = FIRST_WAIT_SECONDS * 2


class RecordedWaits(threading.Event):
    """Takes the place of waiting: every wait is over at once and written down."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0)
        return False


def ok() -> Answer:
    return Answer(200, INFO)


def client_of(server: ScriptedServer, **args: Any) -> Client:
    defaults: dict[str, Any] = {"token": "secret-token", "stop": RecordedWaits(), "retry_seconds": 60}
    return Client(server.root, **defaults | args)


# --- what is tried again ---


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_passing_errors_are_tried_again(status: int) -> None:
    with serving([problem(status, "database-unavailable"), ok()]) as server, client_of(server) as client:
        assert client.server().version == "1"
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 422, 500, 507])
def test_other_errors_are_not_tried_again(status: int) -> None:
    with (
        serving([problem(status, "invalid-request", "no such field"), ok()]) as server,
        client_of(server) as client,
        pytest.raises(ApiError, match="no such field") as caught,
    ):
        client.server()
    assert caught.value.status == status
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "kind", "exception"),
    [
        (404, "not-found", NotFound),
        (401, "unauthenticated", Refused),
        (403, "forbidden", Refused),
        (409, "worker-id-taken", Refused),
        (409, "lease-lost", LeaseLost),
        (409, "results-missing", ResultsMissing),
        (409, "worker-gone", WorkerStopped),
        (409, "worker-stopped", WorkerStopped),
        (409, "some-later-type", ApiError),
    ],
)
def test_errors_have_types(status: int, kind: str, exception: type[ApiError]) -> None:
    with (
        serving([problem(status, kind)]) as server,
        client_of(server) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.server()
    assert type(caught.value) is exception
    assert str(caught.value) == f"it is so (HTTP {status} {kind})"


def test_broken_connection_is_tried_again() -> None:
    with serving([Answer(0), Answer(200, INFO, cut=True), ok()]) as server, client_of(server) as client:
        assert client.server().version == "1"
    assert len(server.asked) == 3


ALL_FAILED = schemas.JobsAction(
    action=schemas.JobAction.RETRY, filter=schemas.JobFilter(states=[schemas.JobState.FAILED])
)
ONCE: list[Callable[[Client], object]] = [
    lambda client: client.retry("p", 1),
    lambda client: client.rerun("p", 1),
    lambda client: client.force_release("p", 1),
    lambda client: next(client.act("p", ALL_FAILED)),
    lambda client: client.new_token(schemas.NewToken(name="n")),
]


@pytest.mark.parametrize("call", ONCE)
@pytest.mark.parametrize("answer", [Answer(0), Answer(502), Answer(504)])
def test_what_must_not_be_done_twice_is_not_sent_again_when_in_doubt(
    call: Callable[[Client], object], answer: Answer
) -> None:
    with serving([answer, ok()]) as server, client_of(server) as client:
        with pytest.raises(Unreachable, match="look whether it was done"):
            call(client)
        assert len(server.asked) == 1


@pytest.mark.parametrize("call", ONCE)
def test_what_was_refused_for_now_is_sent_again(call: Callable[[Client], object]) -> None:
    answers = [problem(503, "database-unavailable"), problem(409, "wrong-state")]
    with serving(answers) as server, client_of(server) as client:
        with pytest.raises(ApiError, match="it is so"):
            call(client)
        assert len(server.asked) == 2


def test_an_action_on_many_jobs_goes_on_where_it_came_to_and_may_then_be_repeated() -> None:
    as_of = "2026-01-01T00:00:00.000001Z"
    answers = [
        Answer(200, {"matched": 5, "changed": 3, "skipped": 2, "next": 17, "as_of": as_of}),
        Answer(0),
        Answer(502),
        Answer(200, {"matched": 2, "changed": 1, "unchanged": 1, "next": None, "as_of": as_of}),
    ]
    with serving(answers) as server, client_of(server) as client:
        first, last = client.act("p", ALL_FAILED)
    assert (first.matched, first.next) == (5, 17)
    assert (last.matched, last.changed, last.unchanged, last.skipped, last.next) == (7, 4, 1, 2, None)
    begun, *repeated = [asked.body for asked in server.asked]
    assert "as_of" not in begun
    assert [(body["after"], body["as_of"]) for body in repeated] == [(17, as_of)] * 3


def test_silence_ends_in_unreachable() -> None:
    with (
        serving([Answer(hold=True)]) as server,
        client_of(server, timeout_seconds=0.1, retry_seconds=0) as client,
        pytest.raises(Unreachable, match="timed out"),
    ):
        client.server()


def test_no_server_ends_in_unreachable() -> None:
    with serving([ok()]) as server:
        pass
    with client_of(server, retry_seconds=0.05) as client, pytest.raises(Unreachable, match="cannot be reached"):
        client.server()


def test_retry_budget_is_kept() -> None:
    class RealWaits(RecordedWaits):
        def wait(self, timeout: float | None = None) -> bool:
            super().wait(timeout)
            return threading.Event.wait(self, timeout)

    stop = RealWaits()
    with (
        serving([problem(503, "database-unavailable", "no database")]) as server,
        client_of(server, retry_seconds=3, stop=stop) as client,
        pytest.raises(Unreachable, match="no database"),
    ):
        client.server()
    # The first is at most 0.4 s; each is begun only where it ends within the budget.
    assert stop.waits
    assert sum(stop.waits) <= 3


def test_no_budget_means_one_try() -> None:
    with (
        serving([problem(503, "database-unavailable")]) as server,
        client_of(server, retry_seconds=0) as client,
        pytest.raises(Unreachable),
    ):
        client.server()
    assert len(server.asked) == 1


def test_stop_ends_waiting() -> None:
    stop = threading.Event()

    def refuse_and_stop(_: Asked) -> Answer:
        stop.set()
        return problem(503, "database-unavailable", Retry_After="30")

    with (
        serving(refuse_and_stop) as server,
        client_of(server, stop=stop) as client,
        pytest.raises(Unreachable),
    ):
        client.server()
    assert len(server.asked) == 1


def test_stop_during_a_wait_makes_no_further_try() -> None:
    class StoppedMeanwhile(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return timeout is not None

    with (
        serving([problem(503, "database-unavailable")]) as server,
        client_of(server, stop=StoppedMeanwhile()) as client,
        pytest.raises(Unreachable, match="told to stop"),
    ):
        client.server()
    assert len(server.asked) == 1


def test_whoever_waits_is_told_why_and_not_at_every_try() -> None:
    said: list[str] = []
    away = [problem(503, "database-unavailable", "no database")] * 4
    with serving([*away, ok()]) as server, client_of(server, on_retry=said.append) as client:
        client.server()
        root = server.root
    assert said == [
        f"the job service at {root}: no database (HTTP 503 database-unavailable); trying again, for 60 s in all",
    ]
    answers = [Answer(200, jsonl(1) + jsonl(2)[:5], cut=True), Answer(200, jsonl(2)), Answer(200, b"")]
    with serving(answers) as server, client_of(server, on_retry=said.append) as client:
        assert len(list(client.results("p"))) == 2
    assert len(said) == 2
    with serving([ok()]) as server, client_of(server, on_retry=said.append) as client:
        client.server()
    assert len(said) == 2


# --- how long it waits ---


def waits_after(*answers: Answer, **args: Any) -> list[float]:
    stop = RecordedWaits()
    with serving([*answers, ok()]) as server, client_of(server, stop=stop, **args) as client:
        client.server()
    return stop.waits


def test_retry_after_in_seconds_is_obeyed() -> None:
    (wait,) = waits_after(problem(503, "database-unavailable", Retry_After="7"))
    assert 7 <= wait <= 7 + FIRST_CEILING


def test_retry_after_as_a_date_is_measured_by_the_servers_clock() -> None:
    answer = problem(429, "too-many-requests", Retry_After="Sat, 01 Jan 2000 00:00:09 GMT")
    answer.headers["Date"] = "Sat, 01 Jan 2000 00:00:00 GMT"
    (wait,) = waits_after(answer)
    assert 9 <= wait <= 9 + FIRST_CEILING


@pytest.mark.parametrize("nonsense", ["soon", "-5", "nan", "inf", "²", "Sat, 01 Jan 2000 00:00:09 GMT"])
def test_senseless_retry_after_is_passed_over(nonsense: str) -> None:
    (wait,) = waits_after(Answer(503, "", {"Retry-After": nonsense.encode().decode("latin-1")}))
    assert 0 <= wait <= FIRST_CEILING


def test_retry_after_beyond_the_budget_is_not_waited_for() -> None:
    stop = RecordedWaits()
    with (
        serving([problem(503, "database-unavailable", Retry_After="3600")]) as server,
        client_of(server, stop=stop) as client,
        pytest.raises(Unreachable),
    ):
        client.server()
    assert (len(server.asked), stop.waits) == (1, [])


def test_rate_limit_says_how_long() -> None:
    with (
        serving([problem(429, "too-many-requests", Retry_After="3600")]) as server,
        client_of(server) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.server()
    assert (caught.value.status, caught.value.retry_after_seconds) == (429, 3600)


def test_waits_grow_to_a_limit_with_full_jitter() -> None:
    for failures in (1, 2, 3, 10, 5000):
        ceiling = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(failures, 20))
        waits = [jitter_seconds(failures) for _ in range(300)]
        assert all(0 <= wait <= ceiling for wait in waits)
        assert min(waits) < ceiling / 4
        assert max(waits) > ceiling * 3 / 4


def test_long_poll_may_take_as_long_as_it_asked_for() -> None:
    read_timeouts = []

    def answer(request: httpx.Request) -> httpx.Response:
        read_timeouts.append(request.extensions["timeout"]["read"])
        return httpx.Response(204, headers={"Pending-Jobs": "3"})

    with Client("http://jobs", token="t", timeout_seconds=5, transport=httpx.MockTransport(answer)) as client:
        assert client.claim("p", schemas.ClaimRequest(worker_id="w", claim_key="k", wait_seconds=40)) == ([], 3, False)
        client.goodbye("w")
    assert read_timeouts == [45, 5]


# --- the login ---


class Login:
    """A service that hands out the tokens issued-1, issued-2, … and takes only those in `valid`."""

    def __init__(self, *valid: str) -> None:
        self.valid = {f"Bearer {token}" for token in valid}
        self.issued = 0

    def __call__(self, asked: Asked) -> Answer:
        if asked.path == "/v4/token":
            self.issued += 1
            token = {"id": 1, "name": "session", "role": "admin", "project": None, "username": "ada"}
            times = {"created_at": "2026-01-01T00:00:00Z", "expires_at": None, "revoked_at": None}
            return Answer(201, {**token, **times, "token": f"issued-{self.issued}"})
        return ok() if asked.authorization in self.valid else problem(401, "unauthenticated", "who are you?")


def logged_in(server: ScriptedServer, **args: Any) -> Client:
    return client_of(server, token=None, username="ada", password=PASSWORD, **args)


def test_login_is_turned_into_a_token_once() -> None:
    with serving(Login("issued-1")) as server, logged_in(server) as client:
        client.server()
        client.server()
    basic = base64.b64encode(f"ada:{PASSWORD}".encode()).decode()
    assert [(a.path, a.authorization) for a in server.asked] == [
        ("/v4/token", f"Basic {basic}"),
        ("/v4", "Bearer issued-1"),
        ("/v4", "Bearer issued-1"),
    ]


def test_threads_share_one_login() -> None:
    login = Login("issued-1")
    with serving(login) as server, logged_in(server) as client, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.server(), range(16)))
    assert login.issued == 1


def test_expired_token_is_renewed() -> None:
    with serving(Login("issued-2")) as server, logged_in(server) as client:
        client.server()
    assert [a.authorization for a in server.asked if a.path == "/v4"] == ["Bearer issued-1", "Bearer issued-2"]


def test_token_is_renewed_only_once() -> None:
    login = Login()
    with serving(login) as server, logged_in(server) as client, pytest.raises(Refused, match="who are you"):
        client.server()
    assert login.issued == 2


def test_given_token_is_not_renewed() -> None:
    with serving(Login()) as server, client_of(server) as client, pytest.raises(Refused):
        client.server()
    assert [a.path for a in server.asked] == ["/v4"]


def test_wrong_password_is_not_tried_again() -> None:
    with (
        serving([problem(401, "unauthenticated", "wrong name or password")]) as server,
        logged_in(server) as client,
        pytest.raises(Refused, match="wrong name or password"),
    ):
        client.server()
    assert len(server.asked) == 1


def test_login_waits_for_the_service() -> None:
    login = Login("issued-1")
    answers = iter([problem(503, "database-unavailable"), problem(429, "too-many-requests")])
    with serving(lambda asked: next(answers, None) or login(asked)) as server, logged_in(server) as client:
        assert client.server().version == "1"


@pytest.mark.parametrize(
    "answer",
    [
        Login(),
        lambda _: HTML,
        lambda _: Answer(200, {"token": "issued-1", "id": "no number"}),
        lambda _: problem(500, "internal"),
        lambda _: Answer(0),
        lambda _: Answer(302, "", {"Location": "https://elsewhere/"}),
    ],
)
def test_no_secret_in_errors_and_logs(answer: Callable[[Asked], Answer], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with serving(answer) as server:
        for client in (logged_in(server, retry_seconds=0.01), client_of(server, retry_seconds=0.01)):
            with client, pytest.raises(ClientError) as caught:
                client.server()
            said += [repr(client), str(client), *traceback.format_exception(caught.value)]
    text = "".join(said) + caplog.text
    for secret in (PASSWORD, base64.b64encode(f"ada:{PASSWORD}".encode()).decode(), "secret-token", "issued-"):
        assert secret not in text


# --- wrong addresses ---


@pytest.mark.parametrize(
    "root",
    ["", "jobs:8800", "ftp://jobs", "http://", "http://jobs:port", "http://jobs:99999", "http://jobs/?a=b"],
)
def test_senseless_address_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="address of"):
        Client(root)


@pytest.mark.parametrize("root", ["http://ada:hunter2@jobs", "ada:hunter2@jobs"])
def test_login_in_the_address_is_refused_and_not_shown(root: str) -> None:
    with pytest.raises(ValueError, match="do not put a login") as caught:
        Client(root)
    assert "hunter2" not in str(caught.value)


def test_senseless_token_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="copied whole") as caught:
        Client("http://jobs", token="hunter2\n")
    assert "hunter2" not in str(caught.value)


def test_username_needs_a_password() -> None:
    with pytest.raises(ValueError, match="needs a password"):
        Client("http://jobs", username="ada")


@pytest.mark.parametrize("root", ["/", "/v4", "/v4/"])
def test_address_may_end_in_the_version(root: str) -> None:
    with serving([ok()]) as server, Client(server.root + root) as client:
        client.server()
    assert server.asked[0].path == "/v4"


def test_another_web_site_is_told_from_the_service() -> None:
    calls: list[Callable[[Client], Any]] = [
        lambda client: client.server(),
        lambda client: client.projects(),
        lambda client: list(client.results("p")),
    ]
    for call in calls:
        with serving([HTML]) as server, client_of(server) as client, pytest.raises(ClientError) as caught:
            call(client)
        assert server.root in str(caught.value)
        assert not isinstance(caught.value, Unreachable)
        assert len(server.asked) == 1


def test_redirect_names_its_target() -> None:
    with (
        serving([Answer(308, "", {"Location": "https://jobs.example/v4"})]) as server,
        client_of(server) as client,
        pytest.raises(ApiError, match=r"https://jobs\.example/v4; is the address right"),
    ):
        client.server()


def test_error_page_of_a_proxy_is_no_document() -> None:
    page = Answer(403, "<html><h1>403 Forbidden</h1></html>", {"Content-Type": "text/html"})
    with (
        serving([page]) as server,
        client_of(server) as client,
        pytest.raises(ApiError, match="403 Forbidden without an error document"),
    ):
        client.server()


def test_error_page_of_a_proxy_is_tried_again() -> None:
    with serving([Answer(502, "<html>Bad Gateway</html>"), ok()]) as server, client_of(server) as client:
        assert client.server().version == "1"


@pytest.mark.parametrize("name", ["", "..", "a/b", "1st", "a b", "users", "claim", "x" * 65, "p\n"])
def test_impossible_project_is_never_asked_for(name: str) -> None:
    with (
        serving([ok()]) as server,
        client_of(server) as client,
        pytest.raises(ClientError, match="cannot be a project's name"),
    ):
        client.project(name)
    assert server.asked == []


def test_names_stay_in_their_part_of_the_path() -> None:
    with serving([Answer(204)]) as server, client_of(server) as client:
        client.delete_user("a/../b c?d#e")
        with pytest.raises(ClientError, match="no name"):
            client.delete_user("..")
    assert [a.path for a in server.asked] == ["/v4/users/a%2F..%2Fb%20c%3Fd%23e"]


# --- pages and downloads ---


@pytest.mark.parametrize("prefix", ["", "/jobs"])
def test_pages_follow_the_link_at_the_same_host(prefix: str) -> None:
    link = f'<https://inside.example{prefix}/v4/p/jobs/1/images-done?cursor=a%20b>; rel="next"'
    first, second = Answer(200, {"items": ["a", "b"]}, {"Link": link}), Answer(200, {"items": ["c"]})
    lease = schemas.Lease(
        job_id=1,
        lease_seq=2,
        project="p",
        directory="d",
        source="file:///s",
        engine="decimer",
        engine_options={},
        lease_seconds=120,
        results_count=3,
    )
    with serving([first, second]) as server, Client(server.root + prefix, token="t") as client:
        assert list(client.images_done(lease, "w")) == ["a", "b", "c"]
    assert [(a.path, a.query) for a in server.asked] == [
        (f"{prefix}/v4/p/jobs/1/images-done", {"limit": "1000", "worker_id": "w", "lease_seq": "2"}),
        (f"{prefix}/v4/p/jobs/1/images-done", {"cursor": "a b"}),
    ]


# Names may hold what Python, but not JSON Lines or CSV, takes for a line end.
NAME = "a\u2028b\x85c\x0bd"


def jsonl(*seqs: int) -> bytes:
    return "".join(json.dumps({"seq": seq, "image": NAME}, ensure_ascii=False) + "\n" for seq in seqs).encode()


def csv_rows(*seqs: int) -> bytes:
    return b"".join(f'{seq},"{NAME}\n""{seq}"",x"\r\n'.encode() for seq in seqs)


@pytest.mark.parametrize(
    ("piece", "clean_end"),
    [
        (b"", False),
        (b'{"se', False),
        (b'{"se', True),
        (b'{"seq":3,"image":"a"}', False),
        (b'{"seq":3,"image":"a"}', True),
    ],
)
def test_broken_download_is_taken_up_without_gap_or_repeat(piece: bytes, clean_end: bool) -> None:
    broken = Answer(200, jsonl(1, 2) + piece, cut=not clean_end)
    answers = [broken, Answer(0), Answer(200, jsonl(3, 7)), Answer(200, b"")]
    with serving(answers) as server, client_of(server) as client:
        assert [row["seq"] for row in client.results("p", status="blank")] == [1, 2, 3, 7]
    assert [a.query for a in server.asked] == [
        {"status": "blank", "format": "jsonl"},
        {"status": "blank", "format": "jsonl", "since": "2"},
        {"status": "blank", "format": "jsonl", "since": "2"},
        {"status": "blank", "format": "jsonl", "since": "7"},
    ]


def test_answer_cut_between_two_rows_is_mended() -> None:
    # As a proxy that speaks HTTP/1.0 passes it on: the end of the connection is all there is of an end.
    answers = [Answer(200, jsonl(1, 2), {"Next-Since": "9"}), Answer(200, jsonl(5)), Answer(200, b"")]
    with serving(answers) as server, client_of(server) as client:
        assert [row["seq"] for row in client.results("p")] == [1, 2, 5]
    assert [a.query.get("since") for a in server.asked] == [None, "2", "5"]


def test_nothing_is_no_end_where_a_cut_cannot_be_seen_unless_it_comes_twice() -> None:
    def old(body: bytes) -> Answer:
        return Answer(200, body, {"Next-Since": "9"}, is_old=True)

    answers = [old(b""), old(jsonl(1, 2)), old(b""), old(jsonl(5)), old(b""), old(b"")]
    with serving(answers) as server, client_of(server) as client:
        assert [row["seq"] for row in client.results("p")] == [1, 2, 5]
    assert len(server.asked) == len(answers)


def test_download_ends_though_a_fleet_goes_on_storing() -> None:
    def storing(asked: Asked) -> Answer:
        seq = int(asked.query.get("since", 0)) + 1
        return Answer(200, jsonl(seq), {"Next-Since": str(seq)})

    with serving(storing) as server, client_of(server) as client:
        assert [row["seq"] for row in client.results("p")] == [1, 2, 3, 4, 5]


def test_download_does_not_end_before_all_that_was_there_has_come() -> None:
    def cutting(asked: Asked) -> Answer:
        seq = int(asked.query.get("since", 0)) + 1
        return Answer(200, jsonl(seq) if seq <= 50 else b"", {"Next-Since": "50"})

    with serving(cutting) as server, client_of(server) as client:
        assert [row["seq"] for row in client.results("p")] == list(range(1, 51))


def test_rows_arrive_as_they_were_stored() -> None:
    with serving([Answer(200, jsonl(1)), Answer(200, b"")]) as server, client_of(server) as client:
        assert list(client.results("p", since=0)) == [{"seq": 1, "image": NAME}]
    assert server.asked[0].query == {"format": "jsonl", "since": "0"}


@pytest.mark.parametrize("piece", [b"", b"3", b'3,"a\n', b'3,"a""\n', b'3,"a",x'])
def test_broken_csv_is_taken_up_byte_for_byte(piece: bytes) -> None:
    heading = b"seq,image\r\n"
    broken = Answer(200, heading + csv_rows(1, 2) + piece, cut=True)
    answers = [broken, Answer(200, heading + csv_rows(3)), Answer(200, heading)]
    with serving(answers) as server, client_of(server) as client:
        records = list(client.export_records("p", schemas.ExportFormat.CSV))
    assert b"".join(record for _, record in records) == heading + csv_rows(1, 2, 3)
    assert [seq for seq, _ in records] == [None, 1, 2, 3]
    assert server.asked[1].query == {"format": "csv", "since": "2"}


def test_broken_download_of_some_columns_is_taken_up_by_a_column_that_is_not_shown() -> None:
    records = [b"seq,image,smiles\n", b'1,"a\n""b",C\n', b"2,c,N\n"]
    answers = [Answer(200, b"".join(records[:2]) + b'2,"', cut=True), Answer(200, records[0] + records[2])]
    with serving([*answers, Answer(200, records[0])]) as server, client_of(server) as client:
        got = list(client.export_records("p", schemas.ExportFormat.CSV, columns=["image", "smiles"]))
    assert got == [(None, b"image,smiles\n"), (1, b'"a\n""b",C\n'), (2, b"c,N\n")]
    lines = [b'{"seq":1,"image":"a\\"seq\\":1,"}\n', b'{"seq":2,"image":null}\n']
    answers = [Answer(200, lines[0] + lines[1][:8], cut=True), Answer(200, lines[1]), Answer(200, b"")]
    with serving(answers) as server, client_of(server) as client:
        assert list(client.results("p", columns="image")) == [{"image": 'a"seq":1,'}, {"image": None}]
    assert [asked.query.get("since") for asked in server.asked] == [None, "1", "2"]


def test_empty_exports_are_whole() -> None:
    with serving([Answer(200, b""), Answer(200, b"seq,image\r\n")]) as server, client_of(server) as client:
        assert list(client.results("p")) == []
        assert list(client.export_records("p", schemas.ExportFormat.CSV)) == [(None, b"seq,image\r\n")]


def test_download_that_never_gets_on_is_given_up() -> None:
    with (
        serving([Answer(200, jsonl(1)[:5], cut=True)]) as server,
        client_of(server, retry_seconds=3) as client,
        pytest.raises(Unreachable, match="broke off"),
    ):
        list(client.results("p"))
    assert len(server.asked) > 1


def test_raw_export_that_breaks_is_unreachable() -> None:
    with (
        serving([Answer(200, b"seq\r\n", cut=True)]) as server,
        client_of(server) as client,
        pytest.raises(Unreachable, match="broke off"),
        client.export("p", format="csv") as answer,
    ):
        list(answer.iter_bytes())


def test_refused_download_says_why() -> None:
    with (
        serving([problem(404, "not-found", "no project p")]) as server,
        client_of(server) as client,
        pytest.raises(NotFound, match="no project p"),
    ):
        list(client.results("p"))
