"""Wire models and enums of the v4 API: pydantic only, imported by the service, the client and the worker alike.

Times are aware UTC datetimes of the database's clock; durations are in the unit their name ends in.
"""

import json
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WrapValidator,
    model_validator,
)

from job_api.text import (
    MAX_MESSAGE_CHARS,
    MAX_PATH_BYTES,
    MAX_SMILES_CHARS,
    MAX_TRACEBACK_CHARS,
    check_directory,
    check_relative_path,
    clean_text,
)

MAX_JOBS_PER_ADD = 10_000
MAX_IDS_PER_FILTER = 10_000
MAX_EXAMPLES = 10
MAX_RESULTS_PER_POST = 1_000
MAX_LOG_LINES_PER_POST = 1_000
MAX_LEASES_PER_CLAIM = 100
MAX_LEASES_PER_HEARTBEAT = 1_000
MAX_WAIT_SECONDS = 50
MAX_ENGINE_OPTIONS_BYTES = 16_384
MAX_ENGINE_OPTIONS_DEPTH = 10
MAX_NAME_PATTERN_CHARS = 500
MAX_PAGE_SIZE = 1_000

SESSION_TOKEN_NAME = "session"  # noqa: S105 - what a token that stands for a login is called
PENDING_JOBS_HEADER = "Pending-Jobs"
NEXT_SINCE_HEADER = "Next-Since"
RESERVED_PROJECT_NAMES = frozenset({"claim", "logs", "projects", "token", "tokens", "users", "workers"})
MAX_INT8 = 2**63 - 1

T = TypeVar("T")


class JobState(StrEnum):
    """Where a job stands; `queue.py` and `steering.py` alone move it."""

    QUEUED = "queued"
    WAITING = "waiting"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobAction(StrEnum):
    """What people may do to jobs."""

    CANCEL = "cancel"
    RETRY = "retry"
    RERUN = "rerun"
    FORCE_RELEASE = "force-release"
    DELETE = "delete"


class Outcome(StrEnum):
    """How an attempt ended; an open attempt has none."""

    COMPLETED = "completed"
    FAILED = "failed"
    RELEASED = "released"
    FORCE_RELEASED = "force-released"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class ResultStatus(StrEnum):
    """What became of one image."""

    RECOGNISED = "recognised"
    BLANK = "blank"
    UNREADABLE = "unreadable"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    MISSING = "missing"
    ENGINE_ERROR = "engine_error"
    TIMEOUT = "timeout"
    CRASHED = "crashed"


class Role(StrEnum):
    """What a user or token may do: admin includes submit, submit includes read; worker stands apart."""

    ADMIN = "admin"
    SUBMIT = "submit"
    READ = "read"
    WORKER = "worker"


class WorkerState(StrEnum):
    """What a worker is told to do; `gone` is a worker that has said goodbye."""

    RUN = "run"
    DRAIN = "drain"
    QUARANTINED = "quarantined"
    GONE = "gone"


class LeaseStatus(StrEnum):
    """What a heartbeat says of one lease."""

    HELD = "held"
    LOST = "lost"
    CANCELLED = "cancelled"


class LogLevel(StrEnum):
    """Severity of a log line."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class ExportFormat(StrEnum):
    """Formats of the results export."""

    CSV = "csv"
    JSONL = "jsonl"


class ProblemType(StrEnum):
    """The stable `type` of every error document, after the prefix `urn:decimer-jobs:`."""

    INVALID_REQUEST = "invalid-request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    LEASE_LOST = "lease-lost"
    RESULTS_MISSING = "results-missing"
    WRONG_STATE = "wrong-state"
    NAME_TAKEN = "name-taken"
    PROJECT_BUSY = "project-busy"
    WORKER_ID_TAKEN = "worker-id-taken"
    WORKER_GONE = "worker-gone"
    WORKER_STOPPED = "worker-stopped"
    TOO_LARGE = "too-large"
    TOO_MANY_REQUESTS = "too-many-requests"
    DATABASE_UNAVAILABLE = "database-unavailable"
    NO_DISK_SPACE = "no-disk-space"
    INTERNAL = "internal"


PROBLEM_TYPE_PREFIX = "urn:decimer-jobs:"


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


def _not_reserved(name: str) -> str:
    if name in RESERVED_PROJECT_NAMES:
        raise ValueError(f"is reserved; choose another name than {', '.join(sorted(RESERVED_PROJECT_NAMES))}")
    return name


def text_type(max_chars: int) -> Any:
    """A string of at most `max_chars` characters that PostgreSQL can store."""
    return Annotated[str, StringConstraints(max_length=max_chars), AfterValidator(_no_nul)]


NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"
ProjectName = Annotated[str, StringConstraints(pattern=NAME_PATTERN), AfterValidator(_not_reserved)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
WorkerId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
ClaimKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
JobId = Annotated[int, Field(ge=1, le=MAX_INT8)]
LeaseSeq = Annotated[int, Field(ge=1, le=MAX_INT8)]
ShortText = Annotated[str, StringConstraints(max_length=200), AfterValidator(_no_nul)]
Message = Annotated[str, StringConstraints(max_length=MAX_MESSAGE_CHARS), AfterValidator(_no_nul)]
Smiles = Annotated[str, StringConstraints(max_length=MAX_SMILES_CHARS), AfterValidator(_no_nul)]
Directory = Annotated[str, StringConstraints(max_length=MAX_PATH_BYTES + 8), AfterValidator(check_directory)]
ImagePath = Annotated[str, AfterValidator(check_relative_path)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Reason = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]


class Wire(BaseModel):
    """Base of all wire models. Unknown fields are ignored, so that old and new versions understand each other."""

    model_config = ConfigDict(extra="ignore")


class Request(BaseModel):
    """Base of what people send: an unknown field is a mistake and is refused by name."""

    model_config = ConfigDict(extra="forbid")


# --- the service -----------------------------------------------------------------------------------------------


class Limits(Wire):
    """What one request may hold."""

    max_jobs_per_add: int = MAX_JOBS_PER_ADD
    max_results_per_post: int = MAX_RESULTS_PER_POST
    max_log_lines_per_post: int = MAX_LOG_LINES_PER_POST
    max_wait_seconds: int = MAX_WAIT_SECONDS
    max_body_bytes: int


class ServerInfo(Wire):
    """The service's version and the pace it dictates."""

    version: str
    lease_seconds: float
    heartbeat_seconds: float
    limits: Limits


class Problem(Wire):
    """An RFC 9457 error document."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, Any]] | None = None


# --- people and tokens -----------------------------------------------------------------------------------------


class NewToken(Request):
    """Asks for a token; nothing given: the caller's own role, for a day."""

    name: ShortText = SESSION_TOKEN_NAME
    role: Role | None = None
    project: ProjectName | None = None
    expires_in_seconds: float | None = Field(default=None, gt=0, le=10 * 365 * 86400)


class Token(Wire):
    """A token as listed: never its secret."""

    id: int
    name: str
    role: Role
    project: str | None
    username: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class IssuedToken(Token):
    """A token just made; the only time its secret is shown."""

    token: str


class NewUser(Request):
    """A user to create, or a new password or role for an existing one."""

    password: Annotated[str, StringConstraints(min_length=12, max_length=200)]
    role: Role
    project: ProjectName | None = None


class User(Wire):
    """A user as listed."""

    name: str
    role: Role
    project: str | None
    created_at: datetime


# --- projects --------------------------------------------------------------------------------------------------


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
# Whether it is a pattern at all is judged by the service (`name_patterns`).
ImageNamePattern = Annotated[str, StringConstraints(max_length=MAX_NAME_PATTERN_CHARS), AfterValidator(_no_nul)]


class ProjectSettings(Request):
    """What a project is made of. In a PUT to an existing project only the fields that are given change."""

    source: Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(_no_nul)] | None = None
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
        "name for smiles_output.json; an empty text removes it",
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
    paused: bool
    created_at: datetime


class ProjectStatus(Project):
    """The status document of a project."""

    jobs: JobCounts
    images: ImageCounts
    images_per_second: float | None
    rate_window_seconds: float | None
    eta_seconds: float | None
    eta_assumes: str | None
    active_workers: int
    links: dict[str, str]


# --- jobs ------------------------------------------------------------------------------------------------------


class NewJobs(Request):
    """Directories to add, relative to the project's source."""

    directories: Annotated[list[Directory], Field(min_length=1, max_length=MAX_JOBS_PER_ADD)]
    priority: int = Field(default=0, ge=-1000, le=1000)


class JobsAdded(Wire):
    """How many directories of a request were new, and how many the project already had."""

    added: int
    present: int


class Job(Wire):
    """A job as listed."""

    id: int
    project: str
    directory: str
    state: JobState
    run: int
    lease_seq: int
    worker_id: str | None
    lease_expires_at: datetime | None
    due_at: datetime | None
    failures: int
    releases: int
    image_count: int | None
    reason: str | None
    message: str | None
    added_at: datetime
    finished_at: datetime | None


class Attempt(Wire):
    """One lease of a job, from claim to its end."""

    lease_seq: int
    worker_id: str
    claimed_at: datetime
    ended_at: datetime | None
    outcome: Outcome | None
    charged: bool
    new_results: int
    reason: str | None
    message: str | None


class JobDetail(Job):
    """One job with its attempts, newest first, and its result rows counted by status."""

    attempts: list[Attempt]
    results_by_status: dict[ResultStatus, int]


class Rerun(Request):
    """Which images of a finished job to do again: all, or those whose result has one of these statuses."""

    statuses: list[ResultStatus] | None = Field(default=None, min_length=1)


class JobFilter(Request):
    """Which jobs of a project are meant: those for which all that is given holds. No filter at all must be said."""

    all: bool = Field(default=False, description="every job of the project; needed where nothing else is given")
    states: list[JobState] | None = Field(default=None, min_length=1)
    worker_id: WorkerId | None = Field(default=None, description="jobs that this worker holds now")
    text: Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_no_nul)] | None = Field(
        default=None, description="part of the directory's name"
    )
    reason: Reason | None = Field(default=None, description="why the job is in its state, such as storage")
    ids: list[JobId] | None = Field(default=None, min_length=1, max_length=MAX_IDS_PER_FILTER)

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        narrowed = any(given is not None for given in (self.states, self.worker_id, self.text, self.reason, self.ids))
        if not narrowed and not self.all:
            raise ValueError('names no jobs; say "all": true if every job of the project is meant')
        if narrowed and self.all:
            raise ValueError("asks for all jobs and for some of them")
        return self


class JobsAction(Request):
    """Something to do to all jobs of a project that a filter names."""

    action: JobAction
    filter: JobFilter
    statuses: list[ResultStatus] | None = Field(
        default=None, min_length=1, description="rerun only: do the images again whose result has one of these"
    )
    dry_run: bool = Field(default=False, description="count, show some of the jobs, and change nothing")
    after: int = Field(default=0, ge=0, le=MAX_INT8, description="go on after this job: `next` of the answer before")
    as_of: AwareDatetime | None = Field(
        default=None, description="`as_of` of the first answer: jobs that came into their state since are left alone"
    )

    @model_validator(mode="after")
    def _statuses_are_of_a_rerun(self) -> Self:
        if self.statuses is not None and self.action is not JobAction.RERUN:
            raise ValueError(f"statuses go with rerun, not with {self.action}")
        return self


class JobExample(Wire):
    """One of the jobs that an action would change."""

    id: int
    directory: str
    state: JobState


class JobsActed(Wire):
    """How far an action on many jobs came."""

    matched: int = Field(default=0, description="jobs that the filter names")
    changed: int = Field(default=0, description="those that were changed, or would be")
    unchanged: int = Field(default=0, description="those that were as wanted already")
    skipped: int = Field(default=0, description="those whose state does not allow it, or is newer than `as_of`")
    next: int | None = Field(default=None, description="ask again with this as `after`; null when all is done")
    as_of: datetime
    examples: list[JobExample] = Field(default=[], max_length=MAX_EXAMPLES, description="of a dry run")

    def __add__(self, later: Self) -> Self:
        """This part and the one after it, as one."""
        counts = {name: getattr(self, name) + getattr(later, name) for name in _COUNTS}
        examples = (self.examples + later.examples)[:MAX_EXAMPLES]
        return self.model_copy(update={**counts, "next": later.next, "examples": examples})


_COUNTS = ("matched", "changed", "unchanged", "skipped")


# --- claiming and holding --------------------------------------------------------------------------------------


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
    """What is looked for in the images' names for that file (`name_patterns`)."""


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


# --- results ---------------------------------------------------------------------------------------------------


class NewResult(Wire):
    """What became of one image, as the worker reports it."""

    image: ImagePath
    engine: Name = "decimer"
    status: ResultStatus
    image_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    width: int | None = Field(default=None, ge=0, le=2**31 - 1)
    height: int | None = Field(default=None, ge=0, le=2**31 - 1)
    frames: int | None = Field(default=None, ge=0, le=2**31 - 1)
    smiles: Smiles | None = None
    confidence: Probability | None = None
    confidence_mean: Probability | None = None
    confidence_min: Probability | None = None
    n_tokens: int | None = Field(default=None, ge=0, le=2**31 - 1)
    truncated: bool | None = None
    is_valid: bool | None = None
    canonical_smiles: Smiles | None = None
    inchikey: Annotated[str, StringConstraints(max_length=27), AfterValidator(_no_nul)] | None = None
    formula: ShortText | None = None
    flags: Annotated[list[Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]], Field(max_length=20)] = []
    error_message: Message | None = None
    duration_ms: int | None = Field(default=None, ge=0, le=2**31 - 1)


class RefusedRow(Wire):
    """A row of a batch that was not stored, and why."""

    index: int
    image: str | None
    reason: str


class InvalidRow(BaseModel):
    """A row that is no valid result; stands in a batch so that its neighbours are still stored."""

    image: str | None
    reason: str


def _judge_rows(rows: Any, validate: Callable[[Any], list[NewResult]]) -> list[NewResult | InvalidRow]:
    """All rows at once, which is quick, and one by one only where that fails."""
    try:
        return [*validate(rows)]
    except ValidationError:
        if not isinstance(rows, list) or len(rows) > MAX_RESULTS_PER_POST:
            raise
        return [_judge_row(row) for row in rows]


def _judge_row(row: Any) -> NewResult | InvalidRow:
    try:
        return NewResult.model_validate(row)
    except ValidationError as error:
        image = row.get("image") if isinstance(row, dict) else None
        reasons = [".".join(str(part) for part in e["loc"]) + ": " + e["msg"] for e in error.errors(include_url=False)]
        # Cleaned, because it is said back and may be what is wrong with the row.
        named = clean_text(image, MAX_PATH_BYTES) if isinstance(image, str) else None
        return InvalidRow(image=named, reason=clean_text("; ".join(reasons), 1000))


ResultRows = Annotated[list[NewResult], Field(max_length=MAX_RESULTS_PER_POST), WrapValidator(_judge_rows)]
"""Result rows, with an `InvalidRow` where a row was none: one bad row must not cost its batch."""


class EngineRun(Wire):
    """With what the rows of a batch were made; the same for all of them."""

    engine: Name = "decimer"
    engine_version: ShortText | None = None
    weights: ShortText | None = None
    weights_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    snapshot: ShortText | None = None


class Held(Wire):
    """Base of every write by the holder of a lease."""

    worker_id: WorkerId
    lease_seq: LeaseSeq


class NewResults(Held):
    """A batch of results; judged row by row."""

    run: EngineRun = EngineRun()
    rows: ResultRows


class ResultsStored(Wire):
    """What became of a batch: rows new or replaced, rows that were there already, rows refused."""

    stored: int
    unchanged: int
    refused: list[RefusedRow]


class Complete(Held):
    """Says that all images of a job are stored; the last results may ride along."""

    image_count: int = Field(ge=1, le=2**31 - 1)
    run: EngineRun = EngineRun()
    rows: ResultRows = []


class Fail(Held):
    """Says that the job cannot be done now (retryable) or at all."""

    reason: Reason
    retryable: bool
    message: Message = ""


class Release(Held):
    """Gives a job back uncharged."""

    reason: Reason = "released"
    message: Message = ""


class LeaseEnded(Wire):
    """The job's state after complete, fail or release."""

    job_id: int
    state: JobState
    outcome: Outcome
    refused: list[RefusedRow] = []


class DoneResult(Wire):
    """A stored row of a leased job that counts for it, with what smiles_output.json says of an image."""

    image: str
    status: ResultStatus
    smiles: str | None
    confidence_mean: float | None
    confidence_min: float | None
    error_message: str | None
    processed_at: datetime


class Result(Wire):
    """A stored row, as read back and exported; the fields' order is the order of the CSV's columns."""

    seq: int
    project: str
    directory: str
    image: str
    status: ResultStatus
    smiles: str | None
    confidence: float | None
    confidence_mean: float | None
    confidence_min: float | None
    n_tokens: int | None
    truncated: bool | None
    is_valid: bool | None
    canonical_smiles: str | None
    inchikey: str | None
    formula: str | None
    flags: list[str]
    error_message: str | None
    image_sha256: str | None
    width: int | None
    height: int | None
    frames: int | None
    engine: str
    engine_version: str | None
    weights: str | None
    weights_sha256: str | None
    snapshot: str | None
    worker_id: str
    job_id: int
    run: int
    lease_seq: int
    duration_ms: int | None
    processed_at: datetime


# --- logs ------------------------------------------------------------------------------------------------------


class LogLine(Wire):
    """A line of a worker's log; project, job, lease and image where it has them."""

    level: LogLevel = LogLevel.INFO
    message: Message
    logger: ShortText | None = None
    traceback: Annotated[str, StringConstraints(max_length=MAX_TRACEBACK_CHARS), AfterValidator(_no_nul)] | None = None
    project: Name | None = None
    job_id: JobId | None = None
    lease_seq: LeaseSeq | None = None
    image: Message | None = None


class LogLines(Wire):
    """A batch of log lines."""

    lines: Annotated[list[LogLine], Field(max_length=MAX_LOG_LINES_PER_POST)]


class StoredLogLine(LogLine):
    """A log line as read back."""

    id: int
    received_at: datetime
    worker_id: str


class Page(Wire, Generic[T]):
    """A keyset page; `Link: rel=next` leads on."""

    items: list[T]
