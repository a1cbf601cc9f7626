"""How much a benchmark does."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run of the benchmarks.

    Args:
        seconds: length of one measured round of a load, after `warm_up` seconds; the median of `rounds` counts.
        added: directories that are added in bulk.
        exported: result rows of the large export; `exported_few` of the small one.
        finished: finished jobs that a claim must not feel; `finished_few` for comparison.
        churned: jobs claimed and completed under an old snapshot.
        status_calls: how often the status document is asked for.
    """

    seconds: float = 5.0
    warm_up: float = 1.0
    rounds: int = 3
    added: int = 1_000_000
    exported: int = 10_000_000
    exported_few: int = 1_000_000
    finished: int = 5_000_000
    finished_few: int = 10_000
    churned: int = 100_000
    status_calls: int = 200

    def queue(self, per_second: int, loads: int = 1) -> int:
        """How many jobs must be queued so that loads of a given rate do not empty the queue."""
        return int(per_second * (self.seconds + self.warm_up + 1) * self.rounds * loads)


QUICK = Sizes(
    seconds=1.0,
    warm_up=0.3,
    rounds=1,
    added=50_000,
    exported=100_000,
    exported_few=10_000,
    finished=100_000,
    finished_few=1_000,
    churned=2_000,
    status_calls=50,
)
