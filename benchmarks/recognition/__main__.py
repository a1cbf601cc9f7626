"""Measure recognition: `make bench-recognition`, or `python -m benchmarks.recognition --help`."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import platformdirs
import psutil
import typer

from benchmarks import report
from benchmarks.recognition import lengths, prepared, replica, worker
from benchmarks.recognition.contest import Layout, check_length, compete
from benchmarks.recognition.figures import (
    FIGURES,
    FLEET,
    FLEET_ONE_CORE,
    NOTE,
    PLAIN,
    PREPARED,
    PREPARED_BATCHED,
    THREADS,
    WORKER,
    WORKER_SHIPPED,
    figures_of,
    with_goals,
)
from benchmarks.recognition.outcome import Outcome
from benchmarks.recognition.pictures import Pictures, lay_out
from benchmarks.stage import BenchmarkError
from uworker.prepared.files import Report
from uworker.settings import WorkerSettings

IMAGES, QUICK_IMAGES = 48, 6
PROOF_IMAGES = 24
# Of the time of all cores; more than that in other hands, and the figures say little.
DISTURBED = 0.05

# What is compared with each other most closely stands side by side.
NAMES = (PLAIN, FLEET, FLEET_ONE_CORE, THREADS, WORKER_SHIPPED, PREPARED, PREPARED_BATCHED, WORKER)
USUAL = tuple(name for name in NAMES if name != WORKER_SHIPPED)
# What they are told besides where all is.
WORKERS: dict[str, dict[str, str]] = {WORKER_SHIPPED: {"UWORKER_PREPARED": "false"}, WORKER: {}}
BY_LENGTH = (THREADS, PREPARED, PREPARED_BATCHED)


@dataclass
class Measured:
    """All that was measured.

    Attributes:
        rounds: what each contestant came to; `workers`: what else there is to be told of workers, by round.
        proof: how the prepared model was compared with the shipped one, where there is one.
        by_tokens: what contestants came to, by tokens; `proofs`: how the model prepared for each was compared.
    """

    rounds: list[dict[str, Outcome]] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)
    proof: Report | None = None
    by_tokens: dict[str, dict[int, Outcome]] = field(default_factory=dict)
    proofs: dict[int, Report] = field(default_factory=dict)


def say(line: str) -> None:
    """Print a line of progress."""
    typer.echo(line)


def _cache() -> Path:
    return platformdirs.user_cache_path("decimer-jobs") / "benchmarks"


def main(
    only: Annotated[str, typer.Option(help=f"Some of {','.join(NAMES)}, with commas between.")] = ",".join(USUAL),
    layouts: Annotated[
        str, typer.Option(help="Further processes x threads to measure without the worker: 2x1,1x2,1x4.")
    ] = "",
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small model and few images: to see that all works.")
    ] = False,
    images: Annotated[int | None, typer.Option(min=2, help=f"How many images each recognises. [{IMAGES}]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the medians of the ratios count.")] = 1,
    tokens: Annotated[
        str, typer.Option(help=f"Also measure {','.join(BY_LENGTH)} at other lengths of answers: 20,40,80,150.")
    ] = "",
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the replica of the model is kept for the next time.")
    ] = None,
) -> None:
    """Measure DECIMER by itself, prepared, and the worker on the same images: a table, and a line of JSON."""
    chosen = only.split(",") if only else []
    if unknown := set(chosen) - set(NAMES):
        raise typer.BadParameter(f"--only knows {', '.join(NAMES)}; not {', '.join(sorted(unknown))}")
    contestants = {name: layout for name, layout in _layouts().items() if name in chosen}
    for text in layouts.split(",") if layouts else []:
        if (layout := Layout.parse(text)) is None:
            raise typer.BadParameter(f"--layouts wants something like 2x1,1x2 and not {text}")
        contestants[text] = layout
    counts = _read_counts(tokens)
    number = images or (QUICK_IMAGES if quick else IMAGES)
    architecture = replica.SMALL if quick else replica.DECIMER
    found = Measured()
    try:
        home = replica.prepare(work_dir or _cache(), architecture, say)
        with tempfile.TemporaryDirectory(prefix="dj-bench-") as scratch:
            pictures = lay_out(Path(scratch), number)
            workers = [name for name in WORKERS if name in chosen]
            if WORKER in workers or any(layout.prepared for layout in contestants.values()):
                enough = max(PROOF_IMAGES, prepared.images_needed(architecture.tokens))
                found.proof = prepared.prepare(home, lay_out(Path(scratch, "proof"), enough).files, say)
            for _ in range(rounds):
                found.rounds.append(_measure(contestants, home, pictures, architecture.tokens))
                for name in workers:
                    found.workers.append(_measure_worker(name, found, home, pictures))
            if counts:
                ways = {name: _layouts()[name] for name in BY_LENGTH}
                more = lay_out(Path(scratch, "lengths"), lengths.images_for(ways, counts))
                measured = lengths.measure(home, architecture.tokens, counts, (ways, more.files), say)
                found.by_tokens, found.proofs = measured
    except BenchmarkError as error:
        raise SystemExit(f"benchmarks: {error}") from None
    _show(found)
    setting = report.setting(
        "decimer",
        "onnxruntime",
        images=number,
        quick=quick,
        memory_gb=round(psutil.virtual_memory().total / 1e9),
        tensorflow=replica.tensorflow_version(),
    )
    typer.echo(json.dumps(_last_line(found) | {"setting": setting}))


def _layouts() -> dict[str, Layout]:
    """What the worker is compared with, for the cores of this machine."""
    cores = report.cores()
    per_process = min(cores, WorkerSettings.model_fields["threads_per_process"].default)
    return {
        PLAIN: Layout(1, 1, one_core_per_image=False),
        FLEET: Layout(cores, 1, one_core_per_image=False),
        FLEET_ONE_CORE: Layout(cores, 1),
        THREADS: Layout(-(-cores // per_process), per_process),
        PREPARED: Layout(1, cores, prepared=True),
        PREPARED_BATCHED: Layout(1, cores, prepared=True, batched=True),
    }


def _read_counts(text: str) -> list[int]:
    if not text:
        return []
    counts = sorted({int(part) for part in text.split(",") if part.isdecimal()})
    if len(counts) < len(text.split(",")) or len(counts) < 3 or counts[0] < 1 or counts[-1] > replica.LONGEST:
        raise typer.BadParameter(f"--tokens wants three numbers or more of 1 to {replica.LONGEST} and not {text}")
    return counts


def _measure(contestants: Mapping[str, Layout], home: Path, pictures: Pictures, tokens: int) -> dict[str, Outcome]:
    found = {}
    for name, layout in contestants.items():
        found[name] = compete(layout, home, pictures.files)
        check_length(found[name], tokens)
        _tell(name, found[name])
    return found


def _measure_worker(name: str, found: Measured, home: Path, pictures: Pictures) -> dict[str, Any]:
    """Add a worker to the last round; returns what else there is to be told."""
    outcome, told = worker.recognise(pictures, home, environment=WORKERS[name])
    wanted = [str(found.proof and found.proof.prepared)] if name == WORKER else ["None"]
    if told["prepared"] != wanted:
        raise BenchmarkError(f"{name} recognised with the models {told['prepared']}, not {wanted}")
    found.rounds[-1][name] = outcome
    _tell(name, outcome)
    return {"name": name, **told}


def _tell(name: str, outcome: Outcome) -> None:
    say(
        f"{name}: {outcome.per_second:.3f} images/s ({outcome.images} in {outcome.seconds:.0f} s), "
        f"{outcome.peak_bytes / 1e6:,.0f} MB, cores idle {outcome.cores.idle:.0%}, "
        f"ready after {outcome.starting_seconds:.0f} s"
    )
    if outcome.cores.others > DISTURBED:
        say(f"  other programs took {outcome.cores.others:.0%} of the cores: these figures say little")


def _show(found: Measured) -> None:
    if figures := figures_of(found.rounds, found.proof):
        report.show(figures, with_goals(found.proof), NOTE)
    if found.by_tokens:
        lengths.show("seconds an image", lengths.seconds_of(found.by_tokens))
        lengths.show("processor seconds an image", lengths.processor_seconds_of(found.by_tokens))
        lengths.show_loads(found.by_tokens)
        lengths.show_proofs(found.proofs)


def _last_line(found: Measured) -> dict[str, Any]:
    figures = figures_of(found.rounds, found.proof)
    line: dict[str, Any] = {figure.name: None for figure in FIGURES}
    line |= {name: round(value, 4) for name, value in figures.items()}
    line["rounds"] = [{name: outcome.details() for name, outcome in round_.items()} for round_ in found.rounds]
    line["worker"] = found.workers
    seconds, processor = lengths.seconds_of(found.by_tokens), lengths.processor_seconds_of(found.by_tokens)
    line["by_tokens"] = {
        name: {
            "seconds_per_image": {str(tokens): round(value, 4) for tokens, value in seconds[name].items()},
            "fit": lengths.fit(seconds[name]),
            "fit_of_processor_seconds": lengths.fit(processor[name]),
            "details": {str(tokens): outcome.details() for tokens, outcome in by.items()},
        }
        for name, by in found.by_tokens.items()
    }
    line["proofs_by_tokens"] = {str(tokens): lengths.details_of(proof) for tokens, proof in found.proofs.items()}
    return line


if __name__ == "__main__":
    report.run(main)
