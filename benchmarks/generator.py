"""The load generator: a process of its own, light, since it shares the machine with what it loads.

It reads a plan (JSON) from standard input, plays it over kept-alive connections, and writes a report (JSON) to
standard output, or says in one line on standard error why there is none.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import uvloop

from benchmarks.connections import Connection, Download
from benchmarks.load import Load, Plan, Report, Unexpected
from benchmarks.machine import processor_times
from benchmarks.scripts import SCRIPTS

LONGEST_SECONDS = 60.0
"""Of a window in which nothing is done."""


async def play(plan: Plan, file: BinaryIO | None = None) -> Report:
    """Play a plan to its end; `file` takes an export.

    Raises:
        Unexpected: the service gave an answer that the plan does not expect.
    """
    load = Load(running=plan.clients)
    pids = {"generator": os.getpid(), **plan.pids}
    connections: list[Connection] = []
    for _ in range(plan.clients):
        script = SCRIPTS[plan.script](plan, load)
        connections.append(Download(script, load, plan, file) if plan.script == "export" else Connection(script, load))
    if plan.seconds is not None:
        await _connect(plan, connections)
        await load.wait(plan.warm_up)
    with processor_times(pids.items()) as used:
        began = time.perf_counter()
        if plan.seconds is None:
            await _connect(plan, connections)
        await load.wait(plan.seconds)
        # A disk that stands still for longer than a short window takes part in the figure.
        while plan.seconds is not None and not load.has_done(began) and time.perf_counter() - began < LONGEST_SECONDS:
            await load.wait(plan.seconds)
        ended = time.perf_counter()
    # Clients end what they have begun, so that no lease is left half done.
    load.over = True
    await load.wait()
    for connection in connections:
        connection.count_packed()
    return load.report(began, ended, used.seconds)


async def _connect(plan: Plan, connections: Sequence[Connection]) -> None:
    loop = asyncio.get_running_loop()
    for connection in connections:
        await loop.create_connection(lambda made=connection: made, plan.host, plan.port)  # type: ignore[misc]


def main() -> None:
    """Play the plan on standard input."""
    plan = Plan(**json.load(sys.stdin))
    try:
        with Path(plan.save_as or os.devnull).open("wb") as file:
            report = uvloop.run(play(plan, file if plan.save_as else None))
    except (Unexpected, OSError) as error:
        raise SystemExit(f"{plan.script}: {error}") from None
    sys.stdout.write(json.dumps(asdict(report)) + "\n")


if __name__ == "__main__":
    main()
