"""What one way of recognising the images came to."""

from dataclasses import dataclass
from typing import Any

from benchmarks.recognition.watch import CoreShares


@dataclass(frozen=True)
class Outcome:
    """One measurement.

    Args:
        images: how many were recognised; `seconds`: from the beginning of the first to the end of the last.
        starting_seconds: from the start of the programs until the first image could begin.
        peak_bytes: the most memory that all its processes had together, from their start to their end.
        cores: how the cores were used in `seconds`.
        characters: how long all answers were together, where that is known; a token of the replica has one.
        at_once: the most images that a thread took at once.
    """

    images: int
    seconds: float
    starting_seconds: float
    peak_bytes: int
    cores: CoreShares
    characters: int | None = None
    at_once: int | None = None

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    def details(self) -> dict[str, Any]:
        """For the report, rounded."""
        return {
            "images_per_second": round(self.per_second, 4),
            "images": self.images,
            "characters": self.characters,
            "at_once": self.at_once,
            "seconds": round(self.seconds, 2),
            "starting_seconds": round(self.starting_seconds, 1),
            "peak_mb": round(self.peak_bytes / 1e6),
            "cores_idle": round(self.cores.idle, 4),
            "cores_used": round(self.cores.watched, 4),
            "cores_others": round(self.cores.others, 4),
            "processor_seconds_per_image": round(self.cores.seconds / self.images, 3),
        }
