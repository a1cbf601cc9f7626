"""What is measured of the export: its rate beside the database's own COPY, at two sizes, and the service's memory."""

import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import contents, seeding
from benchmarks.load import Report
from benchmarks.machine import MemoryWatch, memory_bytes
from benchmarks.measurements import PROJECT, Findings
from benchmarks.sizes import Sizes
from benchmarks.stage import BenchmarkError, Stage
from job_api.formats import MADE_WITH
from job_api.schemas import DEFAULT_COLUMNS

SMALL_PROJECT = "bench-small"
# No further round of exports is begun after this.
LONG_SECONDS = 120.0

# Columns of the export that are not the results table's own.
_JOINED = {
    "project": "p.name",
    "directory": "j.directory",
    "image_sha256": "encode(r.image_sha256, 'hex')",
    "inchikey_first_block": "left(r.inchikey, 14)",
    "review_note": "w.note",
    **{name: f"w.{name}" for name in ("review_status", "corrected_smiles", "reviewed_by", "reviewed_at")},
    **{name: f"v.{name}" for name in (*MADE_WITH[1:], "worker_id")},
}
# What the export looks up or compares for each row; a person would leave it out.
COMPUTED = ("duplicate_image", "agreement", "review_outdated")
# The export as a person at the database's own prompt would ask for it.
COLUMNS = ", ".join(f"{_JOINED.get(name, f'r.{name}')} AS {name}" for name in DEFAULT_COLUMNS if name not in COMPUTED)
ROWS = f"""SELECT {COLUMNS} FROM results r JOIN jobs j ON j.id = r.job_id JOIN projects p ON p.id = r.project_id
JOIN provenances v ON v.id = r.provenance_id
LEFT JOIN reviews w ON (w.job_id, w.image, w.engine) = (r.job_id, r.image, r.engine)"""


@dataclass
class Copied:
    """One export by psql's copy command."""

    rows: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Its rate."""
        return self.rows / self.seconds


def copy(stage: Stage, project: str, *, keep: bool) -> Copied:
    """Export a project with psql's copy command, as CSV.

    Raises:
        BenchmarkError: psql fails.
    """
    file = stage.directory / "copied.csv" if keep else Path(os.devnull)
    # psql takes its commands on one line.
    rows = " ".join(ROWS.split())
    statement = f"\\copy ({rows} WHERE p.name = '{project}' ORDER BY r.seq) TO '{file}' WITH (FORMAT csv, HEADER)"
    command, environment = stage.psql("-c", statement)
    command.remove("-q")
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise BenchmarkError(f"\\copy failed: {done.stderr.strip()}")
    if keep:
        file.unlink()
    return Copied(int(done.stdout.split()[-1]), seconds)


def export(
    stage: Stage, project: str, *, keep: bool, export_format: str = "csv", columns: str = "", gzip: bool = False
) -> Report:
    """Export a project over HTTP; the report's `per_second` are rows. A file that is no text is kept meanwhile anyway.

    Raises:
        BenchmarkError: rows are missing.
    """
    count = contents.COUNTS.get(export_format)
    file = stage.directory / "exported" if keep or count else None
    wanted = stage.status(project).images.stored
    report = stage.play(
        "export",
        project,
        admin=True,
        export_format=export_format,
        columns=columns,
        gzip=gzip,
        save_as=str(file) if file else None,
    )
    rows = count(file) if count and file else report.lines - (export_format == "csv")
    if file:
        file.unlink()
    if rows != wanted:
        raise BenchmarkError(f"the export of {project} has {rows} rows, and the project has {wanted}")
    report.units, report.per_second = rows, rows / report.seconds
    return report


def measure_exports(stage: Stage, sizes: Sizes, say: seeding.Say, *, keep: bool) -> Findings:
    """The export of a large project and of a small one beside it, and psql's copy of both, by turns."""
    small_rounds = [_round(stage, SMALL_PROJECT, say, keep=keep) for _ in range(sizes.rounds)]
    idle_bytes = memory_bytes(stage.service_pid)
    began = time.monotonic()
    with MemoryWatch(stage.service_pid) as memory:
        rounds = [_round(stage, PROJECT, say, keep=keep)]
        while len(rounds) < sizes.rounds and time.monotonic() - began < LONG_SECONDS:
            rounds.append(_round(stage, PROJECT, say, keep=keep))
    jsonl = export(stage, SMALL_PROJECT, keep=keep, export_format="jsonl")
    gzip = export(stage, SMALL_PROJECT, keep=keep, gzip=True)
    findings = Findings()
    findings.add("export_rows_per_second", [exported for exported, _ in rounds])
    findings.add("export_small_rows_per_second", [exported for exported, _ in small_rounds])
    findings.add("export_jsonl_rows_per_second", [jsonl])
    findings.add("export_gzip_rows_per_second", [gzip])
    figures = findings.figures
    figures["copy_rows_per_second"] = statistics.median(copied.per_second for _, copied in rounds)
    figures["export_vs_copy"] = figures["export_rows_per_second"] / figures["copy_rows_per_second"]
    figures["export_1m_vs_10m"] = figures["export_small_rows_per_second"] / figures["export_rows_per_second"]
    figures["api_rss_mb"] = memory.highest_bytes / 2**20
    findings.details["export"] = {
        "rows": rounds[0][0].units,
        "rows_small": jsonl.units,
        "bytes_csv": rounds[0][0].received_bytes,
        "bytes_small": {"jsonl": jsonl.received_bytes, "gzip": gzip.received_bytes},
        "copy_rounds_per_second": [round(copied.per_second) for _, copied in rounds],
        "copy_small_rounds_per_second": [round(copied.per_second) for _, copied in small_rounds],
        "api_rss_mb_before": round(idle_bytes / 2**20, 1),
        "into_files": keep,
    }
    return findings


def _round(stage: Stage, project: str, say: seeding.Say, *, keep: bool) -> tuple[Report, Copied]:
    copied = copy(stage, project, keep=keep)
    exported = export(stage, project, keep=keep)
    say(f"  {exported.units:,} rows: export {exported.per_second:,.0f}/s, \\copy {copied.per_second:,.0f}/s")
    return exported, copied
