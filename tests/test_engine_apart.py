"""Workers whose recognisers are in another process, with real parts: killed, stopped, late, and taken already."""

import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from job_api.client import Client
from job_api.schemas import JobState, ProjectSettings
from tests import engines
from tests.engines import picture
from tests.plugins.apart import EngineStarter
from tests.plugins.fleet import Corpus, WorkerProcess, WorkerStarter
from tests.plugins.service import RunningService
from tests.serving import LOAD_SECONDS, wait_for

PROJECT = "patents"
HEAVY = ("tensorflow", "rdkit", "PIL", "numpy", "cv2", "DECIMER", "pystow", "pillow_heif", "keras")
ONE = {"processes": "1", "threads_per_process": "2"}


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """A folder that has a Python find none of what recognises, as where only `worker-base` is installed."""
    folder = tmp_path / "light"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {HEAVY!r}:\n"
        "            raise ModuleNotFoundError(f'there is no {name} here')\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    return folder


def submit(service: RunningService, corpus: Corpus, *directories: str) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=corpus.source))
    admin.add_jobs(PROJECT, list(directories) or corpus.directories)
    return admin


def assert_all_right(admin: Client, corpus: Corpus) -> None:
    rows = list(admin.results(PROJECT))
    assert Counter((row["directory"], row["image"]) for row in rows) == Counter(corpus.smiles.keys())
    got = {(r["directory"], r["image"]): (r["status"], r["smiles"]) for r in rows}
    assert got == {key: ("recognised", smiles) for key, smiles in corpus.smiles.items()}


def assert_no_lease_lost(admin: Client) -> None:
    attempts = [attempt for job in admin.jobs(PROJECT) for attempt in admin.job(PROJECT, job.id).attempts]
    assert {attempt.outcome for attempt in attempts} == {"completed"}
    assert len(attempts) == len(list(admin.jobs(PROJECT)))


def some(corpus: Corpus, count: int) -> Corpus:
    wanted = corpus.directories[:count]
    return Corpus(corpus.root, {key: value for key, value in corpus.smiles.items() if key[0] in wanted})


def ended(worker: WorkerProcess) -> None:
    assert worker.wait() == 0, worker.log
    assert "Traceback" not in worker.log


def test_a_worker_without_anything_that_recognises_has_its_images_recognised_apart(
    service: RunningService,
    corpus: Corpus,
    start_worker: WorkerStarter,
    start_engine: EngineStarter,
    light: Path,
    miniature_home: Path,
) -> None:
    admin = submit(service, corpus)
    engine = start_engine(weights_home=str(miniature_home), **ONE)
    worker = start_worker(
        service.root,
        service.token("worker"),
        python_path=light,
        engine_socket=str(engine.socket),
        weights_home="/nowhere",
        snapshot="abc123-dirty",
    )
    ended(worker)
    assert_all_right(admin, corpus)
    row = next(admin.results(PROJECT))
    assert (row["engine"], row["engine_version"], row["snapshot"]) == ("decimer", "2.8.1", "abc123-dirty")
    assert row["weights"].startswith("miniature model")
    assert len(row["weights_sha256"]) == 64
    assert row["is_valid"] is True
    assert_no_lease_lost(admin)
    service.assert_counters_equal_recount()
    # What the engine says is in the central log.
    lines = list(admin.logs())
    assert any("engine: loading the engine decimer in 1 recogniser process" in line.message for line in lines)
    assert "connected to the engine apart" in worker.log
    assert worker.children() == []
    # A second worker finds the engine loaded.
    admin.rerun(PROJECT, 1)
    ended(start_worker(service.root, service.token("worker"), engine_socket=str(engine.socket)))
    assert engine.log.count("loading the engine") == 1
    assert admin.job(PROJECT, 1).state is JobState.COMPLETED


def test_an_engine_that_is_killed_in_the_middle_costs_no_image_and_no_lease(
    service: RunningService,
    long_corpus: Corpus,
    start_worker: WorkerStarter,
    start_engine: EngineStarter,
    miniature_home: Path,
) -> None:
    corpus = some(long_corpus, 5)
    admin = submit(service, corpus, *corpus.directories)
    engine = start_engine(weights_home=str(miniature_home), **ONE)
    worker = start_worker(service.root, service.token("worker"), engine_socket=str(engine.socket))
    wait_for(lambda: admin.project(PROJECT).images.stored >= 10, LOAD_SECONDS)
    engine.kill()
    start_engine(weights_home=str(miniature_home), **ONE)
    ended(worker)
    assert_all_right(admin, corpus)
    assert_no_lease_lost(admin)
    assert worker.log.count("is gone with") == 1
    assert worker.log.count("connected to the engine apart") == 2
    service.assert_counters_equal_recount()


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder that has a Python begin with a program: `start_worker(…, python_path=tuned(program))`."""

    def make(program: str) -> Path:
        folder = tmp_path / "tuned"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(program)
        return folder

    return make


@dataclass
class Pictures:
    """A project of pictures for the tests' own engine; those at its gate are recognised when it is opened."""

    admin: Client
    gate: Path

    @property
    def stored(self) -> int:
        return self.admin.project(PROJECT).images.stored

    def statuses(self) -> dict[str, str]:
        """What became of them; each is there once, and no job was given to anybody twice."""
        rows = list(self.admin.results(PROJECT))
        found = {f"{row['directory']}/{row['image']}": row["status"] for row in rows}
        assert len(found) == len(rows)
        return found


def test_the_socket_is_touched_while_the_main_loop_goes_on(start_engine: EngineStarter, tmp_path: Path) -> None:
    with (tmp_path / "register" / "sitecustomize.py").open("a") as program:
        program.write("import uworker.apart.engine\nuworker.apart.engine.LIFE_SECONDS = 1.0\n")
    engine = start_engine().wait_listening()
    script = Path(__file__).parents[1] / "docker" / "worker" / "uworker-alive"

    def is_alive(seconds: int) -> bool:
        done = subprocess.run(["sh", script, str(seconds), engine.socket], capture_output=True, check=False)  # noqa: S607
        return done.returncode == 0

    # Older than what the check allows, and alive all the same: it was touched since.
    made_at = engine.socket.stat().st_mtime
    wait_for(lambda: time.time() - made_at > 5, 20)
    wait_for(lambda: is_alive(4))
    engine.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: not is_alive(4))
    engine.process.send_signal(signal.SIGCONT)
    wait_for(lambda: is_alive(4))
    engine.kill()
    engine.socket.unlink()
    assert not is_alive(4)


@pytest.fixture
def pictures(service: RunningService, tmp_path: Path) -> Callable[..., Pictures]:
    """Makes the project: `pictures({directory: codes})`."""

    def make(directories: dict[str, list[int]]) -> Pictures:
        admin = service.client("admin")
        gate = tmp_path / "gate"
        source = ProjectSettings(
            source=(tmp_path / "source").as_uri(), engine="pixel", engine_options={"gate": str(gate)}
        )
        for directory, codes in directories.items():
            for number, code in enumerate(codes):
                path = tmp_path / "source" / directory / f"{number:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(picture(code) + str(path).encode())
        admin.put_project(PROJECT, source)
        admin.add_jobs(PROJECT, list(directories))
        return Pictures(admin, gate)

    return make


def test_an_engine_that_is_stopped_says_so_and_the_worker_waits_for_the_next(
    service: RunningService,
    pictures: Callable[..., Pictures],
    start_worker: WorkerStarter,
    start_engine: EngineStarter,
    tuned: Callable[[str], Path],
) -> None:
    made = pictures({"a": [1, 2, engines.GATE, 3, 4], "b": [5, 6]})
    engine = start_engine(**ONE).wait_listening()
    hasty = tuned("import uworker.apart.link\nuworker.apart.link.LONGEST_BACKOFF_SECONDS = 0.5\n")
    worker = start_worker(service.root, service.token("worker"), python_path=hasty, engine_socket=str(engine.socket))
    wait_for(lambda: made.stored >= 2, LOAD_SECONDS)
    children = engine.children()
    # As often as would end an image, if these were deaths.
    for number in range(1, 4):
        engine.process.send_signal(signal.SIGTERM)
        assert engine.wait(60) == 0, engine.log
        assert not any(child.is_running() for child in children)
        assert not engine.socket.exists()
        wait_for(lambda: worker.log.count("was stopped; waiting for the next") == number)  # noqa: B023
        engine = start_engine(**ONE)
        wait_for(lambda: "a recogniser is ready" in engine.log)  # noqa: B023
        children = engine.children()
    made.gate.touch()
    ended(worker)
    assert set(made.statuses().values()) == {"recognised"}
    assert_no_lease_lost(made.admin)
    assert " ERROR " not in worker.log
    assert "there is no engine at" not in worker.log, "that it was stopped is enough"


def test_an_engine_that_fails_is_no_engine_that_was_stopped(
    service: RunningService,
    pictures: Callable[..., Pictures],
    start_worker: WorkerStarter,
    start_engine: EngineStarter,
    tmp_path: Path,
) -> None:
    made = pictures({"a": [1, 2, engines.GATE]})
    with (tmp_path / "register" / "sitecustomize.py").open("a") as program:
        program.write(
            "import pathlib, uworker.apart.engine as apart\n"
            "work = apart.Engine._work\n"
            "def fail(engine):\n"
            f"    if pathlib.Path({str(tmp_path / 'fail')!r}).exists():\n"
            "        raise RuntimeError('a mistake')\n"
            "    work(engine)\n"
            "apart.Engine._work = fail\n"
        )
    engine = start_engine(**ONE)
    worker = start_worker(service.root, service.token("worker"), engine_socket=str(engine.socket))
    wait_for(lambda: made.stored >= 2, LOAD_SECONDS)
    (tmp_path / "fail").touch()
    assert engine.wait() == 1
    wait_for(lambda: "is gone with 1 images in its hands" in worker.log)
    assert "was stopped" not in worker.log


@pytest.mark.service(lease_seconds=5, heartbeat_seconds=0.5, sweep_seconds=0.2)
def test_an_engine_that_stands_still_keeps_nobody_from_heartbeats(
    service: RunningService,
    pictures: Callable[..., Pictures],
    start_worker: WorkerStarter,
    start_engine: EngineStarter,
    tuned: Callable[[str], Path],
) -> None:
    made = pictures({"a": [1, 2, engines.GATE, 3, 4], "b": [5]})
    engine = start_engine(**ONE)
    # Longer than a lease.
    impatient = tuned("import uworker.apart.crew\nuworker.apart.crew.REPORT_SILENCE_SECONDS = 7.0\n")
    worker = start_worker(
        service.root, service.token("worker"), python_path=impatient, engine_socket=str(engine.socket)
    )
    wait_for(lambda: made.stored >= 2, LOAD_SECONDS)
    # The fleet's list shows what the engine's machine does.
    wait_for(lambda: any(seen.load is not None and seen.load.processes == 1 for seen in made.admin.workers()))
    engine.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: re.search(r"has said nothing for \d+ s", worker.log))
    engine.process.send_signal(signal.SIGCONT)
    made.gate.touch()
    ended(worker)
    assert set(made.statuses().values()) == {"recognised"}
    assert_no_lease_lost(made.admin)


@pytest.mark.service(heartbeat_seconds=0.5)
def test_a_worker_claims_nothing_before_there_is_an_engine_and_takes_turns_for_one(
    service: RunningService,
    pictures: Callable[..., Pictures],
    start_worker: WorkerStarter,
    start_engine: EngineStarter,
    engine_socket: Path,
) -> None:
    made = pictures({"a": [1, 2], "b": [3], "c": [4]})
    admin = made.admin
    admin.cancel(PROJECT, 2)
    admin.cancel(PROJECT, 3)
    first = start_worker(service.root, service.token("worker"), once=False, engine_socket=str(engine_socket))
    wait_for(lambda: "there is no engine at" in first.log)
    # With its heartbeats, claims would have begun.
    wait_for(lambda: list(admin.workers()))
    assert service.sql("SELECT count(*) AS n FROM attempts")[0]["n"] == 0
    engine = start_engine(**ONE)
    wait_for(lambda: admin.project(PROJECT).jobs.completed == 1, LOAD_SECONDS)
    assert first.log.count("there is no engine at") == 1
    # One worker at a time: the second waits, says for whom, and works when the first is gone.
    second = start_worker(service.root, service.token("worker"), once=False, engine_socket=str(engine_socket))
    wait_for(lambda: "for one at a time" in second.log)
    admin.retry(PROJECT, 2)
    wait_for(lambda: admin.project(PROJECT).jobs.completed == 2, LOAD_SECONDS)
    first.send(signal.SIGKILL)
    first.process.wait()
    admin.retry(PROJECT, 3)
    wait_for(lambda: admin.project(PROJECT).jobs.completed == 3)
    second.send(signal.SIGTERM)
    ended(second)
    assert second.log.count("for one at a time") == 1
    workers = {row["directory"]: row["worker_id"] for row in admin.results(PROJECT)}
    assert len(workers) == 3
    assert workers["a"] == workers["b"] != workers["c"]
    assert engine.log.count("loading the engine") == 1


def test_a_poisonous_image_ends_as_crashed_and_its_neighbours_are_recognised(
    service: RunningService,
    pictures: Callable[..., Pictures],
    start_worker: WorkerStarter,
    start_engine: EngineStarter,
) -> None:
    """The worst image: it takes the whole engine with it each time, as the kernel may for want of memory."""
    made = pictures({"a": [1, 2, engines.KILL_ALL, 3, 4, engines.KILL, 5]})
    engine = start_engine(**ONE)
    worker = start_worker(service.root, service.token("worker"), engine_socket=str(engine.socket))
    deaths = 0
    while worker.process.poll() is None:
        wait_for(lambda: engine.process.poll() is not None or worker.process.poll() is not None, LOAD_SECONDS)  # noqa: B023
        if engine.process.poll() is not None:
            deaths += 1
            engine = start_engine(**ONE)
    ended(worker)
    assert made.statuses() == {f"a/{n:02}.png": "crashed" if n in (2, 5) else "recognised" for n in range(7)}
    rows = {row["image"]: row for row in made.admin.results(PROJECT)}
    assert rows["02.png"]["error_message"] == "the engine died on this image, tried alone"
    assert rows["02.png"]["image_sha256"]
    assert rows["06.png"]["smiles"] == "CCCCC"
    assert deaths == 3
    assert_no_lease_lost(made.admin)


def test_what_is_held_is_given_back_when_no_engine_comes_any_more(
    service: RunningService,
    pictures: Callable[..., Pictures],
    start_worker: WorkerStarter,
    start_engine: EngineStarter,
    tuned: Callable[[str], Path],
) -> None:
    made = pictures({"a": [1, 2, engines.GATE], "b": [3]})
    hasty = tuned("import uworker.worker\nuworker.worker.ENGINE_AWAY_SECONDS = 1.0\n")
    engine = start_engine(**ONE)
    worker = start_worker(
        service.root, service.token("worker"), once=False, python_path=hasty, engine_socket=str(engine.socket)
    )
    wait_for(lambda: made.stored >= 2, LOAD_SECONDS)
    engine.kill()
    assert worker.wait(30) == 3, worker.log
    assert "there has been no engine for 1 s" in worker.log
    counts = made.admin.project(PROJECT).jobs
    assert (counts.claimed, counts.failed) == (0, 0)
    assert all(job.failures == 0 for job in made.admin.jobs(PROJECT))


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ({"weights_sha256": "0" * 64}, {}, "is pinned"),
        ({}, {"weights_sha256": "1" * 64}, "is pinned"),
        ({"weights_sha256": "0" * 64}, {"weights_sha256": "1" * 64}, "worker and engine have different"),
    ],
)
def test_weights_are_judged_where_the_engine_is(
    service: RunningService,
    corpus: Corpus,
    start_worker: WorkerStarter,
    start_engine: EngineStarter,
    there: dict[str, str],
    here: dict[str, str],
    words: str,
    miniature_home: Path,
) -> None:
    admin = submit(service, corpus, corpus.directories[0])
    engine = start_engine(weights_home=str(miniature_home), **there)
    worker = start_worker(service.root, service.token("worker"), engine_socket=str(engine.socket), **here)
    assert worker.wait() == 3, worker.log
    assert words in worker.log
    assert admin.project(PROJECT).jobs.queued == 1
    assert engine.process.poll() is None, "the engine waits for the next worker"
