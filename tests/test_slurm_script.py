"""The Slurm script as far as no Slurm is needed; `test_slurm.py` runs it for real."""

import os
import subprocess
from pathlib import Path

import pytest

SBATCH = Path(__file__).parents[1] / "docker" / "slurm" / "worker.sbatch"


def run_sbatch(
    tmp_path: Path, *arguments: str, env_file: str | None = None, path: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the script as on a node, with a program in the worker's place that prints its settings."""
    printer = tmp_path / "venv" / "bin" / "uworker"
    printer.parent.mkdir(parents=True, exist_ok=True)
    printer.write_text('#!/bin/sh\necho "runs: $*"\nenv | grep -E "^(UWORKER_|SSL_CERT)"\n')
    printer.chmod(0o755)
    if env_file is not None:
        (tmp_path / "worker.env").write_text(env_file)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("UWORKER_", "SLURM_", "SSL_"))}
    given = {"SLURM_JOB_ID": "17", "PATH": path or os.environ["PATH"], **variables}
    command = ["/bin/bash", str(SBATCH), *(arguments or ("worker.env", "venv"))]
    return subprocess.run(
        command, cwd=tmp_path, env=clean | given, capture_output=True, text=True, timeout=30, check=False
    )


def test_settings_are_taken_as_they_are_and_run_nothing(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    lines = f"# a comment\n\nUWORKER_JOB_API_TOKEN=a $(touch {tmp_path}/run) 'b\" &\nUWORKER_SPOOL_DIR={spool}"
    done = run_sbatch(tmp_path, env_file=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "runs: --once"
    assert f"UWORKER_JOB_API_TOKEN=a $(touch {tmp_path}/run) 'b\" &" in done.stdout.splitlines()
    assert f"UWORKER_SPOOL_DIR={spool}" in done.stdout.splitlines()
    assert not (tmp_path / "run").exists()


def test_quotes_around_a_value_are_not_part_of_it(tmp_path: Path) -> None:
    lines = f"UWORKER_SPOOL_DIR='{tmp_path}/the spool'\nUWORKER_SNAPSHOT=\"a#b\"\nUWORKER_HOSTNAME='\n"
    said = run_sbatch(tmp_path, env_file=lines).stdout.splitlines()
    assert f"UWORKER_SPOOL_DIR={tmp_path}/the spool" in said
    assert "UWORKER_SNAPSHOT=a#b" in said
    assert "UWORKER_HOSTNAME='" in said


def test_what_the_build_writes_and_people_add_is_read_as_compose_reads_it(tmp_path: Path) -> None:
    certificates = tmp_path / "ca.crt"
    certificates.touch()
    lines = [
        f"export UWORKER_SPOOL_DIR = {tmp_path}/spool   # on this node",
        r"UWORKER_SOURCE_ROOT='/data/O\'Neil'  # a comment",
        r'UWORKER_SNAPSHOT="a \"b\""',
        f"WORKER_CA_FILE={certificates}",
    ]
    said = run_sbatch(tmp_path, env_file="\r\n".join(lines) + "\r\n").stdout.splitlines()
    assert f"UWORKER_SPOOL_DIR={tmp_path}/spool" in said
    assert "UWORKER_SOURCE_ROOT=/data/O'Neil" in said
    assert 'UWORKER_SNAPSHOT=a "b"' in said
    assert f"SSL_CERT_FILE={certificates}" in said
    certificates.unlink()
    assert "cannot read WORKER_CA_FILE" in run_sbatch(tmp_path).stderr


def many_cores(tmp_path: Path) -> str:
    """The way to programs, on a node of 64 cores."""
    many = tmp_path / "bin" / "nproc"
    many.parent.mkdir()
    many.write_text("#!/bin/sh\necho 64\n")
    many.chmod(0o755)
    return f"{many.parent}:{os.environ['PATH']}"


@pytest.mark.parametrize(("given", "processes", "threads"), [(1, 1, 1), (4, 1, 4), (6, 2, 3), (8, 2, 4)])
def test_a_worker_that_is_bound_to_no_core_is_told_how_many_it_has(
    tmp_path: Path, given: int, processes: int, threads: int
) -> None:
    path = many_cores(tmp_path)
    done = run_sbatch(tmp_path, env_file="UWORKER_SPOOL_DIR=spool\n", path=path, SLURM_CPUS_ON_NODE=str(given))
    assert f"UWORKER_PROCESSES={processes}" in done.stdout.splitlines()
    assert f"UWORKER_THREADS_PER_PROCESS={threads}" in done.stdout.splitlines()
    bound = run_sbatch(tmp_path, path=path, SLURM_CPUS_ON_NODE="64")
    assert "UWORKER_PROCESSES" not in bound.stdout


@pytest.mark.parametrize(
    ("lines", "processes", "threads", "too_many"),
    [
        ("UWORKER_PROCESSES=3", 3, 2, False),
        ("UWORKER_PROCESSES=9", 9, 1, True),
        ("UWORKER_THREADS_PER_PROCESS=1", 6, 1, False),
        ("UWORKER_THREADS_PER_PROCESS=4", 1, 4, False),
        ("UWORKER_THREADS_PER_PROCESS=8", 1, 8, True),
        ("UWORKER_PROCESSES=2\nUWORKER_THREADS_PER_PROCESS=5", 2, 5, True),
    ],
)
def test_what_the_settings_say_of_its_threads_is_kept(
    tmp_path: Path, lines: str, processes: int, threads: int, *, too_many: bool
) -> None:
    done = run_sbatch(
        tmp_path, env_file=f"UWORKER_SPOOL_DIR=spool\n{lines}\n", path=many_cores(tmp_path), SLURM_CPUS_ON_NODE="6"
    )
    assert f"UWORKER_PROCESSES={processes}" in done.stdout.splitlines()
    assert f"UWORKER_THREADS_PER_PROCESS={threads}" in done.stdout.splitlines()
    assert f"the worker runs {processes} x {threads} threads" in done.stdout
    assert ("more than its cores" in done.stderr) == too_many


@pytest.mark.parametrize(
    ("arguments", "variables", "advice"),
    [
        (["worker.env"], {}, "sbatch --array=1-8 worker.sbatch worker.env"),
        (["nowhere.env", "venv"], {}, "cannot read nowhere.env"),
        (["worker.env", "nowhere"], {}, "neither nowhere/bin/uworker nor an image nowhere"),
        (["worker.env", "worker.env"], {}, "there is no apptainer"),
        (["worker.env", "venv"], {"SLURM_JOB_ID": ""}, "start it with sbatch"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], advice: str
) -> None:
    done = run_sbatch(tmp_path, *arguments, env_file=f"UWORKER_SPOOL_DIR={tmp_path}\n", **variables)
    assert done.returncode == 2
    assert advice in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("image", ["decimer.sif", "sandbox"])
def test_an_image_is_run_by_apptainer_with_its_folders(tmp_path: Path, image: str) -> None:
    """How it is called, and no more: Debian 12 has no Apptainer."""
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "decimer.sif").touch()
    (tmp_path / "sandbox" / ".singularity.d").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    lines = f"UWORKER_SPOOL_DIR={tmp_path}/spool\nWORKER_MOUNT={tmp_path}/images\n"
    path = f"{program.parent}:{os.environ['PATH']}"
    done = run_sbatch(tmp_path, "worker.env", image, env_file=lines, path=path)
    bound = ["--bind", f"{tmp_path}/spool:/var/lib/uworker", "--bind", f"{tmp_path}/images"]
    assert done.stdout.splitlines() == ["run", "--no-home", "--env", "UWORKER_STATE_FILE=", *bound, image, "--once"]
    certificates = tmp_path / "ca.crt"
    certificates.touch()
    done = run_sbatch(tmp_path, "worker.env", image, env_file=f"{lines}WORKER_CA_FILE={certificates}\n", path=path)
    bound += ["--bind", str(certificates)]
    assert done.stdout.splitlines() == ["run", "--no-home", "--env", "UWORKER_STATE_FILE=", *bound, image, "--once"]
    for folder in ("a,b", "a:b"):
        named = lines.replace("/images", f"/{folder}")
        refused = run_sbatch(tmp_path, "worker.env", image, env_file=named, path=path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"no folder with a comma or a colon in its name: {tmp_path}/{folder}" in refused.stderr
