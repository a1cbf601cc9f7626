"""Programs as engines: what they print, how they fail, and that none outlives its image or its recogniser."""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from job_api.schemas import NewResult
from job_api.text import MAX_SMILES_CHARS
from tests.engines import picture
from tests.serving import is_gone, wait_for
from tests.test_recogniser import Talk
from uworker.answering import recognise
from uworker.commands import EngineCommand, find_command
from uworker.engines import EngineLoadError
from uworker.engines.command import CommandEngine, load
from uworker.settings import EngineSettings

HANG = "sleep 1000 & echo $! > {note}; wait"
"""A shell that waits for a child, whose process id it writes down."""

Run = Callable[..., CommandEngine]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where engines have their temporary files."""
    found = tmp_path / "temporary"
    found.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(found))
    return found


@pytest.fixture
def engine(folder: Path) -> Iterator[Run]:
    """Loads a shell script, or a whole command, as an engine; at the end it is gone as when its process ends."""
    loaded: list[CommandEngine] = []

    def load_script(script: str, *arguments: str, seconds: float = 30, line: str | None = None) -> CommandEngine:
        line = line or shlex.join(["sh", "-c", script, *arguments])
        loaded.append(load(EngineCommand("script", line, seconds), {}))
        return loaded[-1]

    yield load_script
    for one in loaded:
        assert one._guard.stdin is not None
        one._guard.stdin.close()
        assert one._guard.wait(10) == 0
    assert list(folder.iterdir()) == []


def row_of(engine: CommandEngine) -> dict[str, Any]:
    row = recognise(engine, picture(3), 64_000_000, lambda _: None)
    NewResult.model_validate({"image": "a.png", **row})
    return row


def hanging(note: Path) -> int:
    """The process id of the child of a program that hangs, once there is one."""
    wait_for(lambda: note.exists() and note.read_text().strip())
    return int(note.read_text())


def running_in(folder: Path) -> list[int]:
    """The processes that have their temporary files somewhere below a folder."""
    found = psutil.process_iter(["environ"])
    return [one.pid for one in found if (one.info["environ"] or {}).get("TMPDIR", "").startswith(f"{folder}/")]


@pytest.mark.parametrize(
    ("script", "smiles"),
    [
        ("echo CCO", "CCO"),
        ("printf '\\n  CCO\\t0.87 a.png\\n\\n'", "CCO"),
        ("echo CCO; echo c1ccccc1 second", "CCO.c1ccccc1"),
        ("printf 'CCO\\r\\n'", "CCO"),
        ('test "$(head -c 4 "$0" | tail -c 3)" = PNG && ! read x && echo CN', "CN"),
        ("head -c 10000000 /dev/zero >&2; echo CCO", "CCO"),
        ("echo ${PYTHONPATH:-C}${PYTHONUTF8:-C}$OMP_NUM_THREADS", "CC1"),
    ],
)
def test_what_a_program_prints_is_its_answer(
    engine: Run, script: str, smiles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "PYTHONUTF8"):
        monkeypatch.setenv(name, "1")
    row = row_of(engine(script, "{image}"))
    assert (row["status"], row["smiles"], row["engine"]) == ("recognised", smiles, "script")
    assert (row["confidence"], row["confidence_min"], row["truncated"]) == (None, None, None)
    assert row["flags"] == []


def test_a_program_that_takes_no_path_reads_the_image(engine: Run) -> None:
    row = row_of(engine('test "$(head -c 4 | tail -c 3)" = PNG && echo CN'))
    assert (row["status"], row["smiles"], row["inchikey"]) == ("recognised", "CN", "BAVYZALUXZFZLV-UHFFFAOYSA-N")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("true", "the engine answered with an empty SMILES"),
        ("printf '\\n \\n'", "the engine answered with an empty SMILES"),
        ("echo CCO; printf 'first\\nlast line\\n' >&2; exit 3", "CommandError: exit 3: last line"),
        ("exit 4", "CommandError: exit 4"),
        ("kill -9 $$", "CommandError: exit -9, SIGKILL, possible out of memory"),
        ("printf '\\377C'", "CommandError: it printed something else than SMILES"),
        ("printf 'C\\0C'", "CommandError: it printed something else than SMILES"),
        ("cat /dev/zero", "CommandError: it printed more than 100000 bytes"),
        (
            f"head -c {MAX_SMILES_CHARS + 1} /dev/zero | tr '\\0' C",
            f"CommandError: it printed a SMILES of {MAX_SMILES_CHARS + 1} characters; {MAX_SMILES_CHARS} can be stored",
        ),
    ],
)
def test_a_program_that_fails_costs_its_image_alone(engine: Run, script: str, message: str) -> None:
    row = row_of(engine(script))
    assert (row["status"], row["error_message"]) == ("engine_error", message)
    assert "smiles" not in row


@pytest.mark.parametrize("script", [HANG, "cat /dev/zero >&2 & echo $! > {note}; wait", "exec >&- 2>&-; " + HANG])
def test_a_program_that_hangs_is_killed_with_all_that_it_started(
    engine: Run, script: str, folder: Path, tmp_path: Path
) -> None:
    # However far it has come by then.
    row = row_of(engine(script.format(note=shlex.quote(str(tmp_path / "note"))), seconds=0.5))
    assert (row["status"], row["error_message"]) == ("timeout", "script did not end within 0.5 s")
    wait_for(lambda: not running_in(folder))


@pytest.mark.parametrize("left", ["sleep 1000 >/dev/null 2>&1 &", "sleep 1000 &", "setsid sleep 1000 &"])
def test_what_a_program_leaves_running_neither_holds_it_up_nor_outlives_it(
    engine: Run, left: str, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    assert row_of(engine(f"{left} echo $! > {shlex.quote(str(note))}; echo CCO"))["smiles"] == "CCO"
    pid = int(note.read_text())
    wait_for(lambda: is_gone(pid))


def test_a_recogniser_that_is_killed_leaves_neither_programs_nor_files(folder: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    line = shlex.join(["sh", "-c", HANG.format(note=shlex.quote(str(note))), "{image}"])
    command = {"name": "script", "line": line, "timeout_seconds": 1000, "version_line": None, "advice": ""}
    os.environ["TMPDIR"] = str(folder)
    try:
        talk = Talk(tmp_path, engine="script", command=command)
    finally:
        del os.environ["TMPDIR"]
    with closing(talk.connection):
        ready = talk.hear()
        unknown = dict.fromkeys(("engine_version", "weights", "weights_sha256", "prepared"))
        assert ready["run"] == {"engine": "script", **unknown}
        # Neither TensorFlow nor what comes with it: a program has no need of it.
        assert "tensorflow" not in Path(f"/proc/{talk.process.pid}/maps").read_text().lower()
        talk.send(1, picture(3))
        child = hanging(note)
        assert len(list(folder.glob("*/*/image.png"))) == 1
        talk.process.kill()
        talk.process.communicate()
        wait_for(lambda: is_gone(child))
        wait_for(lambda: not list(folder.iterdir()))


def test_what_cannot_be_loaded_says_what_to_do() -> None:
    absent = find_command(EngineSettings(engine_command="no-such-program {image}", engine_command_name="mine"), "mine")
    assert absent is not None
    with pytest.raises(EngineLoadError, match="mine needs the program no-such-program: correct UWORKER_ENGINE_COMMAND"):
        load(absent, {})
    with pytest.raises(EngineLoadError, match="mine has no option hand_drawn; take them from the project's engine_opt"):
        load(absent, {"hand_drawn": True})
    for line in ("false --version", "no-such-program --version"):
        with pytest.raises(EngineLoadError, match=line):
            load(EngineCommand("mine", "true", 1, version_line=line), {})


def test_a_machines_own_command_goes_before_the_one_that_is_known() -> None:
    known = find_command(EngineSettings(), "osra")
    assert known is not None
    assert (known.line, known.version_line) == ("osra {image}", "osra --version")
    own = find_command(EngineSettings(engine_command="osra -r 300 {image}", engine_command_name="osra"), "osra")
    assert own is not None
    assert own.line == "osra -r 300 {image}"
    assert find_command(EngineSettings(engine_command="x"), "decimer") is None


def test_a_command_may_be_a_script_beside_the_worker_and_no_shell_reads_it(
    engine: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "a program.sh"
    program.write_text('#!/bin/sh\ntest -s "$1" && echo "$2"\n')
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    loaded = engine("", line="'./a program.sh' {image} C;C$(id)")
    monkeypatch.chdir("/")
    assert row_of(loaded)["smiles"] == "C;C$(id)"
