"""The child process spoken to as the supervisor speaks to it: real decimer with the miniature model."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from job_api.schemas import EngineRun, NewResult
from tests import engines
from tests.engines import picture
from tests.plugins.model import DrawnSamples
from uworker import child
from uworker.demo.samples import draw_awkward
from uworker.recogniser import EXIT_CANNOT_LOAD
from uworker.tasks import Fault
from uworker.weights import find_weights

DEADLINE_SECONDS = 90


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
        defaults = {"engine": engines.NAME, "engine_options": {}, "threads": 1, "max_pixels": 64_000_000}
        self.connection.send_bytes(json.dumps(defaults | {"weights_home": str(home)} | config).encode())

    def hear(self) -> dict[str, Any]:
        while True:
            assert self.connection.poll(DEADLINE_SECONDS)
            message = json.loads(self.connection.recv_bytes())
            assert isinstance(message, dict)
            if message != {"kind": "alive"}:
                return message

    def printed(self) -> list[str]:
        """What it has printed, once it has ended with its socket."""
        self.connection.close()
        said, _ = self.process.communicate(timeout=DEADLINE_SECONDS)
        return said.decode(errors="replace").splitlines()

    def send(self, task_id: int, data: bytes) -> None:
        self.connection.send_bytes(json.dumps({"task_id": task_id}).encode())
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
    printed = 0
    while not opened.connection.poll(0.01):
        printed += len(opened.process.stdout.read(1 << 20) or b"")
    assert opened.hear()["row"]["smiles"] == "C"
    assert printed > 0
