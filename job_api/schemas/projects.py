"""Projects: settings, status, what is slow or fails."""

import json
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
)

from job_api.schemas.fields import Name, Request, Wire, no_nul
from job_api.schemas.limits import (
    MAX_ENGINE_OPTIONS_BYTES,
    MAX_ENGINE_OPTIONS_DEPTH,
    MAX_GLOB_PATTERNS,
    MAX_NAME_PATTERN_CHARS,
)
from job_api.schemas.words import JobState


def _plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options that can be stored, sent to every worker and read by people; anything else would harm them all."""
    try:
        text = json.dumps(options, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError:
        raise ValueError("holds NaN, Infinity or a lone surrogate") from None
    if size > MAX_ENGINE_OPTIONS_BYTES:
        raise ValueError(f"is {size} bytes long; at most {MAX_ENGINE_OPTIONS_BYTES} are allowed")
    if "\\u0000" in text:
        raise ValueError("holds a NUL character")
    if _depth(options) > MAX_ENGINE_OPTIONS_DEPTH:
        raise ValueError(f"is nested more than {MAX_ENGINE_OPTIONS_DEPTH} deep")
    return options


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, children), default=0)


EngineOptions = Annotated[dict[str, Any], AfterValidator(_plain_options)]
GlobPattern = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_PATTERN_CHARS), AfterValidator(no_nul)]
GlobPatterns = Annotated[list[GlobPattern], Field(max_length=MAX_GLOB_PATTERNS)]
# Whether it is a pattern at all is judged by the service (`name_patterns`).
ImageNamePattern = Annotated[str, StringConstraints(max_length=MAX_NAME_PATTERN_CHARS), AfterValidator(no_nul)]


class ProjectSettings(Request):
    """What a project is made of. In a PUT to an existing project only the fields that are given change."""

    source: Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(no_nul)] | None = None
    engine: Name | None = None
    engine_options: EngineOptions | None = None
    priority: int | None = Field(default=None, ge=-1000, le=1000)
    max_failures: int | None = Field(default=None, ge=1, le=100)
    results_file: bool | None = Field(
        default=None, description="write smiles_output.json into each directory before its job is completed"
    )
    image_name_pattern: ImageNamePattern | None = Field(
        default=None,
        description="RE2 pattern with the groups `sequence`, `sub_sequence`, `part`, looked for in each image's file "
        "name: columns of the results, also in smiles_output.json; an empty text removes it",
    )
    image_include: GlobPatterns | None = Field(
        default=None,
        description="shell patterns: only images that match one are worked on; an empty list means all. One with a "
        "slash is for the path below the directory, one without for the file name alone, such as `*_left.png`",
    )
    image_exclude: GlobPatterns | None = Field(
        default=None, description="shell patterns as in `image_include`: images that match one are passed over"
    )
    keep_tokens: bool | None = Field(
        default=None, description="store each answer's tokens with their probabilities, about 2 kB an image"
    )
    price_per_worker_hour: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        allow_inf_nan=False,
        description="what a worker's machine costs an hour, in whatever currency; the status then says what was spent; "
        "0 removes it",
    )


class JobCounts(Wire):
    """Jobs of a project by state."""

    queued: int = 0
    waiting: int = 0
    claimed: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def unfinished(self) -> int:
        """Jobs that are still to be worked on or are being worked on."""
        return self.queued + self.waiting + self.claimed


class ImageCounts(Wire):
    """Stored result rows of a project."""

    stored: int = 0
    recognised: int = 0
    not_recognised: int = 0


class Project(Wire):
    """A project's settings."""

    name: str
    source: str
    engine: str
    engine_options: dict[str, Any]
    priority: int
    max_failures: int
    results_file: bool = False
    image_name_pattern: str | None = None
    image_include: list[str] = []
    image_exclude: list[str] = []
    keep_tokens: bool = False
    price_per_worker_hour: float | None = None
    paused: bool
    created_at: datetime


class ProjectCost(Wire):
    """What a project's workers cost, in the currency of its `price_per_worker_hour`."""

    spent: float
    per_1000_images: float | None = Field(description="of the rows stored so far; null while there are none")
    expected_total: float | None = Field(description="what was spent and what is to come; null while there is no ETA")


class ProjectStatus(Project):
    """The status document of a project. Fields with a default are absent in answers of older services."""

    jobs: JobCounts
    images: ImageCounts
    images_per_second: float | None = Field(
        description="rows stored in the last `rate_window_seconds`, at most 300; those that a rerun replaces too"
    )
    rate_window_seconds: float | None
    images_per_second_overall: float | None = Field(
        default=None, description="rows stored in `busy_seconds`; null before a worker's time was counted"
    )
    worker_seconds: float = Field(
        default=0, description="time for which workers held leases of this project, summed over the workers"
    )
    busy_seconds: float = Field(default=0, description="time for which at least one did")
    eta_seconds: float | None
    eta_assumes: str | None = Field(description="what the ETA rests on, or why there is none")
    cost: ProjectCost | None = Field(default=None, description="null where no `price_per_worker_hour` is set")
    cost_assumes: str | None = None
    active_workers: int
    links: dict[str, str]


class DirectoryReport(Wire):
    """A directory that takes long or fails: its job, and the newest attempt at it."""

    job_id: int
    directory: str
    state: JobState
    worker_id: str | None = Field(description="who made the newest attempt")
    seconds: float | None = Field(description="how long the newest attempt took, or has taken by now")
    new_results: int | None = Field(description="images that the newest attempt stored")
    image_count: int | None
    failures: int
    reason: str | None
    message: str | None
