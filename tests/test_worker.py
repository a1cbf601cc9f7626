"""The worker with real parts: the service, its recogniser processes, and the decimer package on the miniature model."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from job_api import schemas
from job_api.client import Client
from job_api.schemas import JobState, ProjectSettings, ResultStatus
from tests.engines import picture
from tests.plugins.fleet import Corpus, WorkerProcess, WorkerStarter
from tests.plugins.holder import Holder
from tests.plugins.replica import copy_home
from tests.plugins.service import RunningService
from tests.serving import LOAD_SECONDS, is_gone, wait_for
from uworker.demo.samples import draw_awkward

PROJECT = "patents"


def submit(service: RunningService, corpus: Corpus, *directories: str, **settings: object) -> Client:
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings.model_validate({**corpus.project.model_dump(), **settings}))
    admin.add_jobs(PROJECT, list(directories) or corpus.directories)
    return admin


def work(service: RunningService, start_worker: WorkerStarter, **settings: str) -> WorkerProcess:
    worker = start_worker(service.root, service.token("worker"), **settings)
    assert worker.wait() == 0, worker.log
    return worker


def assert_every_image_once_and_right(admin: Client, corpus: Corpus) -> None:
    rows = list(admin.results(PROJECT))
    assert Counter((row["directory"], row["image"]) for row in rows) == Counter(corpus.smiles.keys())
    wrong = {(r["directory"], r["image"]): (r["status"], r["smiles"]) for r in rows}
    wrong = {key: got for key, got in wrong.items() if got != ("recognised", corpus.smiles[key])}
    assert wrong == {}


def test_every_image_of_every_directory_gets_its_own_smiles(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = submit(service, corpus)
    # One thread, of which there is nothing to say when other programs come and go.
    plan = {"processes": "1", "threads_per_process": "1"}
    worker = work(service, start_worker, snapshot="abc123-dirty", **plan)
    assert_every_image_once_and_right(admin, corpus)
    assert admin.project(PROJECT).jobs.completed == len(corpus.directories)
    service.assert_counters_equal_recount()
    row = next(admin.results(PROJECT))
    assert row["engine_version"] == "2.8.1"
    assert row["weights"].startswith("miniature model")
    assert len(row["weights_sha256"]) == 64
    assert row["snapshot"] == "abc123-dirty"
    assert row["is_valid"] is True
    assert 0.9 < row["confidence"] <= 1
    assert row["inchikey"]
    assert {attempt.outcome for job in admin.jobs(PROJECT) for attempt in admin.job(PROJECT, job.id).attempts} == {
        "completed"
    }
    # Quiet in a log file: a line for each job and a handful around them.
    assert len(worker.log.splitlines()) <= len(corpus.directories) + 8
    assert worker.children() == []


def test_the_log_of_a_run_is_in_the_service(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = submit(service, corpus, corpus.directories[0], "not there")
    work(service, start_worker)
    lines = list(admin.logs(PROJECT))
    assert any("completed" in line.message and line.job_id == 1 for line in lines)
    assert any("no-images" in line.message and line.job_id == 2 and line.level == "warning" for line in lines)
    everything = list(admin.logs())
    assert any("recogniser" in line.message for line in everything)


def test_what_lies_in_a_directory_ends_as_the_design_says(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    expected = {name: (a.status, a.smiles) for name, a in draw_awkward(root / "awkward").items()}
    good = next(key for key in corpus.smiles if key[1].endswith(".png"))
    good_path, good_smiles = corpus.root / good[0] / good[1], corpus.smiles[good]
    outside = tmp_path / "secret.png"
    shutil.copyfile(good_path, outside)
    awkward = root / "awkward"
    for name in (" leading space.png", "new\nline.png", "ünï.png", "a+b%20#c.png", "UPPER.PNG", "deep/er/x.png"):
        (awkward / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(good_path, awkward / name)
        expected[name] = ("recognised", good_smiles)
    shutil.copyfile(good_path, os.fsencode(awkward) + b"/not-utf8-\xff.png")
    expected["not-utf8-\\xff.png"] = ("recognised", good_smiles)
    (awkward / "link out.png").symlink_to(outside)
    expected["link out.png"] = ("unreadable", None)
    (awkward / "link in.png").symlink_to(awkward / "UPPER.PNG")
    expected["link in.png"] = ("recognised", good_smiles)
    (awkward / "dangling.png").symlink_to(awkward / "nothing.png")
    expected["dangling.png"] = ("missing", None)
    (awkward / "round").symlink_to(awkward, target_is_directory=True)
    (awkward / "out").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(awkward / "pipe.png")
    expected["pipe.png"] = ("unreadable", None)
    (awkward / "huge file.png").write_bytes(good_path.read_bytes() + bytes(3_000_000))
    expected["huge file.png"] = ("too_large", None)
    (awkward / "notes.txt").write_text("no image")
    (awkward / ".hidden.png").write_bytes(good_path.read_bytes())
    (root / "empty").mkdir()
    (root / "link to elsewhere").symlink_to(tmp_path, target_is_directory=True)
    (root / "only text").mkdir()
    (root / "only text" / "x.txt").write_text("text")
    admin = service.client("admin")
    admin.put_project(PROJECT, ProjectSettings(source=root.as_uri(), max_failures=1))
    admin.add_jobs(PROJECT, ["awkward", "empty", "only text", "not there", "link to elsewhere"])
    work(service, start_worker, max_image_bytes="2500000")
    rows = {row.image: (row.status, row.smiles) for row in admin.job_results(PROJECT, 1)}
    assert rows == expected
    assert all(row.error_message for row in admin.job_results(PROJECT, 1) if row.status != "recognised")
    jobs = {job.directory: (job.state, job.reason) for job in admin.jobs(PROJECT)}
    assert jobs == {
        "awkward": (JobState.COMPLETED, None),
        "empty": (JobState.FAILED, "no-images"),
        "only text": (JobState.FAILED, "no-images"),
        "not there": (JobState.FAILED, "no-images"),
        "link to elsewhere": (JobState.FAILED, "source-not-allowed"),
    }
    service.assert_counters_equal_recount()


def test_a_half_done_directory_is_taken_up_where_it_was_left(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    directory = corpus.directories[0]
    images = sorted(image for d, image in corpus.smiles if d == directory)
    admin = submit(service, corpus, directory)
    first = Holder(service.client("worker"))
    lease = first.one(PROJECT)
    first.post(lease, images[0], images[2], engine_version="by hand")
    first.release(lease)
    work(service, start_worker)
    by_hand = {row["image"] for row in admin.results(PROJECT) if row["engine_version"] == "by hand"}
    assert by_hand == {images[0], images[2]}
    assert admin.job(PROJECT, lease.job_id).image_count == len(images)
    assert admin.job(PROJECT, lease.job_id).attempts[0].new_results == len(images) - 2


def test_a_root_that_is_not_mounted_is_the_storages_fault(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    admin = submit(service, corpus, corpus.directories[0], source=(tmp_path / "nowhere").as_uri(), max_failures=2)
    work(service, start_worker)
    job = admin.job(PROJECT, 1)
    assert (job.state, job.reason, job.failures) == (JobState.FAILED, "storage", 2)
    assert list(admin.results(PROJECT)) == []


def test_a_worker_may_say_where_the_root_is_mounted(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = submit(service, corpus, corpus.directories[0], source="az://container/prefix")
    work(service, start_worker, source_root=str(corpus.root))
    assert admin.project(PROJECT).jobs.completed == 1


def test_a_source_that_is_not_allowed_is_not_read(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    admin = submit(service, corpus, corpus.directories[0], max_failures=1)
    work(service, start_worker, source_allow=str(tmp_path))
    job = admin.job(PROJECT, 1)
    assert (job.state, job.reason) == (JobState.FAILED, "source-not-allowed")
    assert "UWORKER_SOURCE_ALLOW" in (job.message or "")


def test_projects_with_different_engines_never_mix(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = service.client("admin")
    for name, options in (("printed", {}), ("drawn", {"hand_drawn": True})):
        admin.put_project(name, ProjectSettings(source=corpus.source, engine_options=options))
        admin.add_jobs(name, corpus.directories[:2])
    work(service, start_worker)
    digests = {name: {row["weights_sha256"] for row in admin.results(name)} for name in ("printed", "drawn")}
    assert all(len(found) == 1 for found in digests.values())
    assert digests["printed"] != digests["drawn"]
    for name in ("printed", "drawn"):
        got = {(row["directory"], row["image"]): row["smiles"] for row in admin.results(name)}
        assert got == {key: smiles for key, smiles in corpus.smiles.items() if key[0] in corpus.directories[:2]}


@pytest.mark.parametrize(
    ("settings", "exit_code", "words"),
    [
        ({"job_api_token": "dj_wrong"}, 4, "token is not valid"),
        ({"job_api_root": "http://127.0.0.1:1"}, 4, "cannot be reached"),
        ({"job_api_project": "nothing"}, 4, "there is no project"),
        ({"job_api_root": "nonsense"}, 2, "http://"),
        ({"job_api_token": ""}, 2, "UWORKER_JOB_API_TOKEN"),
        ({"job_api_root": ""}, 2, "UWORKER_JOB_API_ROOT"),
        ({"processes": "many"}, 2, "UWORKER_PROCESSES"),
        ({"weights_sha256": "0" * 64}, 3, "is pinned"),
    ],
)
def test_a_worker_that_cannot_work_says_why_and_ends(
    service: RunningService,
    corpus: Corpus,
    start_worker: WorkerStarter,
    settings: dict[str, str],
    exit_code: int,
    words: str,
) -> None:
    admin = submit(service, corpus, corpus.directories[0])
    given = {"root": service.root, "token": service.token("worker"), **settings}
    worker = start_worker(**given)
    assert worker.wait() == exit_code, worker.log
    assert words in worker.log
    assert "Traceback" not in worker.log
    counts = admin.project(PROJECT).jobs
    assert (counts.queued, counts.failed) == (1, 0), "the job is given back uncharged"
    assert next(admin.jobs(PROJECT)).failures == 0


def test_a_recogniser_that_is_started_later_takes_no_other_weights(
    service: RunningService,
    long_corpus: Corpus,
    start_worker: WorkerStarter,
    miniature_home: Path,
    tmp_path: Path,
) -> None:
    """Its rows would be told of as made by those of before."""
    home = copy_home(miniature_home, tmp_path / "home")
    admin = submit(service, long_corpus, *long_corpus.directories[:8])
    settings = {"weights_home": str(home), "processes": "1", "threads_per_process": "1"}
    worker = start_worker(service.root, service.token("worker"), **settings)
    wait_for(lambda: admin.project(PROJECT).images.stored >= 20, LOAD_SECONDS)
    model = home / "DECIMER-V2" / "DECIMER_model"
    (model / "of another version").touch()
    [recogniser] = worker.children()
    recogniser.kill()
    assert worker.wait() == 3, worker.log
    assert "is asked for" in worker.log
    assert len({row["weights_sha256"] for row in admin.results(PROJECT)}) == 1


def test_a_token_of_another_role_is_refused(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    submit(service, corpus)
    worker = start_worker(service.root, service.token("submit"))
    assert worker.wait() == 4
    assert "role worker" in worker.log


def test_an_engine_that_does_not_load_gives_the_jobs_back(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, miniature_home: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(miniature_home, broken)
    (broken / "DECIMER-V2/DECIMER_model/saved_model.pb").write_bytes(b"no model")
    admin = submit(service, corpus, corpus.directories[0])
    worker = start_worker(service.root, service.token("worker"), weights_home=str(broken))
    assert worker.wait() == 3, worker.log
    assert "cannot be loaded" in worker.log
    assert admin.project(PROJECT).jobs.queued == 1
    assert any("Traceback" in line.message for line in admin.logs()), "the child's own words are in the central log"


def test_sigterm_posts_what_is_finished_and_gives_back_the_rest(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = submit(service, paced_corpus)
    worker = start_worker(service.root, service.token("worker"), once=False)
    wait_for(lambda: admin.project(PROJECT).images.stored >= 20, LOAD_SECONDS)
    children = worker.children()
    asked_at = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0, worker.log
    assert time.monotonic() - asked_at < 20
    assert all(is_gone(child) for child in children)
    counts = admin.project(PROJECT).jobs
    assert counts.claimed == 0
    assert counts.queued + counts.completed == len(paced_corpus.directories)
    assert all(job.failures == 0 for job in admin.jobs(PROJECT))
    [seen] = admin.workers()
    assert seen.state == "gone"
    work(service, start_worker)
    assert_every_image_once_and_right(admin, paced_corpus)
    service.assert_counters_equal_recount()


@pytest.mark.service(heartbeat_seconds=0.5, sweep_seconds=0.2)
def test_a_worker_paused_past_its_lease_leaves_the_job_to_its_successor(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = submit(service, paced_corpus)
    paused = start_worker(service.root, service.token("worker"), once=False)
    wait_for(lambda: admin.project(PROJECT).images.stored >= 5, LOAD_SECONDS)
    paused.send(signal.SIGSTOP)
    assert admin.project(PROJECT).jobs.claimed > 0

    def is_lost() -> bool:
        # A heartbeat may still have been on its way.
        service.expire_leases()
        return admin.project(PROJECT).jobs.claimed == 0

    wait_for(is_lost)
    work(service, start_worker)
    assert admin.project(PROJECT).jobs.completed == len(paced_corpus.directories)
    before = service.sql("SELECT job_id, image, seq, lease_seq FROM results ORDER BY job_id, image")
    paused.send(signal.SIGCONT)
    wait_for(lambda: "lost" in paused.log)
    wait_for(lambda: any("lost" in line.message for line in admin.logs(level="warning")))
    paused.send(signal.SIGTERM)
    assert paused.wait() == 0
    assert service.sql("SELECT job_id, image, seq, lease_seq FROM results ORDER BY job_id, image") == before
    assert_every_image_once_and_right(admin, paced_corpus)
    service.assert_counters_equal_recount()


def test_two_workers_of_one_hostname_share_the_work(
    service: RunningService, paced_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = submit(service, paced_corpus)
    workers = [start_worker(service.root, service.token("worker"), hostname="twin") for _ in range(2)]
    for worker in workers:
        assert worker.wait() == 0, worker.log
    assert_every_image_once_and_right(admin, paced_corpus)
    assert len({row["worker_id"] for row in admin.results(PROJECT)}) == 2
    assert {worker.hostname for worker in admin.workers()} == {"twin"}


def test_a_clock_that_is_wrong_by_a_day_changes_nothing(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    shift = tmp_path / "shift"
    shift.mkdir()
    # Imported by every Python of this worker before anything else.
    (shift / "sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() + 86400\nprint('the clock is wrong')\n"
    )
    admin = submit(service, corpus)
    worker = start_worker(service.root, service.token("worker"), python_path=shift)
    assert worker.wait() == 0, worker.log
    assert "the clock is wrong" in worker.log
    assert_every_image_once_and_right(admin, corpus)
    off = "SELECT 1 FROM results WHERE processed_at > now() + interval '1 hour'"
    assert service.sql(off) == []


def test_no_secret_is_in_a_command_line_a_childs_environment_or_a_log(
    service: RunningService, long_corpus: Corpus, start_worker: WorkerStarter
) -> None:
    admin = submit(service, long_corpus)
    token = service.token("worker", fresh=True)
    worker = start_worker(service.root, token, once=False, log_level="DEBUG")
    wait_for(lambda: admin.project(PROJECT).images.stored >= 5, LOAD_SECONDS)
    [child, *_] = worker.children()
    assert token not in " ".join(child.cmdline())
    assert token not in Path(f"/proc/{child.pid}/environ").read_text()
    assert token not in Path(f"/proc/{worker.process.pid}/cmdline").read_text()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert token not in worker.log
    assert not any(token in line.message for line in admin.logs())


def test_a_rerun_by_status_recognises_those_images_again(
    service: RunningService, corpus: Corpus, start_worker: WorkerStarter
) -> None:
    directory = corpus.directories[0]
    image = min(image for d, image in corpus.smiles if d == directory)
    admin = submit(service, corpus, directory)
    hand = Holder(service.client("worker"))
    lease = hand.one(PROJECT)
    hand.post(lease, rows=[schemas.NewResult(image=image, status=ResultStatus.TIMEOUT, error_message="slow")])
    hand.complete(lease, 1)
    admin.rerun(PROJECT, lease.job_id, [ResultStatus.TIMEOUT])
    work(service, start_worker)
    [row] = [row for row in admin.results(PROJECT) if row["image"] == image]
    assert (row["status"], row["run"]) == ("recognised", 2)


def test_importing_the_worker_imports_none_of_the_heavy_or_the_services_parts() -> None:
    program = (
        "import sys, uworker, uworker.worker, uworker.cli, uworker.demo\n"
        "heavy = {'fastapi', 'sqlmodel', 'sqlalchemy', 'asyncpg', 'tensorflow', 'rdkit', 'PIL', 'numpy', 'DECIMER'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_rows_say_which_prepared_model_made_them(
    service: RunningService, start_worker: WorkerStarter, tmp_path: Path
) -> None:
    """From the engine, by a child and its parent, to the row; of another project by the same worker there is none."""
    (tmp_path / "source" / "a").mkdir(parents=True)
    (tmp_path / "source" / "a" / "1.png").write_bytes(picture(3))
    admin, digest = service.client("admin"), "ab" * 32
    wanted = {"prepared": digest, "plain": None}
    for project, prepared in wanted.items():
        options = {} if prepared is None else {"prepared": prepared}
        source = (tmp_path / "source").as_uri()
        admin.put_project(project, ProjectSettings(source=source, engine="pixel", engine_options=options))
        admin.add_jobs(project, ["a"])
    work(service, start_worker, source_allow=str(tmp_path), processes="1")
    rows = [next(admin.results(project)) for project in wanted]
    assert {row["project"]: row["prepared"] for row in rows} == wanted
    assert len({row["worker_id"] for row in rows}) == 1
