"""How the time of an image grows with the length of its answer: replicas that say other numbers of tokens.

Such a replica is a copy of the one that was built, whose variables are hard links and in whose graph the loop's limit
is another. `python -m benchmarks.recognition.lengths HOME OTHER SAID WANTED` makes one, in a process of its own, for
TensorFlow is needed to read the graph.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.recognition import prepared
from benchmarks.recognition.contest import Layout, check_length, compete
from benchmarks.recognition.figures import near_ties
from benchmarks.recognition.module import run_module
from benchmarks.recognition.outcome import Outcome
from uworker.prepared.files import Report
from uworker.weights import model_directory

# The shipped model takes many times as long as the prepared one, and ever more of it for longer answers.
SHIPPED_IMAGES, PREPARED_IMAGES = 2, 8
COPY_SECONDS = 300.0
_GRAPH = "saved_model.pb"
# As `tf.range` names them in the function that the replica is.
_RANGE, _LIMIT = "range", "range/limit"

Seconds = Mapping[str, Mapping[int, float]]
"""Of each contestant, by tokens: what an image takes."""


def measure(
    home: Path,
    said: int,
    counts: Sequence[int],
    ways: tuple[Mapping[str, Layout], Sequence[Path]],
    say: Callable[[str], None],
) -> tuple[dict[str, dict[int, Outcome]], dict[int, Report]]:
    """Have contestants recognise a few images for each number of tokens.

    Args:
        home: the replica that was built.
        said: how many tokens its answers have.
        counts: numbers of tokens.
        ways: the contestants, and images; each thread gets `PREPARED_IMAGES` or `SHIPPED_IMAGES` of them.
        say: told lines of progress.

    Returns:
        What each contestant came to, and how the prepared model was compared with the shipped one, both by tokens.
    """
    layouts, images = ways
    found: dict[str, dict[int, Outcome]] = {name: {} for name in layouts}
    proofs: dict[int, Report] = {}
    for tokens in counts:
        # On the same disk, for the hard links.
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".tokens-{tokens}-") as scratch:
            other = Path(scratch)
            _copy(home, other, said, tokens)
            proofs[tokens] = prepared.prepare(other, list(images[: prepared.images_needed(tokens)]), say)
            for name, layout in layouts.items():
                outcome = compete(layout, other, list(images[: _images_of(layout)]))
                check_length(outcome, tokens)
                found[name][tokens] = outcome
                say(f"{tokens} tokens, {name}: {1 / outcome.per_second:.2f} s an image ({outcome.images} images)")
    return found, proofs


def images_for(layouts: Mapping[str, Layout], counts: Sequence[int]) -> int:
    """How many images `measure` needs."""
    return max(prepared.images_needed(min(counts)), *(_images_of(layout) for layout in layouts.values()))


def _images_of(layout: Layout) -> int:
    return (PREPARED_IMAGES if layout.prepared else SHIPPED_IMAGES) * layout.processes * layout.threads


def _copy(home: Path, other: Path, said: int, wanted: int) -> None:
    run_module(
        __spec__.name,
        [home, other, said, wanted],
        ("the replica", "copied"),
        environment=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        seconds=COPY_SECONDS,
    )


def copy(home: Path, other: Path, said: int, wanted: int) -> None:
    """Copy a replica that says `said` tokens to one below `other` that says `wanted`; imports TensorFlow."""
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415 (slow)

    source, target = model_directory(home, "DECIMER"), model_directory(other, "DECIMER")
    shutil.copytree(source, target, copy_function=os.link)
    saved = saved_model_pb2.SavedModel.FromString(source.joinpath(_GRAPH).read_bytes())
    [graph] = saved.meta_graphs
    loops = [
        (nodes[_LIMIT].attr["value"].tensor, nodes[_RANGE])
        for function in graph.graph_def.library.function
        if _LIMIT in (nodes := {node.name: node for node in function.node_def})
        and list(nodes[_LIMIT].attr["value"].tensor.int_val) == [said]
    ]
    if len(loops) != 1:
        raise SystemExit(f"the replica has {len(loops)} loops of {said} tokens, not one")
    [(limit, counted)] = loops
    limit.int_val[:] = [wanted]
    # It says how many there are, and nothing but the loop's limit needs it.
    counted.attr.pop("_output_shapes")
    # Not written into the file that the other replica has, too.
    target.joinpath(_GRAPH).unlink()
    target.joinpath(_GRAPH).write_bytes(saved.SerializeToString())


def seconds_of(found: Mapping[str, Mapping[int, Outcome]]) -> Seconds:
    """What an image takes with all cores at work."""
    return {name: {tokens: 1 / one.per_second for tokens, one in by.items()} for name, by in found.items()}


def processor_seconds_of(found: Mapping[str, Mapping[int, Outcome]]) -> Seconds:
    """What an image takes of one core, which other programs change less."""
    return {name: {tokens: one.cores.seconds / one.images for tokens, one in by.items()} for name, by in found.items()}


def fit(seconds: Mapping[int, float]) -> dict[str, Any]:
    """What a further token costs, in milliseconds an image.

    Returns:
        `ms_per_token` by a straight line through all (least squares), and `off_the_line`, the greatest distance from
        it as a share of the measured time; `ms_per_token_between`, from each number of tokens to the next; and
        `growth`, the last of these divided by the first: 1 where the time grows linearly.
    """
    line = statistics.linear_regression(list(seconds), list(seconds.values()))
    between = [1000 * (seconds[b] - seconds[a]) / (b - a) for a, b in pairwise(sorted(seconds))]
    off = max(abs(line.slope * tokens + line.intercept - value) / value for tokens, value in seconds.items())
    return {
        "ms_per_token": round(1000 * line.slope, 2),
        "off_the_line": round(off, 4),
        "ms_per_token_between": [round(value, 2) for value in between],
        "growth": round(between[-1] / between[0], 3) if between[0] > 0 else None,
    }


def show(title: str, seconds: Seconds) -> None:
    """Print a table: seconds an image by tokens, and what each further token costs."""
    counts = sorted(next(iter(seconds.values())))
    table = Table(title, *(f"{tokens} tokens" for tokens in counts), "ms a further token", "on the line")
    for name, by in seconds.items():
        fitted = fit(by)
        between = " ".join(f"{value:.1f}" for value in fitted["ms_per_token_between"])
        table.add_row(
            name,
            *(f"{by[tokens]:.3f}" for tokens in counts),
            f"{fitted['ms_per_token']:.1f} ({between})",
            f"within {fitted['off_the_line']:.0%}",
        )
    Console(width=150).print(table)


def details_of(proof: Report) -> dict[str, int]:
    """What is told of a proof."""
    kept = ("images", "images_equal", "tokens", "tokens_equal", "tokens_equal_batched")
    return {name: getattr(proof, name) for name in kept} | {"near_ties": near_ties(proof)}


def show_proofs(proofs: Mapping[int, Report]) -> None:
    """Print a table: how many tokens both models chose alike, by the length of the answers."""
    table = Table("tokens of an answer", "compared", "equal, one image at a time", "several at a time", "near ties")
    for tokens, proof in proofs.items():
        told = details_of(proof)
        counts = (told[name] for name in ("tokens", "tokens_equal", "tokens_equal_batched", "near_ties"))
        table.add_row(str(tokens), *map(str, counts))
    Console(width=150).print(table)


def show_loads(found: Mapping[str, Mapping[int, Outcome]]) -> None:
    """Print a table: after how long each contestant was ready, and its most memory."""
    counts = sorted(next(iter(found.values())))
    table = Table("ready after, and memory", *(f"{tokens} tokens" for tokens in counts))
    for name, by in found.items():
        cells = (f"{by[tokens].starting_seconds:.1f} s, {by[tokens].peak_bytes / 1e6:,.0f} MB" for tokens in counts)
        table.add_row(name, *cells)
    Console(width=150).print(table)


def main() -> None:
    """Copy a replica."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=main.__doc__)
    parser.add_argument("home", type=Path, help="the replica's")
    parser.add_argument("other", type=Path, help="the copy's")
    parser.add_argument("said", type=int, help="tokens that the replica says")
    parser.add_argument("wanted", type=int, help="tokens that the copy will say")
    given = parser.parse_args()
    copy(given.home, given.other, given.said, given.wanted)


if __name__ == "__main__":
    main()
