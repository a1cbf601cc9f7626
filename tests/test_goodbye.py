"""The goodbye: leases whose rows wait on disk are kept, all others are given back, whatever becomes of one of them."""

import threading
import time

from job_api.client import Client
from job_api.schemas import Lease
from tests.plugins.holder import LEASE
from tests.scripted import Answer, Asked, problem, serving
from tests.serving import wait_for
from uworker.claimer import Claimer
from uworker.goodbye import say_goodbye
from uworker.holding import Holding

RELEASED = Answer(body={"job_id": 1, "state": "queued", "outcome": "released"})


def holdings(count: int) -> list[Holding]:
    return [Holding(LEASE.model_copy(update={"job_id": job_id}), "w") for job_id in range(count)]


def job_of(asked: Asked) -> int:
    return int(asked.path.split("/")[-2])


def test_without_rows_on_disk_all_leases_go_at_once() -> None:
    held = holdings(3)
    with serving([Answer(204)]) as server, Client(server.root, token="t", retry_seconds=0) as client:
        say_goodbye(client, "w", lambda: held, [], 10)
    assert [(asked.method, asked.path) for asked in server.asked] == [("DELETE", "/v4/workers/w")]


def test_a_lease_that_is_lost_is_no_reason_to_keep_the_others() -> None:
    held = holdings(6)
    held[5].lose()
    answers = {1: problem(409, "lease-lost"), 2: problem(404, "not-found")}
    with (
        serving(lambda asked: answers.get(job_of(asked), RELEASED)) as server,
        Client(server.root, token="t", retry_seconds=0) as client,
    ):
        say_goodbye(client, "w", lambda: held, [held[3]], 10)
    assert [job_of(asked) for asked in server.asked] == [0, 1, 2, 4]
    assert {asked.path.split("/")[-1] for asked in server.asked} == {"release"}


def test_a_lease_that_comes_while_the_others_are_given_back_is_given_back_too() -> None:
    held = holdings(3)
    late = held.pop()

    def script(asked: Asked) -> Answer:
        if late not in held:
            held.append(late)
        return RELEASED

    with serving(script) as server, Client(server.root, token="t", retry_seconds=0) as client:
        say_goodbye(client, "w", lambda: held, [held[0]], 10)
    assert [job_of(asked) for asked in server.asked] == [1, 2]


def test_many_leases_and_a_slow_service_do_not_hold_up_the_end() -> None:
    held, slow = holdings(100), threading.Event()

    def script(_: Asked) -> Answer:
        slow.wait(0.1)
        return RELEASED

    with serving(script) as server, Client(server.root, token="t", retry_seconds=0) as client:
        began = time.monotonic()
        say_goodbye(client, "w", lambda: held, [held[0]], 0.5)
        assert time.monotonic() - began < 5
    assert 1 <= len(server.asked) < 20


def test_leases_that_come_when_no_more_are_claimed_are_told_all_the_same() -> None:
    """Otherwise nobody could give them back where there is no goodbye for all."""
    taken: list[Lease] = []
    stopped = threading.Event()

    def script(_: Asked) -> Answer:
        claimer.stop()
        stopped.set()
        return Answer(body={"leases": [LEASE.model_dump(mode="json")]})

    with serving(script) as server, Client(server.root, token="t", retry_seconds=0) as client:
        claimer = Claimer(
            client,
            "w",
            project="patents",
            hostname="h",
            once=False,
            wanted=lambda: 1,
            on_lease=taken.append,
            on_stopped=lambda: None,
            on_refusal=lambda _: None,
        )
        claimer.start()
        wait_for(lambda: taken)
    assert stopped.is_set()
    assert [lease.job_id for lease in taken] == [LEASE.job_id]
