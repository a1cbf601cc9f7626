"""Measure the snapshot: `make bench-snapshot`, or `python -m benchmarks.snapshot --help`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from benchmarks import report
from benchmarks.report import Figure
from benchmarks.stage import ROOT, BenchmarkError, Stage, open_stage
from job_api.schemas import ProjectSettings
from tests.containers.bases import import_debian
from tests.containers.engine import Engine, NoEngine, install, run_engine
from uworker.demo.samples import draw_samples
from uworker.prepared.files import Prepared
from uworker.snapshot.images import BuildError, BuiltImage, ImageRequest, build_image
from uworker.snapshot.preparing import prepared_for
from uworker.snapshot.tree import CODE, RECIPE, code_files
from uworker.weights import Weights, find_weights

FIGURES = (
    Figure("prepare_seconds"),
    Figure("build_cold_seconds"),
    Figure("build_warm_seconds", at_most=20),
    Figure("image_mb"),
    Figure("snapshot_seconds"),
    Figure("saved_mb"),
    Figure("load_seconds"),
    Figure("first_result_seconds"),
)
NOTE = (
    "Prepare: making and proving the prepared model, once for these weights; next to nothing where it was made before. "
    "Cold: an engine with nothing but Debian's base image, downloads included. Warm: after a change "
    "of the code. Snapshot: ./build_snapshot.sh when the image is there, saving included. First result: from `bash "
    "start_worker.sh`, the image being loaded."
)
PROJECT = "bench"
RESULT_SECONDS = 300.0

T = TypeVar("T")


def say(line: str) -> None:
    """Print a line of progress."""
    typer.echo(line)


def main(
    *,
    weights_home: Annotated[
        Path | None,
        typer.Option("--weights", help="Folder that holds DECIMER-V2; without: a miniature model, as it is shipped."),
    ] = None,
    as_shipped: Annotated[
        bool, typer.Option("--as-shipped", help="With --weights: the image with TensorFlow, not the prepared model's.")
    ] = False,
    work_dir: Annotated[Path | None, typer.Option(help="Where images are laid out: 12 GB, for a while.")] = None,
) -> None:
    """Build the image cold and warm, save it, load it elsewhere, and start it: a table, and a line of JSON."""
    try:
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dj-bench-", dir=work_dir)))
            install("docker-compose")
            weights, samples = _weights(scratch, weights_home)
            # None can be prepared of the miniature model.
            is_shipped = as_shipped or weights_home is None
            prepare_seconds, prepared = _timed(
                lambda: None if is_shipped else prepared_for(weights, hand_drawn=False, say=say)
            )
            kind = "as shipped, with TensorFlow" if prepared is None else "a prepared model"
            say(f"the image: {kind} ({weights.name})")
            figures, layers = _measure(stack, scratch, weights, prepared, samples)
            if prepared is not None:
                figures["prepare_seconds"] = prepare_seconds
    except (BenchmarkError, BuildError, NoEngine) as error:
        raise SystemExit(f"benchmarks: {error}") from None
    report.show(figures, FIGURES, NOTE)
    for what, megabytes in layers.items():
        say(f"{megabytes:>10,.1f} MB  {what}")
    rounded = {name: round(value, 2) for name, value in figures.items()}
    typer.echo(json.dumps({**rounded, "layers_mb": layers, "image": kind, "setting": report.setting()}))


def _measure(
    stack: ExitStack, scratch: Path, weights: Weights, prepared: Prepared | None, samples: Path
) -> tuple[dict[str, float], dict[str, float]]:
    builder = stack.enter_context(run_engine(scratch / "builder"))
    import_debian(builder)
    # For the builds here; `Engine.environment` says it to those that are started.
    os.environ["DOCKER_HOST"] = builder.address
    figures: dict[str, float] = {}
    say("building the image with nothing there")
    figures["build_cold_seconds"], image = _timed(lambda: _build(ROOT, weights, prepared))
    layers = {layer.what: round(layer.size_bytes / 1e6, 1) for layer in image.layers}
    figures["image_mb"] = image.size_bytes / 1e6
    say("building it after a change of the code")
    figures["build_warm_seconds"], _ = _timed(lambda: _build(_changed_clone(scratch / "clone"), weights, prepared))
    stage = stack.enter_context(open_stage())
    with stage.client() as admin:
        admin.put_project(PROJECT, ProjectSettings(source=samples.as_uri()))
    figures["snapshot_seconds"], folder = _timed(
        lambda: _snapshot(builder, stage, weights, scratch, as_shipped=prepared is None)
    )
    saved = folder / "docker_image"
    figures["saved_mb"] = saved.stat().st_size / 1e6
    machine = stack.enter_context(run_engine(scratch / "machine"))
    say("loading it on a machine that has nothing of it")
    figures["load_seconds"], _ = _timed(lambda: _run(machine, "docker", "load", "--input", str(saved)))
    say("starting it, with jobs waiting")
    figures["first_result_seconds"] = _first_result(machine, stage, folder, samples)
    return figures, layers


def _timed(do: Callable[[], T]) -> tuple[float, T]:
    began = time.monotonic()
    done = do()
    return time.monotonic() - began, done


def _weights(scratch: Path, home: Path | None) -> tuple[Weights, Path]:
    """The weights, and sample directories that any user may read."""
    samples = scratch / "samples"
    samples.mkdir()
    scratch.chmod(0o755)
    drawn = draw_samples(samples)
    if home is None:
        home = scratch / "weights"
        known = json.dumps([(str(sample.path), sample.smiles) for sample in drawn])
        command = [sys.executable, "-m", "uworker.demo.miniature", str(home)]
        subprocess.run(command, input=known, cwd=ROOT, text=True, check=True, capture_output=True)
    found = find_weights(home.absolute(), hand_drawn=False)
    if found is None:
        raise BenchmarkError(f"there are no weights of DECIMER below {home}")
    return found, samples


def _build(source: Path, weights: Weights, prepared: Prepared | None) -> BuiltImage:
    return build_image(ImageRequest("decimer-bench:worker", PROJECT, source, weights, prepared=prepared), say)


def _changed_clone(clone: Path) -> Path:
    """What an image is made of, with one line of code more."""
    for folder in ("docker", *(name for name in RECIPE if "/" not in name)):
        source = ROOT / folder
        (shutil.copytree if source.is_dir() else shutil.copy)(source, _parent_made(clone / folder))
    for path in code_files(ROOT):
        shutil.copy(ROOT / path, _parent_made(clone / path))
    with (clone / CODE[-1] / "__init__.py").open("a") as file:
        file.write(f"\nCHANGED_AT = {time.time()}\n")
    return clone


def _parent_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _snapshot(engine: Engine, stage: Stage, weights: Weights, scratch: Path, *, as_shipped: bool) -> Path:
    """Make the snapshot's folder with the command that people use."""
    config = scratch / "bench.conf"
    config.touch(mode=0o600)
    config.write_text(f"JOB_API_ROOT={stage.root}\nJOB_API_TOKEN={stage.admin_token}\n")
    output = scratch / "snapshots"
    output.mkdir()
    options = ["--weights", str(weights.home), "--output", str(output), *(["--as-shipped"] if as_shipped else [])]
    _run(engine, str(ROOT / "build_snapshot.sh"), PROJECT, str(config), *options)
    [folder] = output.iterdir()
    return folder


def _first_result(engine: Engine, stage: Stage, folder: Path, samples: Path) -> float:
    with (folder / "worker.env").open("a") as file:
        file.write(f"WORKER_MOUNT={samples}\n")
    with stage.client() as admin:
        admin.add_jobs(PROJECT, sorted(path.name for path in samples.iterdir()))
        start = ("bash", str(folder / "start_worker.sh"))
        began = time.monotonic()
        _run(engine, *start)
        try:
            while not admin.project(PROJECT).images.stored:
                if time.monotonic() - began > RESULT_SECONDS:
                    raise BenchmarkError(f"there was no result in {RESULT_SECONDS:.0f} s")
                time.sleep(0.1)
            return time.monotonic() - began
        finally:
            _run(engine, *start, "stop")


def _run(engine: Engine, *command: str) -> None:
    done = engine.run(*command, check=False, timeout_seconds=1_800)
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()[-2000:]}")


if __name__ == "__main__":
    report.run(main)
