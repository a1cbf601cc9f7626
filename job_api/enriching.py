"""Computes the chemistry of stored rows again, in processes of this machine, and sends back what differs.

RDKit is imported by those processes alone. Rows go by `seq` up to the one that was the last at the beginning, so that
none is read a second time because it was changed here.
"""

import json
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from typing import Any

from job_api.client import Client, ClientError
from job_api.name_patterns import NameParts, NamePattern
from job_api.schemas import MAX_RESULTS_PER_POST, ExportFormat, RowChemistry
from job_api.text import MAX_SMILES_CHARS

NAMED_BY = ("seq", "job_id", "image", "engine")
COMPUTED = ("is_valid", "canonical_smiles", "normalized_smiles", "inchikey", "formula", "molecular_weight", "fragments")
COLUMNS = (*NAMED_BY, "smiles", "truncated", *COMPUTED, "flags", "sequence", "sub_sequence", "part")
"""Of the export; `seq` comes first, for a download is taken up again by it."""


@dataclass
class Counts:
    """How far it is.

    Attributes:
        rows: looked at.
        changed: that were another than before.
        replaced: that were replaced meanwhile, or are gone, and were left alone.
        failed: on whose SMILES RDKit failed; their chemistry is left alone.
    """

    rows: int = 0
    changed: int = 0
    replaced: int = 0
    failed: int = 0


@dataclass
class Batch:
    """What came of some rows."""

    rows: int
    changed: list[RowChemistry] = field(default_factory=list)
    failed: int = 0


def enrich(client: Client, project: str, progress: Callable[[Counts], None]) -> Counts:
    """Compute the chemistry and the name parts of all rows of a project again; `progress` is told after each batch.

    What was sent stays sent when this is broken off, and is found unchanged the next time.

    Raises:
        ClientError: the service refused or was not there, a process died, or this machine's RE2 is another one than the
            service's.
    """
    pattern = client.project(project).image_name_pattern
    try:
        if pattern:
            NamePattern(pattern)
    except ValueError as error:
        raise ClientError(
            f"the project's image_name_pattern {error}: the service has another RE2 than this machine"
        ) from None
    counts = Counts()
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_leave_interrupts)
    under_way = deque[Future[Batch]]()
    try:
        stored = _records(client, project)
        while records := list(islice(stored, MAX_RESULTS_PER_POST)):
            under_way.append(pool.submit(compute, records, pattern))
            if len(under_way) > 2 * processes:
                _send(client, project, under_way.popleft().result(), counts)
                progress(counts)
        while under_way:
            _send(client, project, under_way.popleft().result(), counts)
            progress(counts)
    except BrokenProcessPool:
        raise ClientError("a process that computed died, perhaps out of memory; what was sent stays") from None
    finally:
        pool.shutdown(cancel_futures=True)
    return counts


def _records(client: Client, project: str) -> Iterator[bytes]:
    """The rows that are stored at the beginning."""
    last = client.last_seq(project)
    for seq, record in client.export_records(project, ExportFormat.JSONL, columns=",".join(COLUMNS)):
        if seq is None or seq > last:
            return
        yield record


def _send(client: Client, project: str, batch: Batch, counts: Counts) -> None:
    counts.rows += batch.rows
    counts.failed += batch.failed
    if batch.changed:
        answer = client.put_chemistry(project, batch.changed)
        counts.changed += answer.changed
        counts.replaced += answer.replaced


def _leave_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the one that waits for the others ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def compute(records: list[bytes], pattern: str | None) -> Batch:
    """Which of some rows, as lines of JSON, are another now."""
    parts_of = NamePattern(pattern).find if pattern else lambda _: NameParts()
    batch = Batch(len(records))
    for record in records:
        row = json.loads(record)
        now = {name: row.get(name) for name in COMPUTED} | asdict(parts_of(row["image"]))
        now["flags"] = sorted(row["flags"])
        if not _is_cut(row["smiles"]):
            try:
                now |= _chemistry_of(row["smiles"], row["truncated"])
            except Exception:  # noqa: BLE001 - RDKit may raise anything; it costs this row's chemistry only
                batch.failed += 1
        if not all(_same(row.get(name), value) for name, value in now.items()):
            batch.changed.append(RowChemistry(**{name: row[name] for name in NAMED_BY}, **now))
    return batch


def _is_cut(smiles: str | None) -> bool:
    """Whether the end of an answer is not stored, and what was said of it was said of the whole."""
    return smiles is not None and len(smiles) == MAX_SMILES_CHARS and smiles.endswith("…")


def _chemistry_of(smiles: str | None, truncated: bool | None) -> dict[str, Any]:
    """What is said of an answer; nothing where there is none."""
    if smiles is None:
        return dict.fromkeys(COMPUTED) | {"flags": []}
    from job_api.chemistry import check_smiles  # noqa: PLC0415 - RDKit

    checked = check_smiles(smiles)
    flags = {*checked.flags, "truncated"} if truncated else checked.flags
    return {name: getattr(checked, name) for name in COMPUTED} | {"flags": sorted(flags)}


def _same(stored: Any, now: Any) -> bool:
    if isinstance(stored, float) and isinstance(now, float):
        return math.isclose(stored, now, rel_tol=1e-9)
    return bool((sorted(stored) if isinstance(stored, list) else stored) == now)
