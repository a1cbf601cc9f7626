"""The words of the API: every state, role, status and kind, spelled as on the wire."""

from enum import StrEnum


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


class ReviewStatus(StrEnum):
    """What a person says of an engine's answer: it is right, it should be another SMILES, it is wrong."""

    ACCEPTED = "accepted"
    CORRECTED = "corrected"
    REJECTED = "rejected"


class ReviewedAs(StrEnum):
    """What to ask for of reviews: rows that a person said this of, or that nobody has looked at."""

    ACCEPTED = "accepted"
    CORRECTED = "corrected"
    REJECTED = "rejected"
    NONE = "none"


class Agreement(StrEnum):
    """How an engine's answer stands to those of others to the same image, by their InChIKeys; the best of them."""

    SAME = "same"
    SAME_SKELETON = "same_skeleton"
    DIFFERENT = "different"


class KnownFlag(StrEnum):
    """Hints that an answer deserves a look. A row may carry others, for its worker may be newer."""

    HAS_RGROUP = "has_rgroup"
    ISOTOPE_RUN = "isotope_run"
    MANY_FRAGMENTS = "many_fragments"
    RARE_ELEMENT = "rare_element"
    TRUNCATED = "truncated"


class FailureKind(StrEnum):
    """What has failed: an image, so that its result has an error message, or a job."""

    IMAGE = "image"
    JOB = "job"


class DirectoryOrder(StrEnum):
    """Which directories are looked at first."""

    SLOWEST = "slowest"
    FAILING = "failing"


class ExportFormat(StrEnum):
    """Formats of the results export."""

    CSV = "csv"
    JSONL = "jsonl"
    SMI = "smi"
    PARQUET = "parquet"
    SDF = "sdf"
    XLSX = "xlsx"
    ZIP = "zip"


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
    FORMAT_UNAVAILABLE = "format-unavailable"
    DATABASE_UNAVAILABLE = "database-unavailable"
    NO_DISK_SPACE = "no-disk-space"
    INTERNAL = "internal"


PROBLEM_TYPE_PREFIX = "urn:decimer-jobs:"
