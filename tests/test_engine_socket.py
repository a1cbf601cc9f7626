"""The socket between a worker and its engine: whoever garbles or is of another version ends a connection, no more."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from job_api.schemas import EngineRun, LogLevel, MachineLoad
from tests import engines
from tests.engines import picture
from tests.plugins.apart import EngineProcess, EngineStarter
from tests.serving import wait_for
from uworker.apart import door as door_said
from uworker.apart.crew import MAX_DEATHS_WHILE_LOADING, CrewApart
from uworker.apart.door import Door
from uworker.apart.hands import Hands
from uworker.apart.wire import PROTOCOL, Hello, Leaving, Log, Ready, Refused, Said, State, Wire, mismatch
from uworker.settings import MAX_IMAGE_BYTES_APART, SettingsError, load_engine_settings, load_settings
from uworker.tasks import MAX_BATCHED_BYTES, CannotLoad, EngineOrder, EngineReady, Finished, ImageTask, Report, Room
from uworker.weights import WeightsError

ORDER = EngineOrder(engines.NAME, {}, 64_000_000, 60, None)
ONE = {"processes": "1", "threads_per_process": "1"}
DEADLINE_SECONDS = 60.0


@dataclass
class Asked:
    """A worker's side, with what it reported."""

    crew: CrewApart
    reports: list[Report] = field(default_factory=list)

    def poll_until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not done():
            assert time.monotonic() < deadline, self.reports
            self.reports += self.crew.poll(0.1)

    def prepare(self, order: EngineOrder = ORDER) -> None:
        self.poll_until(lambda: self.crew.prepare(order) and self.crew.free_slots())

    def submit(self, *codes: int, first: int = 0) -> None:
        for task_id, code in enumerate(codes, start=first):
            self.poll_until(lambda: self.crew.free_slots() > 0)
            self.crew.submit(ImageTask(task_id, f"{task_id}.png", picture(code)))

    def finish(self, count: int) -> dict[int, dict[str, Any]]:
        """Poll until `count` images are finished, each once; their rows, in the order in which they were submitted."""
        self.poll_until(lambda: len(self.finished) >= count)
        self.reports += self.crew.poll(0)
        rows = {finished.task_id: finished.row for finished in sorted(self.finished, key=lambda each: each.task_id)}
        assert len(rows) == len(self.finished) == count
        return rows

    @property
    def finished(self) -> list[Finished]:
        return [report for report in self.reports if isinstance(report, Finished)]

    def ready(self) -> int:
        return sum(isinstance(report, EngineReady) for report in self.reports)


Asker = Callable[..., Asked]


@pytest.fixture
def ask(engine_socket: Path) -> Iterator[Asker]:
    """Makes workers' sides."""
    made: list[Asked] = []

    def make(name: str = "w-1", **options: float) -> Asked:
        made.append(Asked(CrewApart(engine_socket, name, **options)))
        return made[-1]

    yield make
    for asked in made:
        asked.crew.stop(0)


class Peer:
    """Somebody at the other end of a socket, who says what a test wants."""

    def __init__(self, connected: socket.socket) -> None:
        self.connection = Connection(connected.detach())

    @classmethod
    def of(cls, path: Path) -> "Peer":
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(str(path))
        return cls(connected)

    def say(self, message: Said) -> None:
        self.connection.send_bytes(message.model_dump_json().encode())

    def hear(self) -> bytes:
        assert self.connection.poll(20), "nothing is said"
        return self.connection.recv_bytes()

    def is_hung_up_on(self) -> bool:
        try:
            while True:
                self.hear()
        except (EOFError, OSError):
            return True


def joined(path: Path, name: str) -> Peer:
    """A peer whom the engine has taken; the one before must be gone for that."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        peer = Peer.of(path)
        peer.say(Hello(about=name))
        if json.loads(peer.hear())["kind"] == "hello":
            return peer
        peer.connection.close()
    raise AssertionError(f"{name} is not let in")


def recognises(engine: EngineProcess, asked: Asked, code: int, first: int) -> None:
    """The engine answers a worker that was there before."""
    before = len(asked.finished)
    asked.submit(code, first=first)
    assert asked.finish(before + 1)[first]["smiles"] == "C" * code
    assert engine.process.poll() is None


def is_hung_up_on(stranger: socket.socket) -> bool:
    try:
        return stranger.recv(100) == b""
    except ConnectionResetError:
        return True  # as where something is left unread


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x00\x00\x00\x05{]{]{",
    struct.pack("!i", -1) + struct.pack("!Q", 2**62) + b"x",
    struct.pack("!i", -7) + b"1234567",
    struct.pack("!i", 2**31 - 1) + b"x" * 10_000,
    os.urandom(4096),
    b"",
]


def test_garbage_ends_the_connection_that_it_came_by_and_nothing_else(start_engine: EngineStarter, ask: Asker) -> None:
    engine = start_engine(**ONE).wait_listening()
    asked = ask()
    asked.prepare()
    recognises(engine, asked, 1, 0)
    for number, garbage in enumerate(GARBAGE, start=1):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(engine.socket))
            stranger.sendall(garbage)
            stranger.shutdown(socket.SHUT_WR)
            stranger.settimeout(20)
            assert is_hung_up_on(stranger)
        recognises(engine, asked, 2, number)
    assert "Traceback" not in engine.log
    assert psutil.Process(engine.process.pid).memory_info().rss < 300_000_000


def test_a_worker_that_garbles_is_hung_up_on_and_what_it_sent_is_forgotten(
    start_engine: EngineStarter, ask: Asker
) -> None:
    engine = start_engine(**ONE).wait_listening()
    for nonsense in (b"{}", b'{"kind": "image", "task_id": 0, "name": "x"}', b'{"kind":"hello","about":""}', b"\xff"):
        peer = joined(engine.socket, "garbler")
        with contextlib.suppress(OSError):
            # An image that is sent before anything is loaded is dropped; what follows it is no message.
            for frame in (nonsense, b"more", b"more"):
                peer.connection.send_bytes(frame)
        assert peer.is_hung_up_on()
    asked = ask()
    asked.prepare()
    recognises(engine, asked, 3, 0)
    assert "Traceback" not in engine.log


def test_who_sends_more_than_it_may_is_hung_up_on(start_engine: EngineStarter) -> None:
    engine = start_engine(**ONE).wait_listening()
    peer = joined(engine.socket, "greedy")
    load = {"kind": "load", "order": 1, "engine": engines.NAME, "engine_options": {"gate": "/nowhere"}}
    load |= {"max_pixels": 10**6, "image_timeout_seconds": 60, "weights_sha256": None}
    peer.connection.send_bytes(json.dumps(load).encode())
    while b'"ready"' not in peer.hear():
        pass
    number = 0
    with contextlib.suppress(OSError):
        for number in range(10_000):
            peer.connection.send_bytes(json.dumps({"kind": "image", "task_id": number, "name": "x"}).encode())
            peer.connection.send_bytes(picture(engines.GATE))
    assert number < 9_999
    assert "sends more than it may" in engine.log
    wait_for(lambda: "images are forgotten" in engine.log)


def test_a_worker_may_have_as_many_small_images_there_as_fill_batches(
    start_engine: EngineStarter, ask: Asker, tmp_path: Path
) -> None:
    start_engine(**ONE)
    gate, batches, tally = tmp_path / "gate", tmp_path / "batches", tmp_path / "tally"
    options = {"max_batch": 4, "gate": str(gate), "crowd": 7, "batches": str(batches), "tally": str(tally)}
    order = EngineOrder(engines.NAME, options, 64_000_000, 60, None)
    asked = ask()
    asked.prepare(order)
    assert (asked.crew.free_slots(), asked.crew.for_batches) == (8, 6)
    asked.submit(engines.CROWD)
    asked.poll_until(tally.exists)
    asked.submit(1, 2, 3, 4, 5, 6, 7, first=1)
    rows = asked.finish(8)
    assert [rows[i]["smiles"] for i in range(1, 8)] == ["C" * i for i in range(1, 8)]
    assert max(len(batch.split()) for batch in batches.read_text().splitlines()) == 4
    asked.submit(engines.GATE, first=8)
    asked.crew.submit(ImageTask(9, "large.png", os.urandom(MAX_BATCHED_BYTES)))
    assert asked.crew.free_slots() == 0
    gate.touch()
    asked.finish(10)
    asked.poll_until(lambda: asked.crew.free_slots() == 8)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has one thread")
def test_with_fewer_threads_at_work_than_there_are_a_worker_may_have_as_many_as_fill_units(
    start_engine: EngineStarter, ask: Asker, tmp_path: Path
) -> None:
    """What is in use of the memory is too much for more than one thread, by what the engine is told."""
    start_engine(processes="1", threads_per_process="2", start_below_percent="0.001", memory_high_percent="0.01")
    gate, batches = tmp_path / "gate", tmp_path / "batches"
    options = {"max_batch": 4, "gate": str(gate), "batches": str(batches)}
    asked = ask()
    asked.prepare(EngineOrder(engines.NAME, options, 64_000_000, 60, None))
    asked.poll_until(lambda: asked.crew.threads == 1 and asked.crew.free_slots() == 8)
    assert asked.crew.for_batches == 6
    asked.submit(engines.GATE, 1, 2, 3, 4, 5, 6, 7)
    assert asked.crew.free_slots() == 0
    # What was sent has surely come when the engine has told its state twice, which it does once a second or so.
    told = [asked.crew._state]

    def told_twice() -> bool:
        if asked.crew._state is not told[-1]:
            told.append(asked.crew._state)
        return len(told) > 2

    asked.poll_until(told_twice)
    gate.touch()
    rows = asked.finish(8)
    assert [rows[i]["smiles"] for i in range(1, 8)] == ["C" * i for i in range(1, 8)]
    # The first may be made of those that had come when the gate was reached; the next has all that it may.
    read = [batch.split() for batch in batches.read_text().splitlines()]
    assert [int(code) for batch in read for code in batch] == list(range(1, 8))
    assert max(map(len, read)) == 4


def test_what_a_worker_sent_that_is_gone_is_forgotten_and_the_engine_stays_loaded(
    start_engine: EngineStarter, ask: Asker, tmp_path: Path
) -> None:
    engine = start_engine(**ONE).wait_listening()
    tally = tmp_path / "tally"
    order = EngineOrder(engines.NAME, {"gate": str(tmp_path / "gate"), "tally": str(tally)}, 64_000_000, 60, None)
    gone = ask("gone")
    gone.prepare(order)
    gone.submit(engines.GATE)
    gone.poll_until(tally.exists)
    gone.crew.stop(0)
    [child] = engine.children()
    # With the same ids, and before the engine has answered for those of the first.
    asked = ask("next")
    asked.poll_until(lambda: asked.crew.hindrance is None)
    assert asked.crew.prepare(order) is False
    (tmp_path / "gate").touch()
    asked.prepare(order)
    asked.submit(5, 6)
    assert [row["smiles"] for row in asked.finish(2).values()] == ["CCCCC", "CCCCCC"]
    assert engine.children() == [child]
    assert asked.ready() == 1
    assert "1 images are forgotten" in engine.log


def test_the_next_worker_need_not_wait_for_the_images_of_the_last(
    start_engine: EngineStarter, ask: Asker, tmp_path: Path
) -> None:
    engine = start_engine(**ONE).wait_listening()
    tally = tmp_path / "tally"
    gone = ask("gone")
    options = {"gate": str(tmp_path / "never"), "tally": str(tally)}
    gone.prepare(EngineOrder(engines.NAME, options, 64_000_000, 60, None))
    gone.submit(engines.GATE)
    gone.poll_until(tally.exists)
    gone.crew.stop(0)
    # Recognisers of another order take the place of those at the gate, as soon as nobody waits for those.
    asked = ask("next")
    asked.prepare()
    recognises(engine, asked, 3, 0)


def test_an_image_that_nobody_wants_any_more_is_not_reported(
    start_engine: EngineStarter, ask: Asker, tmp_path: Path
) -> None:
    start_engine(**ONE)
    order = EngineOrder(engines.NAME, {"gate": str(tmp_path / "gate")}, 64_000_000, 60, None)
    asked = ask()
    asked.prepare(order)
    asked.submit(engines.GATE, 4)
    asked.crew.forget({0})
    # It keeps its place until it is finished: more would be too many.
    asked.poll_until(lambda: asked.crew.free_slots() == 0)
    (tmp_path / "gate").touch()
    assert asked.finish(1)[1]["smiles"] == "CCCC"
    recognised_later = len(asked.finished)
    asked.submit(7, first=2)
    asked.finish(recognised_later + 1)
    assert {finished.task_id for finished in asked.finished} == {1, 2}


def test_another_engine_takes_the_place_of_the_one_before_and_its_rows(start_engine: EngineStarter, ask: Asker) -> None:
    engine = start_engine(**ONE)
    asked = ask()
    asked.prepare()
    recognises(engine, asked, 1, 0)
    asked.prepare(EngineOrder(engines.NAME, {"other": True}, 64_000_000, 60, None))
    recognises(engine, asked, 2, 1)
    assert engine.log.count("loading the engine") == 2
    assert asked.ready() == 2


def test_lines_of_recognisers_come_to_the_worker_and_a_flood_of_them_holds_nothing_up(
    start_engine: EngineStarter, ask: Asker, caplog: pytest.LogCaptureFixture
) -> None:
    start_engine(**ONE)
    asked = ask()
    caplog.set_level(logging.DEBUG)
    asked.prepare()
    asked.submit(engines.FLOOD, 3)
    assert asked.finish(2)[1]["smiles"] == "CCC"
    asked.poll_until(lambda: any("last line" in r.message for r in caplog.records if r.name == "uworker.recogniser"))


def test_an_engine_that_cannot_load_says_so_and_is_tried_anew_by_the_next_worker(
    start_engine: EngineStarter, ask: Asker
) -> None:
    engine = start_engine(**ONE)
    broken = EngineOrder(engines.NAME, {"load_error": "no such model"}, 64_000_000, 60, None)
    for number in (1, 2):
        asked = ask(f"w-{number}")
        asked.poll_until(
            lambda: asked.crew.prepare(broken) or any(isinstance(report, CannotLoad) for report in asked.reports)  # noqa: B023
        )
        [said] = [report for report in asked.reports if isinstance(report, CannotLoad)]
        assert "no such model" in said.message
        asked.crew.stop(0)
        wait_for(lambda: f"w-{number} is gone" in engine.log)  # noqa: B023
    asked = ask("w-3")
    asked.prepare()
    recognises(engine, asked, 3, 0)


def test_an_engine_that_hangs_up_while_loading_again_and_again_cannot_be_loaded(
    start_engine: EngineStarter, ask: Asker
) -> None:
    asked = ask()
    order = EngineOrder(engines.NAME, {"hang_loading": True}, 64_000_000, 60, None)
    for number in range(MAX_DEATHS_WHILE_LOADING):
        engine = start_engine(**ONE)
        asked.poll_until(lambda: asked.crew.hindrance is None)
        asked.crew.prepare(order)
        asked.poll_until(lambda: "loading the engine" in engine.log)  # noqa: B023
        assert not any(isinstance(report, CannotLoad) for report in asked.reports), number
        engine.kill()
        asked.poll_until(lambda: asked.crew.hindrance is not None)
    assert any(isinstance(report, CannotLoad) for report in asked.reports)


# --- versions ------------------------------------------------------------------------------------------------------


def test_an_engine_refuses_a_worker_of_another_version_in_words(start_engine: EngineStarter) -> None:
    engine = start_engine(**ONE).wait_listening()
    for protocol, old in ((PROTOCOL + 1, "engine"), (PROTOCOL - 1, "worker")):
        peer = Peer.of(engine.socket)
        peer.say(Hello(about="other", protocol=protocol, version="9.9"))
        refused = Refused.model_validate_json(peer.hear())
        assert refused.message.endswith(f"update the {old}'s image")
        assert "9.9" in refused.message
        assert peer.is_hung_up_on()


def test_an_engine_that_ends_can_be_found_no_more_when_its_worker_hears_of_it(start_engine: EngineStarter) -> None:
    """It would come back at once, and be let in or sent away by an engine that has nothing more to do."""
    engine = start_engine(**ONE).wait_listening()
    peer = joined(engine.socket, "w-1")
    wait_for(lambda: "the worker w-1 is connected" in engine.log)
    engine.process.send_signal(signal.SIGTERM)
    while json.loads(peer.hear())["kind"] != "leaving":
        pass
    assert not engine.socket.exists()
    assert engine.wait() == 0


class FakeEngine:
    """Listens where an engine would and says what a test wants; takes one worker after the other."""

    def __init__(self, path: Path, *messages: Said | bytes) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._messages = messages
        self._peers: list[Peer] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connected, _ = self._listening.accept()
            except OSError:
                return
            peer = Peer(connected)
            self._peers.append(peer)
            try:
                peer.hear()
                for message in self._messages:
                    if isinstance(message, bytes):
                        peer.connection.send_bytes(message)
                    elif isinstance(message, Ready):
                        peer.say(message.model_copy(update={"order": json.loads(peer.hear())["order"]}))
                    else:
                        peer.say(message)
            except (OSError, EOFError):
                continue

    @property
    def visits(self) -> int:
        """How often a worker has come."""
        return len(self._peers)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for peer in self._peers:
            peer.connection.close()


@pytest.fixture
def fake_engine(engine_socket: Path) -> Iterator[Callable[..., FakeEngine]]:
    made: list[FakeEngine] = []

    def make(*messages: Said | bytes) -> FakeEngine:
        made.append(FakeEngine(engine_socket, *messages))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([Hello(about="", protocol=PROTOCOL + 1, version="9.9")], "update the worker's image"),
        ([Hello(about="", protocol=PROTOCOL - 1, version="0.0")], "update the engine's image"),
        ([Refused(message="no room")], "does not take this worker: no room"),
        ([b"220 mail.example.org ESMTP"], "says what no engine says"),
        ([Hello(about=""), b'{"kind": "state", "capacity": -1}'], "says what no engine says"),
        ([Hello(about=""), b"x" * 2_000_000], "broke"),
    ],
)
def test_a_worker_says_once_what_is_wrong_with_what_listens_there(
    fake_engine: Callable[..., FakeEngine],
    ask: Asker,
    caplog: pytest.LogCaptureFixture,
    messages: list[Said | bytes],
    words: str,
) -> None:
    fake_engine(*messages)
    asked = ask()
    asked.poll_until(lambda: words in caplog.text)
    said = caplog.text.count(words)
    until = time.monotonic() + 1
    asked.poll_until(lambda: time.monotonic() > until)
    if len(messages) == 1:
        assert caplog.text.count(words) == said == 1
        assert asked.crew.hindrance is not None
        assert asked.crew.threads == 0


def test_an_engine_that_greets_and_fails_each_time_is_asked_ever_more_slowly(
    fake_engine: Callable[..., FakeEngine], ask: Asker
) -> None:
    engine = fake_engine(Hello(about=""), b"no message")
    asked = ask()
    asked.poll_until(lambda: engine.visits >= 4)
    until = time.monotonic() + 2
    asked.poll_until(lambda: time.monotonic() > until)
    assert engine.visits <= 6, "after 0.1, 0.2, 0.4, 0.8, 1.6 s"


def test_an_engine_that_says_nothing_is_reported_and_then_given_up(
    fake_engine: Callable[..., FakeEngine], ask: Asker, caplog: pytest.LogCaptureFixture
) -> None:
    run = EngineRun(engine="decimer")
    fake_engine(Hello(about=""), State(capacity=4, threads=2, load=MachineLoad()), Ready(order=0, run=run))
    asked = ask(silence_seconds=1.0)
    asked.prepare()
    asked.submit(1, 2)
    asked.poll_until(lambda: "has said nothing for" in caplog.text)
    assert asked.crew.hindrance is not None
    asked.poll_until(lambda: "says nothing any more with 2 images in its hands: 0.png, 1.png" in caplog.text)
    assert asked.crew.poll(0) == []


def test_an_engine_that_says_nothing_of_batches_is_sent_two_images_for_each_thread(
    fake_engine: Callable[..., FakeEngine], ask: Asker
) -> None:
    """Those of before do not; and protocols are equal."""
    state = b'{"kind": "state", "capacity": 4, "threads": 2, "load": {}}'
    fake_engine(Hello(about=""), state, Ready(order=0, run=EngineRun(engine="decimer")))
    asked = ask()
    asked.prepare()
    assert (asked.crew.free_slots(), asked.crew.for_batches) == (4, 0)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"weights": "other"}, "weights: other"),
        ({"weights_sha256": "cd" * 32}, "weights: None (cdcdcdcdcdcd)"),
        ({"prepared": "ab" * 32}, "weights: None, prepared model: abababababab"),
    ],
)
def test_an_engine_of_other_weights_that_takes_the_place_of_one_ends_the_worker(
    start_engine: EngineStarter,
    fake_engine: Callable[..., FakeEngine],
    ask: Asker,
    other: dict[str, str],
    words: str,
) -> None:
    """Rows of the first may be on their way, and would be told of as the second's."""
    engine = start_engine(**ONE)
    asked = ask()
    asked.prepare()
    engine.kill()
    engine.socket.unlink()
    run = EngineRun(engine="pixel", engine_version="1.0", **other)
    fake_engine(Hello(about=""), State(capacity=4, threads=2, load=MachineLoad()), Ready(order=0, run=run))
    told = f"another engine (pixel 1.0, {words}) has taken the place of the one before (pixel 1.0, weights: None)"
    with pytest.raises(WeightsError, match=re.escape(told)):
        asked.poll_until(lambda: asked.crew.prepare(ORDER) and asked.crew.hindrance)


def test_with_images_in_hand_and_nothing_to_read_the_worker_hears_of_it_as_well(
    start_engine: EngineStarter, fake_engine: Callable[..., FakeEngine], ask: Asker
) -> None:
    """Nobody asks then whether the engine is ready, and they would be held for ever."""
    engine = start_engine(**ONE)
    asked = ask()
    asked.prepare()
    asked.submit(engines.HANG)
    engine.kill()
    engine.socket.unlink()
    run = EngineRun(engine="pixel", engine_version="2.0")
    fake_engine(Hello(about=""), State(capacity=4, threads=2, load=MachineLoad()), Ready(order=0, run=run))
    asked.poll_until(lambda: any(isinstance(report, CannotLoad) for report in asked.reports))
    assert "another engine (pixel 2.0" in str(asked.reports[-1])


def test_who_takes_nothing_stalls_nobody_and_loses_no_result() -> None:
    ours, theirs = socket.socketpair()
    wire, peer = Wire(ours), Peer(theirs)
    line = Log(level=LogLevel.DEBUG, message="x" * 1_000, children=True)
    kept = sum(wire.offer(line) for _ in range(10_000))
    assert 2_000 <= kept < 5_000
    wire.send(Leaving())
    said = [json.loads(peer.hear())["kind"] for _ in range(kept + 1)]
    assert said == ["log"] * kept + ["leaving"]
    assert wire.offer(line), "there is room again"
    wire.dispose()
    peer.connection.close()


def test_a_worker_hears_which_prepared_model_an_engine_uses(start_engine: EngineStarter, ask: Asker) -> None:
    start_engine(**ONE)
    asked, digest = ask(), "ab" * 32
    asked.prepare(EngineOrder(engines.NAME, {"prepared": digest}, 64_000_000, 60, None))
    [ready] = [report for report in asked.reports if isinstance(report, EngineReady)]
    assert ready.run.prepared == digest


def test_what_a_run_says_may_be_more_or_less_than_the_other_side_knows() -> None:
    """So that a field of a run needs no new version of the protocol."""
    ours, theirs = socket.socketpair()
    wire, peer = Wire(ours), Peer(theirs)
    less, more = {"engine": "decimer", "weights": "tiny"}, {"engine": "decimer", "prepared": "ab" * 32, "unheard_of": 1}
    for said in (less, more):
        peer.connection.send_bytes(json.dumps({"kind": "ready", "order": 1, "run": said}).encode())
    heard = [wire.receive_from_engine() for _ in range(2)]
    assert heard == [Ready(order=1, run=EngineRun.model_validate(said)) for said in (less, more)]
    wire.dispose()
    peer.connection.close()


def test_equal_versions_fit() -> None:
    assert mismatch(Hello(about=""), Hello(about="")) is None


# --- where it listens ----------------------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_and_group_and_one_that_was_left_is_replaced(
    start_engine: EngineStarter, ask: Asker, engine_socket: Path
) -> None:
    first = start_engine(**ONE).wait_listening()
    assert stat.S_IMODE(engine_socket.stat().st_mode) == 0o660
    second = start_engine(**ONE)
    assert second.wait() == 2
    assert "another engine listens at" in second.log
    assert second.log.count("\n") == 1
    first.kill()
    assert engine_socket.exists()
    third = start_engine(**ONE).wait_listening()
    asked = ask()
    asked.prepare()
    recognises(third, asked, 1, 0)


def test_an_engine_without_a_descriptor_for_a_worker_lets_it_in_later(start_engine: EngineStarter, ask: Asker) -> None:
    engine = start_engine(**ONE).wait_listening()
    most = engine.process.rlimit(psutil.RLIMIT_NOFILE)
    engine.process.rlimit(psutil.RLIMIT_NOFILE, (3, most[1]))
    asked = ask()
    asked.poll_until(lambda: "no worker can be let in: Too many open files" in engine.log)
    engine.process.rlimit(psutil.RLIMIT_NOFILE, most)
    asked.prepare()
    recognises(engine, asked, 1, 0)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_who_cannot_be_read_from_is_gone_and_the_next_may_come_in(
    engine_socket: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setattr(Wire, "receive_from_worker", lambda _: raise_(error))
    door = Door(engine_socket, about="", wake=lambda: None)
    door.start()
    peer = Peer.of(engine_socket)
    peer.say(Hello(about="large"))
    assert isinstance(door.events.get(timeout=20), door_said.Joined)
    left = door.events.get(timeout=20)
    assert isinstance(left, door_said.Left)
    assert left.why == f"reading from it failed: {error.__name__}"
    assert peer.is_hung_up_on()
    peer.connection.close()
    door.close()


def raise_(error: type[BaseException]) -> None:
    raise error


INSISTING = """
import os, signal, time
from uworker.signals import SAME_SIGNAL_SECONDS, EndSignals
asked = EndSignals(lambda: None)
asked.listen()
assert not asked
for number in ({0}):
    signal.raise_signal(number)
    assert asked
    time.sleep({1})
"""


@pytest.mark.parametrize(
    ("numbers", "pause", "code"),
    [
        ("signal.SIGTERM, signal.SIGTERM", "0", 0),
        ("signal.SIGTERM, signal.SIGTERM", "SAME_SIGNAL_SECONDS + 0.1", 143),
        ("signal.SIGTERM, signal.SIGINT", "0", 143),
    ],
)
def test_the_same_signal_within_a_moment_is_one(numbers: str, pause: str, code: int) -> None:
    program = INSISTING.format(numbers, pause)
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code


def test_an_engine_that_cannot_listen_says_why_in_one_line(start_engine: EngineStarter, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong, words in (
        ("/nowhere/engine.sock", "a folder that is there"),
        (str(tmp_path / "file") if len(str(tmp_path)) < 90 else "/etc/hostname", "no socket can be made"),
        ("/tmp/" + "x" * 110, "107 bytes"),
        ("", "set UWORKER_ENGINE_SOCKET"),
    ):
        engine = start_engine(engine_socket=wrong)
        assert engine.wait() == 2
        assert words in engine.log
        assert engine.log.count("\n") == 1, engine.log


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("UWORKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UWORKER_ENGINE_SOCKET", "/run/engine/engine.sock")
    monkeypatch.setenv("UWORKER_JOB_API_ROOT", "http://h")
    assert load_engine_settings().engine_socket == Path("/run/engine/engine.sock")
    monkeypatch.setenv("UWORKER_JOB_API_TOKEN", "x")
    monkeypatch.setenv("UWORKER_MAX_IMAGE_BYTES", str(MAX_IMAGE_BYTES_APART))
    assert load_settings().engine_socket == Path("/run/engine/engine.sock")
    monkeypatch.setenv("UWORKER_MAX_IMAGE_BYTES", str(MAX_IMAGE_BYTES_APART + 1))
    with pytest.raises(SettingsError, match="with UWORKER_ENGINE_SOCKET"):
        load_settings()
    monkeypatch.setenv("UWORKER_PROCESES", "1")
    with pytest.raises(SettingsError, match="no setting UWORKER_PROCESES"):
        load_engine_settings()


def test_the_engines_parent_imports_nothing_that_recognises() -> None:
    program = (
        "import sys, uworker.apart.engine, uworker.apart.crew\n"
        "heavy = {'tensorflow', 'rdkit', 'PIL', 'numpy', 'DECIMER', 'cv2', 'fastapi', 'sqlmodel'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- what becomes of images ----------------------------------------------------------------------------------------


def hands(*task_ids: int) -> Hands:
    held = Hands()
    for task_id in task_ids:
        held.add(ImageTask(task_id, f"{task_id}.png", b"x"))
    return held


def sent(held: Hands, capacity: int) -> list[tuple[int, bool]]:
    return [(task.task_id, task.solo) for task in held.take_due(capacity)]


def test_no_more_is_sent_than_there_is_room_for() -> None:
    held = hands(1, 2, 3)
    assert sent(held, 2) == [(1, False), (2, False)]
    assert sent(held, 2) == []
    assert held.finish(1)
    assert not held.finish(1)
    assert sent(held, 2) == [(3, False)]
    with pytest.raises(ValueError, match="twice"):
        held.add(ImageTask(2, "2.png", b"x"))


def test_after_two_deaths_images_are_tried_alone_and_the_third_is_the_last() -> None:
    held = hands(1, 2)
    for _ in range(2):
        assert sent(held, 4) == [(1, False), (2, False)]
        assert held.take_back(died=True) == []
    assert held.has_suspects
    held.add(ImageTask(3, "3.png", b"x"))
    assert sent(held, 4) == [(3, False)], "what is not suspected goes first"
    assert sent(held, 4) == []
    held.finish(3)
    assert sent(held, 4) == [(1, True)]
    assert sent(held, 4) == [], "alone"
    [crashed] = held.take_back(died=True)
    assert (crashed.task_id, crashed.row["status"]) == (1, "crashed")
    assert sent(held, 4) == [(2, True)]
    assert held.finish(2)
    assert len(held) == 0
    assert not held.has_suspects


def test_images_that_an_engine_died_with_are_not_sent_for_the_sake_of_batches() -> None:
    held, room = hands(*range(1, 17)), Room(2, 16)
    assert held.most(room) == 16
    assert len(sent(held, held.most(room))) == 16
    held.take_back(died=True)
    assert held.most(room) == 2
    assert sent(held, held.most(room)) == [(1, False), (2, False)]
    held.take_back(died=True)
    for task_id in range(3, 17, 2):
        assert sent(held, held.most(room)) == [(task_id, False), (task_id + 1, False)]
        assert held.finish(task_id)
        assert held.finish(task_id + 1)
    assert sent(held, held.most(room)) == [(1, True)], "of the sixteen two are tried alone"
    held.finish(1)
    assert sent(held, held.most(room)) == [(2, True)]
    assert held.most(room) == 2
    held.finish(2)
    assert held.most(room) == 16


def test_an_engine_that_died_is_followed_by_one_that_is_sent_no_batches(
    start_engine: EngineStarter, ask: Asker, tmp_path: Path
) -> None:
    options = {"max_batch": 4, "gate": str(tmp_path / "gate")}
    engine = start_engine(**ONE)
    asked = ask()
    asked.prepare(EngineOrder(engines.NAME, options, 64_000_000, 60, None))
    room = asked.crew._room
    asked.submit(*[engines.GATE] * room.most)
    assert len(asked.crew._hands.sent_names()) == room.most
    engine.kill()
    asked.poll_until(lambda: asked.crew.hindrance is not None)
    start_engine(**ONE)
    asked.poll_until(lambda: bool(asked.crew._hands.sent_names()))
    assert len(asked.crew._hands.sent_names()) == asked.crew._room.images < room.most
    assert asked.crew.free_slots() == 0
    (tmp_path / "gate").touch()
    asked.finish(room.most)
    asked.poll_until(lambda: asked.crew.free_slots() == room.most)


def test_an_end_that_was_announced_and_images_that_were_not_sent_count_for_nothing() -> None:
    held = hands(1, 2)
    for _ in range(9):
        assert sent(held, 1) == [(1, False)]
        assert held.take_back(died=False) == []
    for _ in range(2):
        sent(held, 1)
        held.take_back(died=True)
    assert sent(held, 1) == [(2, False)]
    assert held.forget({1, 2, 9}) == {2}
