"""The figures of recognition: their names and goals, and how they come from what was measured."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.recognition.outcome import Outcome
from benchmarks.report import Figure
from uworker.prepared.files import Report

PLAIN, THREADS, FLEET, FLEET_ONE_CORE = "plain", "threads", "fleet", "fleet_one_core"
PREPARED, PREPARED_BATCHED = "prepared", "prepared_batched"
WORKER, WORKER_SHIPPED = "worker", "worker_shipped"

_LOOP = "plain predict_SMILES loop: 1"
_FLEET = "a process for each core, TensorFlow's defaults: 1"
_BARE = "the same threads without queue and service: 0"
FIGURES = (
    Figure("images_per_second"),
    Figure("vs_plain_loop", 4.0, field=_LOOP),
    Figure("vs_old_fleet", 3.0, field=_FLEET),
    Figure("worker_overhead", at_most=0.03, field=_BARE),
    Figure("peak_rss_mb"),
    Figure("rss_vs_old_fleet", at_most=0.6),
    Figure("idle_core_share"),
    Figure("prepared_vs_plain_loop", 4.0, field=_LOOP),
    Figure("prepared_batched_vs_plain_loop", 4.5, field=_LOOP),
    Figure("prepared_vs_threads", field="the shipped model, a core for each image: 1"),
    Figure("prepared_rss_mb", at_most=1300),
    Figure("prepared_batched_rss_mb"),
    Figure("load_seconds", at_most=5),
    Figure("load_seconds_shipped"),
    Figure("tokens_equal"),
    Figure("tokens_equal_batched"),
    Figure("near_ties"),
    # Those of the worker with the model as it is shipped, which were the first seven until there was a prepared one.
    Figure("shipped_images_per_second"),
    Figure("shipped_vs_plain_loop", 1.55, field=_LOOP),
    Figure("shipped_vs_old_fleet", 1.15, field=_FLEET),
    Figure("shipped_worker_overhead", at_most=0.03, field=_BARE),
    Figure("shipped_peak_rss_mb"),
    Figure("shipped_rss_vs_old_fleet", at_most=0.6),
    Figure("shipped_idle_core_share"),
)
NOTE = "A share of 1 is all of it. Memory that processes share is counted once."


def figures_of(rounds: Sequence[Mapping[str, Outcome]], proof: Report | None = None) -> dict[str, float]:
    """The figures that can be told of what was measured; ratios are made within each round, and their median counts.

    Args:
        rounds: what each contestant came to.
        proof: how the prepared model was compared with the shipped one.
    """
    figures = _worker(rounds, WORKER, PREPARED_BATCHED) | {
        "prepared_vs_plain_loop": _middle(rounds, PREPARED, PLAIN, "per_second"),
        "prepared_batched_vs_plain_loop": _middle(rounds, PREPARED_BATCHED, PLAIN, "per_second"),
        "prepared_vs_threads": _middle(rounds, PREPARED, THREADS, "per_second"),
        "prepared_rss_mb": _highest_mb(rounds, PREPARED),
        "prepared_batched_rss_mb": _highest_mb(rounds, PREPARED_BATCHED),
        "load_seconds": _starting(rounds, PREPARED),
        "load_seconds_shipped": _starting(rounds, THREADS),
    }
    if proof is not None:
        figures |= {
            "tokens_equal": proof.tokens_equal / proof.tokens,
            "tokens_equal_batched": proof.tokens_equal_batched / proof.tokens,
            "near_ties": near_ties(proof),
        }
    figures |= {f"shipped_{name}": value for name, value in _worker(rounds, WORKER_SHIPPED, THREADS).items()}
    return {name: value for name, value in figures.items() if value is not None}


def with_goals(proof: Report | None) -> tuple[Figure, ...]:
    """`FIGURES`; tokens that differ may be near ties only, as many as there were."""
    if proof is None:
        return FIGURES
    share = 1 - near_ties(proof) / proof.tokens
    goals = {"tokens_equal": share, "tokens_equal_batched": share}
    return tuple(replace(figure, at_least=goals.get(figure.name, figure.at_least)) for figure in FIGURES)


def near_ties(proof: Report) -> int:
    """How many tokens; one may differ alone and in a batch."""
    return len({(found.image, found.position) for found in proof.differences if found.is_near_tie})


def _worker(rounds: Sequence[Mapping[str, Outcome]], name: str, bare: str) -> dict[str, float | None]:
    """What a worker came to; `bare` is its engine without queue and service."""
    there = [found[name] for found in rounds if name in found]
    kept = _middle(rounds, name, bare, "per_second")
    return {
        "images_per_second": statistics.median(found.per_second for found in there) if there else None,
        "vs_plain_loop": _middle(rounds, name, PLAIN, "per_second"),
        "vs_old_fleet": _middle(rounds, name, FLEET, "per_second"),
        "worker_overhead": None if kept is None else 1 - kept,
        "peak_rss_mb": _highest_mb(rounds, name),
        "rss_vs_old_fleet": _middle(rounds, name, FLEET, "peak_bytes"),
        "idle_core_share": statistics.median(found.cores.idle for found in there) if there else None,
    }


def _middle(rounds: Sequence[Mapping[str, Outcome]], part: str, whole: str, kind: str) -> float | None:
    pairs = [(found[part], found[whole]) for found in rounds if part in found and whole in found]
    ratios = [getattr(a, kind) / getattr(b, kind) for a, b in pairs]
    return statistics.median(ratios) if ratios else None


def _highest_mb(rounds: Sequence[Mapping[str, Outcome]], name: str) -> float | None:
    return max((found[name].peak_bytes / 1e6 for found in rounds if name in found), default=None)


def _starting(rounds: Sequence[Mapping[str, Outcome]], name: str) -> float | None:
    there = [found[name].starting_seconds for found in rounds if name in found]
    return statistics.median(there) if there else None
