"""What is measured of the queue: cycles, claims, bulk adding, and whether any of it slows down with size."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks import rows, seeding
from benchmarks.load import Report
from benchmarks.sizes import Sizes
from benchmarks.stage import Stage

# The large project.
PROJECT = "bench"
CLIENTS = 8
# More than any service here could take in a second, so that no queue runs dry.
CLAIMS_PER_SECOND = 12_000
CYCLES_PER_SECOND = 4_000


@dataclass
class Findings:
    """Figures, and what stands behind them."""

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, reports: list[Report]) -> None:
        """The median rate of several rounds, with all that was seen in them."""
        self.figures[name] = _median(reports)
        self.details[name] = behind(reports)

    def take(self, others: "Findings") -> None:
        """Add what was found elsewhere."""
        self.figures |= others.figures
        self.details |= others.details


def behind(reports: list[Report]) -> dict[str, Any]:
    """The rounds behind a figure: their rates and times, and processor seconds for each second and 1,000 units."""
    seconds = sum(report.seconds for report in reports)
    units = sum(report.units for report in reports)
    names = reports[0].processor_seconds
    used = {name: sum(report.processor_seconds[name] for report in reports) for name in names}
    return {
        "rounds_per_second": [round(report.per_second, 1) for report in reports],
        "milliseconds": [report.milliseconds for report in reports],
        "cores_busy": {name: round(spent / seconds, 2) for name, spent in used.items()},
        "processor_ms_per_unit": {name: round(1000 * spent / max(units, 1), 4) for name, spent in used.items()},
    }


def measure_cycles(stage: Stage, sizes: Sizes) -> Findings:
    """Cycles of claim, results and complete, in three requests and in two, by turns."""
    project = "bench-cycles"
    stage.put_project(project)
    seeding.seed_queued(stage, project, sizes.queue(CYCLES_PER_SECOND, loads=2))
    seeding.settle(stage)
    reports: dict[str, list[Report]] = {"cycles": [], "cycles_two_requests": []}
    for _ in range(sizes.rounds):
        for script, done in reports.items():
            done.append(stage.play(script, project, clients=CLIENTS, seconds=sizes.seconds, warm_up=sizes.warm_up))
    findings = Findings()
    findings.add("cycles_per_second", reports["cycles"])
    findings.add("cycles_per_second_two_requests", reports["cycles_two_requests"])
    return findings


def measure_claims(stage: Stage, sizes: Sizes) -> Findings:
    """Claims, one job after another."""
    project = "bench-claims"
    stage.put_project(project)
    seeding.seed_queued(stage, project, sizes.queue(CLAIMS_PER_SECOND))
    seeding.settle(stage)
    findings = Findings()
    findings.add("claims_per_second", [claims(stage, project, sizes) for _ in range(sizes.rounds)])
    return findings


def measure_bulk_add(stage: Stage, sizes: Sizes) -> Findings:
    """Directories added by one client, 10,000 in a request."""
    project = "bench-bulk"
    stage.put_project(project)
    findings = Findings()
    findings.add("bulk_add_rows_per_second", [stage.play("bulk_add", project, admin=True, size=sizes.added)])
    return findings


def measure_old_snapshot(stage: Stage, sizes: Sizes) -> Findings:
    """Claims with and without a transaction elsewhere that keeps the database from clearing finished entries away."""
    project = "bench-snapshot"
    stage.put_project(project)
    seeding.seed_queued(stage, project, sizes.queue(CLAIMS_PER_SECOND, loads=3) + 2 * sizes.churned)
    seeding.settle(stage)
    without = [claims(stage, project, sizes) for _ in range(sizes.rounds)]
    with stage.old_snapshot():
        churned = stage.play("churn", project, clients=CLIENTS, size=-(-sizes.churned // CLIENTS))
        held = [claims(stage, project, sizes) for _ in range(sizes.rounds)]
    after = [claims(stage, project, sizes) for _ in range(sizes.rounds)]
    findings = Findings({"claim_growth_old_snapshot": _median(without) / _median(held)})
    findings.details["claim_growth_old_snapshot"] = {
        "without": behind(without),
        "held": behind(held),
        "after": behind(after),
        "jobs_claimed_and_completed_meanwhile": churned.units,
        "churn": behind([churned]),
    }
    return findings


def measure_growth(small: Stage, large: Stage, sizes: Sizes) -> Findings:
    """Claims beside few finished jobs and beside many, by turns; `large` has its finished jobs already."""
    small.put_project(PROJECT)
    seeding.seed_finished(small, PROJECT, sizes.finished_few, rows.IMAGES_PER_JOB, say=lambda _: None)
    stages = {"few": small, "many": large}
    for stage in stages.values():
        seeding.seed_queued(stage, PROJECT, sizes.queue(CLAIMS_PER_SECOND))
        seeding.settle(stage)
    reports: dict[str, list[Report]] = {name: [] for name in stages}
    for _ in range(sizes.rounds):
        for name, stage in stages.items():
            reports[name].append(claims(stage, PROJECT, sizes))
    pairs = zip(reports["few"], reports["many"], strict=True)
    findings = Findings({"claim_growth": statistics.median(few.per_second / many.per_second for few, many in pairs)})
    findings.details["claim_growth"] = {name: behind(done) for name, done in reports.items()}
    findings.details["claim_growth"]["finished"] = {"few": sizes.finished_few, "many": sizes.finished}
    return findings


def measure_status(stage: Stage, sizes: Sizes) -> Findings:
    """The status document of a large project."""
    report = stage.play("status", PROJECT, admin=True, size=sizes.status_calls)
    return Findings({"status_ms_at_scale": report.milliseconds["p50"]}, {"status_ms_at_scale": behind([report])})


def _median(reports: list[Report]) -> float:
    return statistics.median(report.per_second for report in reports)


def claims(stage: Stage, project: str, sizes: Sizes) -> Report:
    """One round of claims."""
    return stage.play("claims", project, clients=CLIENTS, seconds=sizes.seconds, warm_up=sizes.warm_up)
