"""`make demo`: the whole way from a folder of images to a CSV of SMILES, on this machine, with real parts only.

Starts a service with an embedded database and a worker, adds the directories, shows the progress, prints what came
out, and stops everything it started. It uses the commands a person would use.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from job_api import schemas
from job_api.client import Client, ClientError
from job_api.terminal import printable
from uworker.demo import report
from uworker.demo.samples import Sample, draw_awkward, draw_samples
from uworker.images import IMAGE_ENDINGS
from uworker.settings import default_weights_home
from uworker.weights import WeightsError, ensure_weights

PROJECT = "demo"
HOME = Path(__file__).resolve().parents[2]
RESULT_FILES = ("results.csv", "service.log", "worker.log")
START_SECONDS = 60.0
STOP_SECONDS = 25.0
# A directory of files such as a corpus of 200,000 has somewhere, most of them no good images.
AWKWARD = "Awkward files (Anybody 2026)"

# Eighty columns, which rich takes where there is no terminal, break every row of the tables.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)


class Model(StrEnum):
    """Whose weights recognise the images."""

    MINIATURE = "miniature"
    DECIMER = "decimer"


class DemoError(Exception):
    """The demo cannot go on; its text says why, in one line."""


@dataclass(frozen=True)
class Work:
    """What is to be recognised: directories below a source, and where it is known what must come out.

    `expected` maps (directory, image) to the status and, of recognised images, the SMILES.
    """

    source: Path
    directories: list[str]
    samples: list[Sample] = field(default_factory=list)
    expected: dict[tuple[str, str], report.Outcome] = field(default_factory=dict)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def demo(
    images: Annotated[
        Path | None, typer.Option(help="Folder whose sub-folders hold images, or a folder of images.")
    ] = None,
    model: Annotated[Model | None, typer.Option(help="decimer: DECIMER's own weights, downloaded once (1 GB).")] = None,
    output: Annotated[Path, typer.Option(help="Where the CSV and the logs go.")] = HOME / "demo-output",
) -> None:
    """Turn folders of structure images into SMILES, through the real service and a real worker."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    try:
        with ExitStack() as stack:
            _run(stack, images, model or (Model.DECIMER if images else Model.MINIATURE), output.resolve())
    except (DemoError, ClientError) as error:
        console.print(Text(f"demo: {error}", style="red"), soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        console.print("demo: stopped; nothing is running any more")
        raise SystemExit(130) from None


def _interrupt(_number: int, _frame: object) -> None:
    """Ctrl-C and a plain kill take the same way out, which stops what was started and is not itself interrupted."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    console.print("\ndemo: stopping what was started…")
    raise KeyboardInterrupt


def _run(stack: ExitStack, images: Path | None, model: Model, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="decimer-jobs-")))
    work = _own_images(images, model) if images else _sample_images(output / "images")
    _step(f"{len(work.directories)} directories under {printable(str(work.source))}")
    home = _weights_home(model, work, scratch)
    # Not before it is known that there is something to do, and something that does it.
    _put_aside(output)
    root, password = stack.enter_context(_service(scratch, output))
    client = stack.enter_context(Client(root, username="admin", password=password))
    _step(f"job service at {root}")
    _add_jobs(work, root, password, scratch)
    token = client.new_token(schemas.NewToken(name="demo", role=schemas.Role.WORKER, project=PROJECT)).token
    try:
        with _worker(root, token, home, output) as worker:
            _watch(client, worker, output)
        csv_path = _download(client, output)
    except (DemoError, KeyboardInterrupt):
        # The database goes with the scratch, and some of this may have taken hours.
        with (
            suppress(ClientError, OSError),
            Client(root, username="admin", password=password, retry_seconds=0) as quick,
        ):
            if quick.project(PROJECT).images.stored:
                _step(f"what was recognised until now: {_download(quick, output)}")
        raise
    _report(client, work, report.read_rows(csv_path))
    _how_to_go_on(output, csv_path)


def _put_aside(output: Path) -> None:
    """Keep what an earlier run left, where it cannot be taken for the outcome of this one."""
    left = [output / name for name in RESULT_FILES if (output / name).exists()]
    if left:
        at = datetime.fromtimestamp(max(path.stat().st_mtime for path in left), UTC)
        earlier = output / f"earlier-{at:%Y%m%dT%H%M%SZ}"
        earlier.mkdir(exist_ok=True)
        for path in left:
            path.rename(earlier / path.name)
        _step(f"what an earlier run left is now in {printable(str(earlier))}")


def _step(text: str) -> None:
    console.print(Text.assemble(("• ", "green"), text), soft_wrap=True)


def _sample_images(root: Path) -> Work:
    shutil.rmtree(root, ignore_errors=True)
    samples = draw_samples(root)
    expected: dict[tuple[str, str], report.Outcome] = {
        (sample.directory, sample.image): ("recognised", sample.smiles) for sample in samples
    }
    for name, awkward in draw_awkward(root / AWKWARD).items():
        expected[AWKWARD, name] = (awkward.status, awkward.smiles)
    return Work(root, sorted({directory for directory, _ in expected}), samples, expected)


def _own_images(images: Path, model: Model) -> Work:
    if model is Model.MINIATURE:
        raise DemoError("the miniature model knows the sample images only; your own need MODEL=decimer")
    images = images.expanduser().resolve()
    if not images.is_dir():
        raise DemoError(f"there is no folder {printable(str(images))}")
    children = sorted(child for child in images.iterdir() if not child.name.startswith("."))
    if any(child.is_file() and child.suffix.lower() in IMAGE_ENDINGS for child in children):
        # Pictures lie in the folder itself: it is the one directory, with all that is below it.
        return Work(images.parent, [images.name])
    folders = [child.name for child in children if child.is_dir()]
    if not folders:
        raise DemoError(f"the folder {printable(str(images))} holds neither images nor folders")
    return Work(images, folders)


def _weights_home(model: Model, work: Work, scratch: Path) -> Path:
    if model is Model.DECIMER:
        return _own_weights()
    _step("building the miniature model, which knows the sample images and nothing else")
    home = scratch / "weights"
    # In a process of its own: TensorFlow would stay in this one's memory.
    pairs = json.dumps([[str(sample.path), sample.smiles] for sample in work.samples])
    command = [sys.executable, "-m", "uworker.demo.miniature", str(home)]
    # TensorFlow leaves generated modules in the temporary directory; there they go with the rest.
    environment = _plain_environment() | {"TMPDIR": str(scratch)}
    built = subprocess.run(command, env=environment, input=pairs, text=True, capture_output=True, check=False)
    if built.returncode != 0:
        raise DemoError(f"the miniature model could not be built: {built.stderr.strip().splitlines()[-1:]}")
    return home


def _own_weights() -> Path:
    """DECIMER's own weights, downloaded now if they are not there: before anything is started."""
    home = Path(os.environ.get("UWORKER_WEIGHTS_HOME") or default_weights_home()).expanduser()
    with Progress(
        TextColumn("downloading {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bars: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done, total=total)

        try:
            weights = ensure_weights(
                home,
                hand_drawn=False,
                pinned_sha256=None,
                on_progress=show,
                prepared_will_do=True,
                recognises_here=True,
            )
        except WeightsError as error:
            raise DemoError(str(error)) from None
    checked = "as its host publishes them" if weights.verified else "unverified"
    _step(f"weights in {home}, {checked}")
    return home


def _plain_environment() -> dict[str, str]:
    """This process's environment without the settings of other services and workers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("JOB_API_", "UWORKER_"))}


@contextmanager
def _process(command: list[str], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program in a process group of its own, its output in a file; asked to stop at the end, then made to."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=_plain_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _service(scratch: Path, output: Path) -> Iterator[tuple[str, str]]:
    data, log = scratch / "service", output / "service.log"
    environment = {"JOB_API_DATA_DIR": str(data), "JOB_API_PORT": "0", "JOB_API_HOST": "127.0.0.1"}
    with _process([sys.executable, "-m", "job_api", "serve"], environment, log) as process:
        deadline = time.monotonic() + START_SECONDS
        root = None
        while root is None or not (data / "admin-password").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"the job service did not start: {_last_words(log)}")
            time.sleep(0.05)
            found = re.search(r"serving (http://\S+:\d+)", log.read_text(errors="replace"))
            root = found and found.group(1)
        password = (data / "admin-password").read_text().strip()
        # The first answer comes when the database is up.
        with Client(root, username="admin", password=password, retry_seconds=START_SECONDS) as client:
            client.server()
        yield root, password


def _add_jobs(work: Work, root: str, password: str, scratch: Path) -> None:
    jobs_file = scratch / "directories.txt"
    lines = [f"./{name}" if name.startswith("# ") else name for name in work.directories]
    jobs_file.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))
    command = [sys.executable, str(HOME / "add_jobs.py"), PROJECT, "--jobs-file", str(jobs_file)]
    environment = {"JOB_API_ROOT": root, "JOB_API_USERNAME": "admin", "JOB_API_PASSWORD": password}
    added = subprocess.run(
        [*command, "--source", str(work.source)],
        env=_plain_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if added.returncode != 0:
        raise DemoError((added.stderr + added.stdout).strip())
    _step(added.stdout.strip().splitlines()[-1])


@contextmanager
def _worker(root: str, token: str, weights_home: Path, output: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = {
        "UWORKER_JOB_API_ROOT": root,
        "UWORKER_JOB_API_TOKEN": token,
        "UWORKER_JOB_API_PROJECT": PROJECT,
        "UWORKER_WEIGHTS_HOME": str(weights_home),
        "UWORKER_SPOOL_DIR": str(output / "spool"),
    }
    with _process([sys.executable, "-m", "uworker", "--once"], environment, output / "worker.log") as process:
        _step("a worker; it loads its engine first")
        yield process


def _watch(client: Client, worker: "subprocess.Popen[bytes]", output: Path) -> None:
    """Show the progress until the worker has ended, which it does when the queue is empty."""
    log = output / "worker.log"
    total = sum(client.project(PROJECT).jobs.model_dump().values())
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("directories, {task.fields[images]} images"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("recognising", total=total, images=0)
        ended = False
        while not ended:
            ended = worker.poll() is not None
            status = client.project(PROJECT)
            progress.update(task, completed=total - status.jobs.unfinished, images=status.images.stored)
            if not ended:
                time.sleep(0.3)
    if worker.returncode != 0:
        raise DemoError(f"the worker gave up: {_last_words(log)} (its log: {log})")
    if unfinished := client.project(PROJECT).jobs.unfinished:
        raise DemoError(f"the worker ended and {unfinished} directories are unfinished (its log: {log})")


def _last_words(log: Path) -> str:
    """The last error in a log, or where there is none its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.partition(" ERROR ")[2] for line in lines if " ERROR " in line]
    return (errors or lines or ["it said nothing"])[-1]


def _download(client: Client, output: Path) -> Path:
    path = output / "results.csv"
    with client.export(PROJECT, format="csv") as answer, path.open("wb") as file:
        for block in answer.iter_bytes():
            file.write(block)
    return path


def _report(client: Client, work: Work, rows: list[report.Row]) -> None:
    report.show_directories(console, client.jobs(PROJECT), rows)
    for weights in report.show_recognised(console, rows):
        _step(f"weights: {weights}")
    if not work.expected:
        return
    if wrong := report.compare(work.expected, rows):
        raise DemoError(wrong)
    good = sum(smiles is not None for _, smiles in work.expected.values())
    _step(
        f"all {good} sample images that can be recognised got exactly the SMILES they were drawn from, "
        f"and {len(work.expected) - good} bad files are rows that say what is wrong with them"
    )


def _how_to_go_on(output: Path, csv_path: Path) -> None:
    _step(f"results: {csv_path}")
    _step(f"logs: {output / 'service.log'}, {output / 'worker.log'}; everything that was started is stopped")
    console.print(
        "\nYour own images, with DECIMER's own weights (downloaded once, 1 GB):\n"
        "  make demo IMAGES=/path/to/folders MODEL=decimer\n"
        "A service that stays, and workers on other machines: see README.md, «Running it for real».",
        soft_wrap=True,
    )


if __name__ == "__main__":
    app()
