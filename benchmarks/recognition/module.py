"""Runs a module of the benchmark in a process of its own, where TensorFlow gets the environment that it needs."""

import subprocess
import sys
from collections.abc import Mapping, Sequence

from benchmarks.stage import ROOT, BenchmarkError

LAST_WORDS_CHARS = 2000


def run_module(
    name: str,
    arguments: Sequence[object],
    goal: tuple[str, str],
    *,
    environment: Mapping[str, str],
    seconds: float,
    given: str = "",
) -> str:
    """Run `python -m NAME` to its end and return what it printed.

    Args:
        name: of the module.
        arguments: what it is called with.
        goal: what it makes, and what it does to it: ("the replica", "built").
        environment: all of its environment.
        seconds: how long it may take.
        given: its standard input.

    Raises:
        BenchmarkError: it failed, or took too long.
    """
    what, done = goal
    try:
        process = subprocess.run(
            [sys.executable, "-m", name, *map(str, arguments)],
            input=given,
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{what} was not {done} in {seconds:.0f} s") from None
    if process.returncode != 0:
        raise BenchmarkError(f"{what} could not be {done}: {process.stderr.strip()[-LAST_WORDS_CHARS:]}")
    return process.stdout
