"""The child process spoken to as the supervisor speaks to it: real decimer with the miniature model."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from job_api.schemas import EngineRun, NewResult
from tests import engines
from tests.engines import picture
from tests.plugins.model import DrawnSamples
from uworker import answering, child
from uworker.demo.samples import draw_awkward
from uworker.engines import Pixels, Recognition
from uworker.recogniser import EXIT_CANNOT_LOAD, Tasks
from uworker.tasks import Fault
from uworker.weights import find_weights

DEADLINE_SECONDS = 200


class Talk:
    """A recogniser process at the other end of a socket."""

    fault: Fault | None = None
    """What came with the last row."""

    def __init__(self, home: Path, **config: Any) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uworker.recogniser", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=child.environment(home),
            )
        self.connection = Connection(ours.detach())
        defaults = {
            "engine": engines.NAME,
            "engine_options": {},
            "threads": 1,
            "max_pixels": 64_000_000,
            "command": None,
        }
        self.connection.send_bytes(json.dumps(defaults | {"weights_home": str(home)} | config).encode())

    def hear(self) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            # It may say for ever that it is alive, and nothing else.
            assert self.connection.poll(max(deadline - time.monotonic(), 0))
            message = json.loads(self.connection.recv_bytes())
            assert isinstance(message, dict)
            if message != {"kind": "alive"}:
                return message

    def printed(self) -> list[str]:
        """What it has printed, once it has ended with its socket."""
        self.connection.close()
        said, _ = self.process.communicate(timeout=DEADLINE_SECONDS)
        return said.decode(errors="replace").splitlines()

    def send(self, task_id: int, data: bytes, **header: Any) -> None:
        self.connection.send_bytes(json.dumps({"task_id": task_id} | header).encode())
        self.connection.send_bytes(data)

    def ask(self, data: bytes) -> dict[str, Any]:
        """Return the row of one image, which is a valid one."""
        self.send(7, data)
        assert self.hear() == {"kind": "started", "task_id": 7}
        answer = self.hear()
        assert (answer["kind"], answer["task_id"]) == ("finished", 7)
        self.fault = Fault(**answer["fault"]) if "fault" in answer else None
        row = answer["row"]
        assert isinstance(row, dict)
        NewResult.model_validate({"image": "a.png", **row})
        return row

    def wait(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def end(self) -> None:
        if not self.connection.closed:
            self.connection.close()
        self.process.kill()
        self.process.communicate()


Open = Callable[..., Talk]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Open]:
    talks: list[Talk] = []

    def start(home: Path = tmp_path, **config: Any) -> Talk:
        talks.append(Talk(home, **config))
        return talks[-1]

    yield start
    for opened in talks:
        opened.end()


@pytest.fixture(scope="module")
def decimer(miniature_home: Path) -> Iterator[Talk]:
    """A recogniser that has loaded the miniature model."""
    opened = Talk(miniature_home, engine="decimer")
    ready = opened.hear()
    assert ready["kind"] == "ready", ready
    weights = find_weights(miniature_home, hand_drawn=False)
    assert weights is not None
    run = EngineRun.model_validate(ready["run"])
    assert (run.engine, run.engine_version) == ("decimer", "2.8.1")
    assert (run.weights, run.weights_sha256) == (weights.name, weights.sha256)
    yield opened
    opened.end()


def test_decimer_recognises_the_samples(decimer: Talk, samples: DrawnSamples) -> None:
    for sample in samples.items[:12]:
        row = decimer.ask(sample.path.read_bytes())
        assert (row["status"], row["smiles"]) == ("recognised", sample.smiles), sample
        assert 0 < row["confidence_min"] <= row["confidence"] <= row["confidence_mean"] <= 1
        assert row["n_tokens"] > 0
        assert row["truncated"] is False
        assert len(row["image_sha256"]) == 64
        assert row["frames"] == 1


def test_decimer_judges_the_awkward_files(decimer: Talk, tmp_path: Path) -> None:
    for image, awkward in draw_awkward(tmp_path).items():
        row = decimer.ask((tmp_path / image).read_bytes())
        assert (row["status"], row.get("smiles")) == (awkward.status, awkward.smiles), (image, row)


def test_a_picture_that_the_model_does_not_know_is_an_engine_error(decimer: Talk) -> None:
    row = decimer.ask(picture(1, 300, 300))
    assert row["status"] == "engine_error"
    assert row["error_message"] == "the engine answered with an empty SMILES"
    assert "smiles" not in row


def test_a_thin_line_costs_at_most_its_own_image(decimer: Talk, samples: DrawnSamples) -> None:
    for size in ((1, 5000), (5000, 1), (1, 300), (600, 1)):
        row = decimer.ask(picture(1, *size))
        assert row["status"] == "engine_error"
        assert row["error_message"]
    assert decimer.ask(samples.items[0].path.read_bytes())["status"] == "recognised"


def test_the_hand_drawn_model_is_an_option(talk: Open, miniature_home: Path, samples: DrawnSamples) -> None:
    opened = talk(miniature_home, engine="decimer", engine_options={"hand_drawn": True})
    weights = find_weights(miniature_home, hand_drawn=True)
    assert weights is not None
    assert opened.hear()["run"]["weights_sha256"] == weights.sha256
    assert opened.ask(samples.items[0].path.read_bytes())["smiles"] == samples.items[0].smiles


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights_sha256": "0" * 64}, "but " + "0" * 64 + " is asked for"),
        ({"handdrawn": True}, "decimer has no option handdrawn"),
        ({"hand_drawn": "yes"}, "hand_drawn is true or false"),
    ],
)
def test_options_that_cannot_be_met_are_told(
    talk: Open, miniature_home: Path, options: dict[str, Any], reason: str
) -> None:
    opened = talk(miniature_home, engine="decimer", engine_options=options)
    told = opened.hear()
    assert told["kind"] == "cannot_load"
    assert reason in told["message"]
    assert opened.wait() == EXIT_CANNOT_LOAD == child.EXIT_CANNOT_LOAD


def test_weights_that_are_not_there_are_never_downloaded_by_a_child(talk: Open, tmp_path: Path) -> None:
    opened = talk(engine="decimer")
    assert "weights are not complete below" in opened.hear()["message"]
    assert opened.wait() == EXIT_CANNOT_LOAD
    assert list(tmp_path.iterdir()) == []


def test_a_recogniser_says_which_prepared_model_answers(talk: Open) -> None:
    digest = "ab" * 32
    assert talk(engine_options={"prepared": digest}).hear()["run"]["prepared"] == digest
    assert talk().hear()["run"]["prepared"] is None


def test_an_engine_that_knows_of_no_prepared_models_goes_on_working(talk: Open) -> None:
    opened = talk(engine="tests.engines:load_older_engine")
    ready = opened.hear()
    assert (ready["kind"], ready["run"]["prepared"]) == ("ready", None)
    assert opened.ask(picture(3))["smiles"] == "CCC"


@pytest.mark.parametrize("value", ["true", "word", "method"])
def test_what_an_engine_of_ones_own_means_otherwise_by_prepared_is_no_digest(talk: Open, value: str) -> None:
    opened = talk(engine="tests.engines:load_odd_engine", engine_options={"odd": "prepared", "value": value})
    ready = opened.hear()
    assert (ready["kind"], ready["run"]["prepared"]) == ("ready", None)
    assert opened.ask(picture(3))["smiles"] == "CCC"


@pytest.mark.parametrize(
    ("odd", "value"), [("weights_sha256", "word"), ("weights_sha256", "method"), ("name", "true"), ("version", "true")]
)
def test_an_engine_that_says_of_itself_what_no_row_can_have_cannot_load(talk: Open, odd: str, value: str) -> None:
    opened = talk(engine="tests.engines:load_odd_engine", engine_options={"odd": odd, "value": value})
    told = opened.hear()
    assert told["kind"] == "cannot_load"
    field = {"name": "engine", "version": "engine_version"}.get(odd, odd)
    assert f"EngineLoadError: what the engine says of itself cannot be in a row: {field}: " in told["message"]
    assert opened.wait() == EXIT_CANNOT_LOAD


def test_an_engine_that_knows_of_no_prepared_models_is_handed_batches(talk: Open, tmp_path: Path) -> None:
    options = {"max_batch": 8, "crowd": 2, "batches": str(tmp_path / "batches")}
    opened = talk(engine="tests.engines:load_older_engine", engine_options=options)
    assert opened.hear()["max_batch"] == 8
    waiting = Crowd(opened, 2, tmp_path / "batches")
    waiting.send(picture(1), picture(2))
    waiting.hear()
    assert waiting.noted == [[1, 2]]


def test_an_engines_bare_exception_gives_its_context_as_the_reason(talk: Open) -> None:
    opened = talk()
    assert opened.hear()["kind"] == "ready"
    row = opened.ask(picture(engines.RAISE))
    assert row["status"] == "engine_error"
    assert row["error_message"].startswith("ValueError: invalid literal for int()")
    assert opened.ask(picture(3))["smiles"] == "CCC"


def test_what_an_engine_raises_comes_with_its_traceback_beside_the_row(talk: Open) -> None:
    opened = talk()
    assert opened.hear()["kind"] == "ready"
    row = opened.ask(picture(engines.RAISE))
    assert not any("Traceback" in str(value) for value in row.values())
    first = opened.fault
    assert first is not None
    assert first.traceback.startswith("Traceback (most recent call last):")
    assert "ValueError: invalid literal for int() with base 10: 'the reason'" in first.traceback
    assert "During handling of the above exception" in first.traceback
    assert re.fullmatch(r"Exception at engines\.py:\d+ after ValueError at engines\.py:\d+", first.kind)
    opened.ask(picture(engines.EMPTY))
    assert opened.fault is None
    opened.ask(picture(3))
    assert opened.fault is None
    opened.ask(picture(engines.RAISE))
    assert opened.fault == first


def test_decimer_and_tensorflow_print_nothing_of_their_own(
    talk: Open, miniature_home: Path, samples: DrawnSamples
) -> None:
    opened = talk(miniature_home, engine="decimer")
    assert opened.hear()["kind"] == "ready"
    assert opened.ask(samples.items[0].path.read_bytes())["status"] == "recognised"
    assert opened.printed() == []


def test_a_truncated_answer_is_flagged(talk: Open) -> None:
    opened = talk()
    opened.hear()
    row = opened.ask(picture(engines.TRUNCATED))
    assert (row["status"], row["truncated"], row["flags"]) == ("recognised", True, ["truncated"])
    assert row["confidence"] == pytest.approx(0.125**0.5)
    assert (row["is_valid"], row["formula"], row["n_tokens"]) == (True, "C2H6O", 2)


def test_threads_work_side_by_side(talk: Open, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    opened = talk(threads=2, engine_options={"gate": str(gate)})
    opened.hear()
    opened.send(1, picture(engines.GATE))
    assert opened.hear() == {"kind": "started", "task_id": 1}
    opened.send(2, picture(5))
    assert opened.hear() == {"kind": "started", "task_id": 2}
    assert opened.hear()["task_id"] == 2
    gate.touch()
    assert opened.hear()["task_id"] == 1


@pytest.mark.parametrize("hang", [{}, {"hang_loading": True}])
def test_the_end_of_the_socket_ends_the_process(talk: Open, hang: dict[str, bool]) -> None:
    opened = talk(engine_options=hang)
    if not hang:
        opened.hear()
        opened.send(1, picture(engines.HANG))
        opened.hear()
    opened.connection.close()
    assert opened.wait() == 0


def test_what_is_printed_does_not_get_between_the_messages(talk: Open) -> None:
    opened = talk()
    assert opened.process.stdout is not None
    os.set_blocking(opened.process.stdout.fileno(), False)
    opened.hear()
    opened.send(1, picture(engines.FLOOD))
    assert opened.hear()["kind"] == "started"
    printed, message = 0, b'{"kind": "alive"}'
    # It is stuck as long as nobody takes what it prints.
    while json.loads(message)["kind"] == "alive":
        while not opened.connection.poll(0.01):
            printed += len(opened.process.stdout.read(1 << 20) or b"")
        message = opened.connection.recv_bytes()
    assert json.loads(message)["row"]["smiles"] == "C"
    assert printed > 0


# --- several images at once ---


@dataclass
class Crowd:
    """A recogniser with one thread, which an image holds until `size` others wait; those are then its batch."""

    talk: Talk
    size: int
    batches: Path

    def send(self, *images: bytes) -> None:
        """Send as many as were announced."""
        assert len(images) == self.size
        self.talk.send(0, picture(engines.CROWD))
        assert self.talk.hear() == {"kind": "started", "task_id": 0}
        for task_id, data in enumerate(images, start=1):
            self.talk.send(task_id, data)
        assert self.talk.hear()["kind"] == "finished"

    def hear(self, again: int = 0) -> list[tuple[str, int]]:
        """What is said until all have their row: what, and of which; `again`: how many are taken up twice."""
        said: list[tuple[str, int]] = []
        self.rows, self.faults = dict[int, dict[str, Any]](), dict[int, Fault]()
        while len(self.rows) < self.size:
            message = self.talk.hear()
            task_id = message["task_id"]
            said.append((message["kind"], task_id))
            if message["kind"] == "finished":
                NewResult.model_validate({"image": "a.png", **message["row"]})
                self.rows[task_id] = message["row"]
            if "fault" in message:
                self.faults[task_id] = Fault(**message["fault"])
        assert len(said) == 2 * self.size + again
        return said

    @property
    def noted(self) -> list[list[int]]:
        """The codes of each batch that the engine has had."""
        return [[int(code) for code in line.split()] for line in self.batches.read_text().splitlines()]


@pytest.fixture
def crowd(talk: Open, tmp_path: Path) -> Callable[..., Crowd]:
    def start(size: int, **options: Any) -> Crowd:
        batches = tmp_path / "batches"
        options = {"crowd": size, "max_batch": 8, "batches": str(batches)} | options
        opened = talk(engine_options=options)
        assert opened.hear()["max_batch"] == options["max_batch"]
        return Crowd(opened, size, batches)

    return start


def test_an_engine_without_batches_says_so_and_is_given_one_image_after_the_other(talk: Open) -> None:
    opened = talk(engine_options={"crowd": 3})
    assert opened.hear()["max_batch"] == 1
    waiting = Crowd(opened, 3, Path())
    waiting.send(picture(1), picture(2), picture(3))
    assert waiting.hear() == [(kind, i) for i in (1, 2, 3) for kind in ("started", "finished")]


def test_images_that_wait_are_taken_up_one_after_the_other_and_handed_over_together(
    crowd: Callable[..., Crowd],
) -> None:
    waiting = crowd(4)
    waiting.send(*[picture(code) for code in (1, 2, 3, 4)])
    started = [waiting.talk.hear() for _ in range(4)]
    assert started == [{"kind": "started", "task_id": i, "batch": 1} for i in (1, 2, 3, 4)]
    rows = [waiting.talk.hear() for _ in range(4)]
    assert [row["task_id"] for row in rows] == [1, 2, 3, 4]
    assert [row["row"]["smiles"] for row in rows] == ["C", "CC", "CCC", "CCCC"]
    assert [row["row"]["formula"] for row in rows] == ["CH4", "C2H6", "C3H8", "C4H10"]
    assert waiting.noted == [[1, 2, 3, 4]]


def test_no_more_are_handed_over_at_once_than_the_engine_takes(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(7, max_batch=3)
    waiting.send(*[picture(code) for code in range(1, 8)])
    waiting.hear()
    assert waiting.noted == [[1, 2, 3], [4, 5, 6]]
    assert waiting.rows[7]["smiles"] == "C" * 7


def test_an_image_without_pixels_is_not_in_the_batch_and_has_its_row_at_once(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(4)
    blank = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(blank, "PNG")
    waiting.send(picture(1), b"", blank.getvalue(), picture(2))
    said = waiting.hear()
    without = [(kind, i) for i in (2, 3) for kind in ("started", "finished")]
    assert said[:6] == [("started", 1), *without, ("started", 4)]
    assert [waiting.rows[i]["status"] for i in (1, 2, 3, 4)] == ["recognised", "unreadable", "blank", "recognised"]
    assert waiting.noted == [[1, 2]]


def test_images_of_which_none_has_pixels_are_answered(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(3)
    waiting.send(b"", b"", b"")
    waiting.hear()
    assert {row["status"] for row in waiting.rows.values()} == {"unreadable"}
    assert waiting.faults == {}
    assert waiting.talk.ask(picture(3))["smiles"] == "CCC"


def test_what_is_raised_over_one_image_of_a_batch_costs_that_image_only(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(3)
    waiting.send(picture(1), picture(engines.RAISE), picture(2))
    waiting.hear()
    assert [waiting.rows[i]["status"] for i in (1, 2, 3)] == ["recognised", "engine_error", "recognised"]
    assert waiting.rows[2]["error_message"].startswith("ValueError: invalid literal for int()")
    assert list(waiting.faults) == [2]
    assert "the reason" in waiting.faults[2].traceback


def test_where_the_whole_call_raises_those_that_it_has_taken_are_tried_alone(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(5)
    waiting.send(*[picture(code) for code in (engines.RAISE, engines.RAISE_ALL, 2, 3, 4)])
    said = waiting.hear(again=2)
    alone = [(kind, i) for i in (1, 2) for kind in ("started", "finished")]
    assert said[:6] == [("started", 1), ("started", 2), *alone]
    assert [waiting.rows[i]["status"] for i in range(1, 6)] == ["engine_error"] + ["recognised"] * 4
    assert waiting.rows[1]["error_message"].startswith("ValueError: invalid literal for int()")
    assert sorted(waiting.faults) == [1, 2]
    assert "the reason" in waiting.faults[1].traceback, "its own"
    assert "RuntimeError: no batch is to be had" in waiting.faults[2].traceback
    assert waiting.noted == [[2, 3, 4]]


def test_one_that_was_tried_alone_is_in_no_batch_any_more(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(2)
    waiting.send(picture(1), picture(engines.RAISE_ALL))
    heard = [waiting.talk.hear() for _ in range(6)]
    assert [message for message in heard if message["kind"] == "started"] == [
        {"kind": "started", "task_id": 1, "batch": 1},
        {"kind": "started", "task_id": 2, "batch": 1},
        {"kind": "started", "task_id": 1},
        {"kind": "started", "task_id": 2},
    ]


def test_a_call_that_raises_over_a_single_image_has_tried_it_alone(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(2, takes=1)
    waiting.send(picture(engines.RAISE_ALL), picture(2))
    waiting.hear()
    assert [waiting.rows[i]["status"] for i in (1, 2)] == ["engine_error", "recognised"]
    assert waiting.rows[1]["error_message"] == "RuntimeError: no batch is to be had"


@pytest.mark.parametrize(("takes", "batches"), [(2, [[1, 2], [3, 4], [5]]), (0, [[], [], [], [], []])])
def test_images_that_the_engine_does_not_take_come_again_and_each_is_answered(
    crowd: Callable[..., Crowd], takes: int, batches: list[list[int]]
) -> None:
    """Of an engine that takes none, each is tried alone."""
    waiting = crowd(5, takes=takes)
    waiting.send(*[picture(code) for code in (1, 2, 3, 4, 5)])
    waiting.hear(again=0 if takes else 5)
    assert waiting.noted == batches
    assert [waiting.rows[i]["smiles"] for i in range(1, 6)] == ["C" * i for i in range(1, 6)]
    assert len(waiting.faults) == (0 if takes else 5)


def test_an_engine_that_answers_too_few_images_has_answered_none(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(3)
    waiting.send(picture(1), picture(engines.SHORT), picture(2))
    waiting.hear(again=3)
    assert [waiting.rows[i]["smiles"] for i in (1, 2, 3)] == ["C", "C", "CC"], "alone"
    assert "WrongAnswerError: the engine answered 2 of 3 images" in waiting.faults[1].traceback
    assert list(waiting.faults) == [1]


def test_the_durations_of_a_batch_come_to_the_time_that_it_took(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(4, seconds=0.25)
    began = time.monotonic()
    waiting.send(*[picture(code) for code in (1, 2, 3, 4)])
    waiting.hear()
    took = (time.monotonic() - began) * 1000
    durations = [row["duration_ms"] for row in waiting.rows.values()]
    assert 1000 <= sum(durations) + 2 <= took
    assert min(durations) >= 249, "an equal share of what the engine took"


def test_the_third_image_of_a_batch_that_kills_leaves_the_later_ones_untouched(crowd: Callable[..., Crowd]) -> None:
    waiting = crowd(5)
    waiting.send(*[picture(code) for code in (1, 2, engines.KILL, 3, 4)])
    assert [waiting.talk.hear()["task_id"] for _ in range(3)] == [1, 2, 3]
    assert waiting.talk.wait() == -signal.SIGKILL
    with pytest.raises((EOFError, ConnectionResetError)):
        waiting.talk.hear()


def test_the_pixels_of_one_image_are_let_go_before_the_next_is_decoded() -> None:
    """As far as it lies with the recogniser; this engine keeps nothing of them."""
    alive: list[int] = []

    class Forgetful(engines.BatchPixelEngine):
        def recognise_batch(self, pictures: Iterator[Pixels]) -> list[Recognition | Exception]:
            held: list[weakref.ref[Pixels]] = []

            def size(pixels: Pixels) -> int:
                alive.append(sum(each() is not None for each in held))
                held.append(weakref.ref(pixels))
                return len(pixels)

            return [Recognition("C" * size_of, []) for size_of in map(size, pictures)]

    said: list[dict[str, Any]] = []
    tasks = [(i, picture(1, height=i)) for i in (2, 3, 4)]
    answering.answer(Forgetful({"max_batch": 8}), tasks, 10**6, said.append)
    assert [message["row"]["smiles"] for message in said if message["kind"] == "finished"] == ["CC", "CCC", "CCCC"]
    assert alive == [0, 0, 0]


@pytest.mark.parametrize(
    ("waiting", "threads", "most", "taken"),
    [
        (1, 4, 8, [1]),
        (4, 4, 8, [1, 1, 1, 1]),
        (6, 4, 8, [2, 1, 1, 1, 1]),
        (20, 2, 8, [8, 6, 3, 2, 1]),
        (3, 1, 1, [1] * 3),
    ],
)
def test_a_thread_takes_its_share_of_what_waits(waiting: int, threads: int, most: int, taken: list[int]) -> None:
    tasks = Tasks(threads)
    for task_id in range(waiting):
        tasks.put(task_id, b"")
    batches: list[list[tuple[int, bytes]]] = []
    while sum(map(len, batches)) < waiting:
        batches.append(tasks.take(most))
    assert [len(batch) for batch in batches] == taken
    assert [task_id for batch in batches for task_id, _ in batch] == list(range(waiting))


def test_with_few_images_waiting_all_threads_work(talk: Open, tmp_path: Path) -> None:
    """As many as threads: each has one, though a batch could have them all."""
    gate = tmp_path / "gate"
    opened = talk(threads=4, engine_options={"gate": str(gate), "max_batch": 8})
    opened.hear()
    for task_id in range(4):
        opened.send(task_id, picture(engines.GATE))
    started = sorted((opened.hear() for _ in range(4)), key=lambda message: message["task_id"])
    assert started == [{"kind": "started", "task_id": i} for i in range(4)]
    gate.touch()
    assert sorted(opened.hear()["task_id"] for _ in range(4)) == [0, 1, 2, 3]


def test_a_thread_takes_a_unit_whole_and_of_other_images_its_share() -> None:
    tasks = Tasks(4)
    for task_id, more in ((1, False), (2, True), (3, True), (4, False), (5, False), (6, True), (7, False)):
        tasks.put(task_id, b"", more=more)
    taken = [[task_id for task_id, _ in tasks.take(8)] for _ in range(4)]
    assert taken == [[2, 3, 4], [6, 7], [1], [5]]


def test_a_unit_is_for_one_thread_though_others_have_nothing(talk: Open, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    opened = talk(threads=4, engine_options={"gate": str(gate), "max_batch": 8})
    opened.hear()
    for task_id in range(1, 4):
        opened.send(task_id, picture(engines.GATE), more=task_id < 3)
    assert [opened.hear() for _ in range(3)] == [{"kind": "started", "task_id": i, "batch": 1} for i in (1, 2, 3)]
    gate.touch()
    assert [opened.hear()["task_id"] for _ in range(3)] == [1, 2, 3]
