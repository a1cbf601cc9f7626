"""Claiming, holding, and the fleet."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    Field,
)

from job_api.schemas.fields import ClaimKey, JobId, LeaseSeq, ShortText, Wire, WorkerId
from job_api.schemas.limits import MAX_LEASES_PER_CLAIM, MAX_LEASES_PER_HEARTBEAT, MAX_WAIT_SECONDS
from job_api.schemas.words import LeaseStatus, WorkerState


class ClaimRequest(Wire):
    """Asks for leases. The same `claim_key` again from the same worker gets the same leases again."""

    worker_id: WorkerId
    claim_key: ClaimKey
    max_jobs: int = Field(default=1, ge=1, le=MAX_LEASES_PER_CLAIM)
    wait_seconds: float = Field(default=0, ge=0, le=MAX_WAIT_SECONDS)
    hostname: ShortText | None = None
    version: ShortText | None = None


class Lease(Wire):
    """The right to work on one job until it expires; fenced by (job_id, lease_seq, worker_id)."""

    job_id: int
    lease_seq: int
    project: str
    directory: str
    source: str
    engine: str
    engine_options: dict[str, Any]
    lease_seconds: float
    results_count: int
    """Rows of earlier attempts that need no work; when not 0, ask images-done for them."""
    results_file: bool = False
    """Whether smiles_output.json is to be written into the directory before the job is completed."""
    image_name_pattern: str | None = None
    """What is looked for in the images' names (`name_patterns`)."""
    image_include: list[str] = []
    image_exclude: list[str] = []
    """Which images are worked on (`ProjectSettings`)."""
    keep_tokens: bool = False
    """Whether rows are to have their tokens."""


class Claimed(Wire):
    """Leases handed out."""

    leases: list[Lease]


class HeldLease(Wire):
    """A lease as its holder names it."""

    job_id: JobId
    lease_seq: LeaseSeq


class MachineLoad(Wire):
    """What a worker's machine is doing; every field optional, so that a worker says what it knows."""

    cpu_percent: float | None = Field(default=None, allow_inf_nan=False)
    memory_percent: float | None = Field(default=None, allow_inf_nan=False)
    processes: int | None = Field(default=None, ge=0, le=2**31 - 1)
    threads: int | None = Field(default=None, ge=0, le=2**31 - 1)
    images_per_second: float | None = Field(default=None, allow_inf_nan=False)


class Heartbeat(Wire):
    """A worker's sign of life, with all leases it holds."""

    leases: Annotated[list[HeldLease], Field(max_length=MAX_LEASES_PER_HEARTBEAT)] = []
    load: MachineLoad | None = None
    hostname: ShortText | None = None
    version: ShortText | None = None


class LeaseVerdict(HeldLease):
    """What became of a named lease."""

    status: LeaseStatus


class HeartbeatAnswer(Wire):
    """The service's word to a worker: what it holds, what else is held in its name, and what to do."""

    state: WorkerState
    leases: list[LeaseVerdict]
    unnamed: list[Lease]
    heartbeat_seconds: float
    reason: str | None = Field(default=None, description="why the worker is quarantined")


class Worker(Wire):
    """A worker as listed."""

    id: str
    hostname: str | None
    version: str | None
    state: WorkerState
    state_since: datetime | None = Field(
        default=None, description="when it was told so; null where nobody told it anything"
    )
    reason: str | None = Field(default=None, description="why it is quarantined, or was until it went")
    active: bool
    leases: int
    load: MachineLoad | None
    first_seen_at: datetime
    last_seen_at: datetime
