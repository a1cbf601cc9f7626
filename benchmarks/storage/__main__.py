"""Measure storage: `make bench-storage`, or `python -m benchmarks.storage --help`."""

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import report
from benchmarks.report import Figure
from benchmarks.stage import BenchmarkError
from benchmarks.storage import corpus, measuring
from benchmarks.storage.measuring import Content, Round
from tests.emulators.processes import NoServer

FIGURES = (
    Figure("list_seconds"),
    # Azure gives 5,000 names on a page.
    Figure("requests_for_listing", at_most=3, field="a walk over 200,000 blobs: 40"),
    Figure("images_per_second"),
    Figure("vs_azure_sdk", 4, field="azure-storage-blob, one after another: 1"),
    Figure("client_cpu_vs_azure_sdk", at_most=0.7, field="azure-storage-blob: 1"),
    Figure("recognition_vs_local", 0.97, field="the same images on local disk: 1"),
)
NOTE = "A share of 1 is all of it; processor time is that of the reading process."


@dataclass(frozen=True)
class Size:
    """How much there is.

    Args:
        directories: among `blobs`, to be found.
        images: read by the worker's reader; `sdk_images`: by Azure's library, which takes its time.
        recognised: given to the engine, in each of four turns.
    """

    directories: int
    blobs: int
    images: int
    sdk_images: int
    recognised: int


FULL = Size(4_099, 200_000, 5_000, 500, 750)
QUICK = Size(41, 2_000, 200, 40, 40)


def say(line: str) -> None:
    """Print a line of progress."""
    typer.echo(line)


def main(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Few blobs and images: to see that all works.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the medians count.")] = 1,
    delay: Annotated[float, typer.Option(min=0, help="Seconds that each request waits.")] = 0.05,
    work_dir: Annotated[Path | None, typer.Option(help="Where what is stored is laid out, for a while.")] = None,
) -> None:
    """List and read what lies in Azurite, with the worker's code and with Azure's: a table, and a line of JSON."""
    size = QUICK if quick else FULL
    try:
        with _content(size, work_dir) as content:
            measured = [measuring.measure(content, delay, say) for _ in range(rounds)]
    except (BenchmarkError, NoServer) as error:
        raise SystemExit(f"benchmarks: {error}") from None
    figures = figures_of(measured)
    report.show(figures, FIGURES, NOTE)
    rounded = {name: round(value, 4) for name, value in figures.items()}
    details = [{name: asdict(found) for name, found in round_.items()} for round_ in measured]
    setting = report.setting("obstore", "azure-storage-blob", **asdict(size), delay_seconds=delay, quick=quick)
    typer.echo(json.dumps({**rounded, "rounds": details, "setting": setting}))


@contextmanager
def _content(size: Size, work_dir: Path | None) -> Iterator[Content]:
    if work_dir is not None:
        work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dj-bench-", dir=work_dir) as scratch:
        folder = Path(scratch)
        objects = [(key, b"no image") for key in corpus.keys(size.directories, size.blobs)]
        corpus.lay_out(folder / "many", measuring.CONTAINER, objects, say)
        images = {"images": size.images, "sdk_images": size.sdk_images, "recognised": size.recognised}
        yield measuring.prepare(folder, size.directories, say=say, **images)


def figures_of(rounds: list[Round]) -> dict[str, float]:
    """The figures; ratios are made within each round, and the medians count."""

    def middle(values: Iterator[float]) -> float:
        return statistics.median(values)

    return {
        "list_seconds": middle(r["list"].seconds for r in rounds),
        "requests_for_listing": middle(r["list"].requests for r in rounds),
        "images_per_second": middle(r["worker"].per_second for r in rounds),
        "vs_azure_sdk": middle(r["worker"].per_second / r["sdk"].per_second for r in rounds),
        "client_cpu_vs_azure_sdk": middle(r["worker"].processor_each / r["sdk"].processor_each for r in rounds),
        "recognition_vs_local": middle(r["storage"].per_second / r["local"].per_second for r in rounds),
    }


if __name__ == "__main__":
    report.run(main)
