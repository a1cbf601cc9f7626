"""Measure recognition: `make bench-recognition`, or `python -m benchmarks.recognition --help`."""

import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import psutil
import typer

from benchmarks import report
from benchmarks.recognition import replica, worker
from benchmarks.recognition.contest import Layout, compete
from benchmarks.recognition.outcome import Outcome
from benchmarks.recognition.pictures import Pictures, lay_out
from benchmarks.report import Figure
from benchmarks.stage import BenchmarkError
from uworker.settings import WorkerSettings

IMAGES, QUICK_IMAGES = 48, 6
# Of the time of all cores; more than that in other hands, and the figures say little.
DISTURBED = 0.05

FIGURES = (
    Figure("images_per_second"),
    Figure("vs_plain_loop", 1.55, field="plain predict_SMILES loop: 1"),
    Figure("vs_old_fleet", 1.15, field="a process for each core, TensorFlow's defaults: 1"),
    Figure("worker_overhead", at_most=0.03, field="the same threads without queue and service: 0"),
    Figure("peak_rss_mb"),
    Figure("rss_vs_old_fleet", at_most=0.6),
    Figure("idle_core_share"),
)
NOTE = "A share of 1 is all of it. Memory that processes share is counted once."

PLAIN, THREADS, FLEET, FLEET_ONE_CORE, WORKER = "plain", "threads", "fleet", "fleet_one_core", "worker"
# What is compared with each other most closely stands side by side.
NAMES = (PLAIN, FLEET, FLEET_ONE_CORE, THREADS, WORKER)


def say(line: str) -> None:
    """Print a line of progress."""
    typer.echo(line)


def _cache() -> Path:
    return platformdirs.user_cache_path("decimer-jobs") / "benchmarks"


def main(
    only: Annotated[str, typer.Option(help=f"Some of {','.join(NAMES)}, with commas between.")] = ",".join(NAMES),
    layouts: Annotated[
        str, typer.Option(help="Further processes x threads to measure without the worker: 2x1,1x2,1x4.")
    ] = "",
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small model and few images: to see that all works.")
    ] = False,
    images: Annotated[int | None, typer.Option(min=2, help=f"How many images each recognises. [{IMAGES}]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the medians of the ratios count.")] = 1,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the replica of the model is kept for the next time.")
    ] = None,
) -> None:
    """Measure DECIMER by itself, the fleet of old and the worker on the same images: a table, and a line of JSON."""
    chosen = only.split(",") if only else []
    if unknown := set(chosen) - set(NAMES):
        raise typer.BadParameter(f"--only knows {', '.join(NAMES)}; not {', '.join(sorted(unknown))}")
    contestants = {name: layout for name, layout in _layouts().items() if name in chosen}
    for text in layouts.split(",") if layouts else []:
        if (layout := Layout.parse(text)) is None:
            raise typer.BadParameter(f"--layouts wants something like 2x1,1x2 and not {text}")
        contestants[text] = layout
    number = images or (QUICK_IMAGES if quick else IMAGES)
    measured: list[dict[str, Outcome]] = []
    told: list[dict[str, Any]] = []
    try:
        home = replica.prepare(work_dir or _cache(), replica.SMALL if quick else replica.DECIMER, say)
        with tempfile.TemporaryDirectory(prefix="dj-bench-") as scratch:
            pictures = lay_out(Path(scratch), number)
            for _ in range(rounds):
                measured.append(_measure(contestants, home, pictures))
                if WORKER in chosen:
                    measured[-1][WORKER], more = worker.recognise(pictures, home)
                    told.append(more)
                    _tell(WORKER, measured[-1][WORKER])
    except BenchmarkError as error:
        raise SystemExit(f"benchmarks: {error}") from None
    figures = figures_of(measured)
    report.show(figures, FIGURES, NOTE)
    rounded = {figure.name: None for figure in FIGURES} | {name: round(value, 4) for name, value in figures.items()}
    details = [{name: outcome.details() for name, outcome in round_.items()} for round_ in measured]
    typer.echo(json.dumps({**rounded, "rounds": details, "worker": told, "setting": _setting(number, quick=quick)}))


def _layouts() -> dict[str, Layout]:
    """What the worker is compared with, for the cores of this machine."""
    cores = _cores()
    per_process = min(cores, WorkerSettings.model_fields["threads_per_process"].default)
    return {
        PLAIN: Layout(1, 1, one_core_per_image=False),
        FLEET: Layout(cores, 1, one_core_per_image=False),
        FLEET_ONE_CORE: Layout(cores, 1),
        THREADS: Layout(-(-cores // per_process), per_process),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measure(contestants: Mapping[str, Layout], home: Path, pictures: Pictures) -> dict[str, Outcome]:
    found = {}
    for name, layout in contestants.items():
        found[name] = compete(layout, home, pictures.files)
        _tell(name, found[name])
    return found


def _tell(name: str, outcome: Outcome) -> None:
    say(
        f"{name}: {outcome.per_second:.3f} images/s ({outcome.images} in {outcome.seconds:.0f} s), "
        f"{outcome.peak_bytes / 1e6:,.0f} MB, cores idle {outcome.cores.idle:.0%}, "
        f"ready after {outcome.starting_seconds:.0f} s"
    )
    if outcome.cores.others > DISTURBED:
        say(f"  other programs took {outcome.cores.others:.0%} of the cores: these figures say little")


def figures_of(rounds: list[dict[str, Outcome]]) -> dict[str, float]:
    """The figures that can be told of what was measured; ratios are made within each round, and their median counts."""

    def middle(part: str, whole: str, kind: str) -> float | None:
        pairs = [(found[part], found[whole]) for found in rounds if part in found and whole in found]
        ratios = [getattr(a, kind) / getattr(b, kind) for a, b in pairs]
        return statistics.median(ratios) if ratios else None

    workers = [found[WORKER] for found in rounds if WORKER in found]
    kept = middle(WORKER, THREADS, "per_second")
    figures = {
        "images_per_second": statistics.median(w.per_second for w in workers) if workers else None,
        "vs_plain_loop": middle(WORKER, PLAIN, "per_second"),
        "vs_old_fleet": middle(WORKER, FLEET, "per_second"),
        "worker_overhead": None if kept is None else 1 - kept,
        "peak_rss_mb": max(w.peak_bytes for w in workers) / 1e6 if workers else None,
        "rss_vs_old_fleet": middle(WORKER, FLEET, "peak_bytes"),
        "idle_core_share": statistics.median(w.cores.idle for w in workers) if workers else None,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _setting(images: int, *, quick: bool) -> dict[str, Any]:
    return {
        "images": images,
        "quick": quick,
        "cores": _cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_average": os.getloadavg(),
        "decimer": version("decimer"),
        "tensorflow": version("tensorflow"),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


if __name__ == "__main__":
    # Told to stop, it takes what it started with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    typer.run(main)
