"""The tables: the one source of the schema, from which Alembic makes its migrations.

Reads and writes go through asyncpg (see `db.py`); no other module maps these classes to rows. Ids and sequences are
BIGINT because SQLModel's `int` would be INTEGER.
"""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Sequence,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field, SQLModel

NAMING_CONVENTION = {
    "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    "uq": "%(table_name)s_%(column_0_N_name)s_key",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    "pk": "%(table_name)s_pkey",
}
metadata = SQLModel.metadata
metadata.naming_convention = NAMING_CONVENTION

COUNTER_SLOTS = 32

# Tables that are changed all the time are cleaned all the time: PostgreSQL's defaults wait until a fifth of a table is
# dead, which of 5 million jobs is a million. Tiny ones are cleaned after a number of changes, whatever their size.
CLEAN_BIG = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_insert_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.02",
}
CLEAN_TINY = {"autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "1000"}

QUEUE_POS_SEQ = Sequence("queue_pos_seq", metadata=metadata, data_type=BigInteger)
# Every stored row takes a new value: the order of the export, and what `since` counts in.
RESULT_SEQ = Sequence("result_seq", metadata=metadata, data_type=BigInteger)


def _id() -> Any:
    return Field(sa_column=Column(BigInteger, Identity(always=True), primary_key=True))


def _bigint(**options: Any) -> Any:
    return Field(sa_column=Column(BigInteger, nullable=False, **options))


def _text(*, nullable: bool = False, **options: Any) -> Any:
    return Field(sa_column=Column(Text, nullable=nullable, **options))


def _time(*, nullable: bool = False, now: bool = False) -> Any:
    default = text("now()") if now else None
    return Field(sa_column=Column(DateTime(timezone=True), nullable=nullable, server_default=default))


def _int(*, nullable: bool = False, default: int | None = None) -> Any:
    server_default = None if default is None else text(str(default))
    return Field(sa_column=Column(Integer, nullable=nullable, server_default=server_default))


def _bool(*, nullable: bool = False) -> Any:
    return Field(sa_column=Column(Boolean, nullable=nullable, server_default=None if nullable else text("false")))


def _real(*, total: bool = False) -> Any:
    return Field(sa_column=Column(Float(53), nullable=not total, server_default=text("0") if total else None))


def _texts() -> Any:
    return Field(sa_column=Column(ARRAY(Text), nullable=False, server_default=text("'{}'")))


def _count() -> Any:
    return _bigint(server_default=text("0"))


class UserRow(SQLModel, table=True):
    """A person, or a program that logs in with a password."""

    __tablename__: ClassVar[str] = "users"
    id: int = _id()
    name: str = _text(unique=True)
    password_hash: str = _text()
    role: str = _text()
    project: str | None = _text(nullable=True)
    created_at: datetime = _time(now=True)


class TokenRow(SQLModel, table=True):
    """An opaque token; only the SHA-256 of its secret is stored."""

    __tablename__: ClassVar[str] = "tokens"
    id: int = _id()
    token_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False, unique=True))
    name: str = _text()
    role: str = _text()
    project: str | None = _text(nullable=True)
    user_id: int | None = Field(
        sa_column=Column(BigInteger, ForeignKey("users.id", ondelete="CASCADE"), nullable=True, index=True)
    )
    created_at: datetime = _time(now=True)
    expires_at: datetime | None = _time(nullable=True)
    revoked_at: datetime | None = _time(nullable=True)


class ProjectRow(SQLModel, table=True):
    """A named run that jobs belong to."""

    __tablename__: ClassVar[str] = "projects"
    id: int = _id()
    name: str = _text(unique=True)
    source: str = _text()
    engine: str = _text(server_default=text("'decimer'"))
    engine_options: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False, server_default=text("'{}'")))
    priority: int = _int(default=0)
    max_failures: int = _int(default=3)
    results_file: bool = _bool()
    image_name_pattern: str | None = _text(nullable=True)
    image_include: list[str] = _texts()
    image_exclude: list[str] = _texts()
    keep_tokens: bool = _bool()
    price_per_worker_hour: float | None = _real()
    paused: bool = _bool()
    created_at: datetime = _time(now=True)
    # Set: nobody can name it any more, and its rows are deleted bit by bit (`janitor.py`).
    deleted_at: datetime | None = _time(nullable=True)


class ProjectSlotRow(SQLModel, table=True):
    """One of the slots whose sums are a project's counters; several, so that writers do not wait for one row."""

    __tablename__: ClassVar[str] = "project_slots"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50", **CLEAN_TINY}},)
    project_id: int = Field(
        sa_column=Column(BigInteger, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    )
    slot: int = Field(sa_column=Column(SmallInteger, primary_key=True))
    queued: int = _count()
    waiting: int = _count()
    claimed: int = _count()
    completed: int = _count()
    failed: int = _count()
    cancelled: int = _count()
    images_stored: int = _count()
    images_recognised: int = _count()
    images_listed: int = _count()
    images_replaced: int = _count()


class ProjectSampleRow(SQLModel, table=True):
    """How many rows a project had at a moment, and how many had been replaced; the rate is the difference of two."""

    __tablename__: ClassVar[str] = "project_samples"
    project_id: int = Field(
        sa_column=Column(BigInteger, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    )
    sampled_at: datetime = Field(sa_column=Column(DateTime(timezone=True), primary_key=True))
    images_stored: int = _bigint()


class UsageClockRow(SQLModel, table=True):
    """One row: up to when the workers' time is counted, in all projects."""

    __tablename__: ClassVar[str] = "usage_clock"
    __table_args__ = (CheckConstraint("id", name="one_row"), {"postgresql_with": CLEAN_TINY})
    id: bool = Field(sa_column=Column(Boolean, primary_key=True, server_default=text("true")))
    counted_until: datetime = _time(now=True)


class ProjectUsageRow(SQLModel, table=True):
    """How long workers have worked for a project: in worker-seconds, and the time in which at least one did."""

    __tablename__: ClassVar[str] = "project_usage"
    __table_args__ = ({"postgresql_with": CLEAN_TINY},)
    project_id: int = Field(
        sa_column=Column(
            BigInteger, ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
        )
    )
    worker_seconds: float = _real(total=True)
    busy_seconds: float = _real(total=True)
    # Rows that were stored before their workers' time was counted.
    images_before: int = _count()


class JobRow(SQLModel, table=True):
    """One directory of images. `queue.py` and `steering.py` alone change its state."""

    __tablename__: ClassVar[str] = "jobs"
    __table_args__ = (
        UniqueConstraint("project_id", "directory"),
        CheckConstraint(
            "state IN ('queued', 'waiting', 'claimed', 'completed', 'failed', 'cancelled')", name="state_known"
        ),
        CheckConstraint(
            "(state = 'claimed') = (worker_id IS NOT NULL) AND (state = 'claimed') = (claim_key IS NOT NULL)"
            " AND (state = 'claimed') = (lease_expires_at IS NOT NULL)",
            name="claimed_has_holder",
        ),
        CheckConstraint("(state = 'waiting') = (due_at IS NOT NULL)", name="waiting_is_due"),
        CheckConstraint(
            "(state IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished_has_time"
        ),
        CheckConstraint("state <> 'completed' OR coalesce(image_count, 0) > 0", name="completed_has_images"),
        # The claim: the state stands as a literal there and here. Never ordered by the primary key.
        Index(
            "jobs_claim_idx",
            "project_id",
            text("priority DESC"),
            "queue_pos",
            postgresql_where=text("state = 'queued'"),
        ),
        Index("jobs_waiting_idx", "due_at", postgresql_where=text("state = 'waiting'")),
        # The leases of a worker, and all live leases for the sweep; unique, so that a claim that is sent twice at once
        # is answered once: the n-th lease of a claim key exists once. lease_expires_at is in no index, so that
        # heartbeats stay heap-only updates.
        Index(
            "jobs_claim_key_idx",
            "worker_id",
            "claim_key",
            text("coalesce(claim_place, id)"),
            unique=True,
            postgresql_where=text("state = 'claimed'"),
        ),
        Index("jobs_browse_idx", "project_id", "state", "id"),
        # Failed jobs by why, as `results_failures_idx`.
        Index(
            "jobs_failures_idx",
            "project_id",
            text("failure_key(reason, message)"),
            "id",
            postgresql_where=text("state = 'failed' AND reason IS NOT NULL"),
        ),
        {"postgresql_with": {"fillfactor": "80", **CLEAN_BIG}},
    )
    id: int = _id()
    project_id: int = Field(sa_column=Column(BigInteger, ForeignKey("projects.id"), nullable=False))
    directory: str = _text()
    state: str = _text(server_default=text("'queued'"))
    priority: int = _int(default=0)
    queue_pos: int = _bigint(server_default=QUEUE_POS_SEQ.next_value())
    run: int = _int(default=1)
    # Rows of runs before this one, and rows marked stale, no longer count as present.
    present_from_run: int = _int(default=1)
    lease_seq: int = _count()
    worker_id: str | None = _text(nullable=True)
    claim_key: str | None = _text(nullable=True)
    # Which of the leases of its claim this one was: -1, -2, …; below zero, so that it is no other row's id.
    claim_place: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    lease_expires_at: datetime | None = _time(nullable=True)
    due_at: datetime | None = _time(nullable=True)
    failures: int = _int(default=0)
    # Failures that were taken back because their worker was quarantined; like the others until a retry or rerun.
    refunds: int = _int(default=0)
    releases: int = _int(default=0)
    image_count: int | None = _int(nullable=True)
    reason: str | None = _text(nullable=True)
    message: str | None = _text(nullable=True)
    added_at: datetime = _time(now=True)
    finished_at: datetime | None = _time(nullable=True)


class AttemptRow(SQLModel, table=True):
    """One lease of a job; open while `outcome` is null. It is what a late writer's word is checked against.

    No foreign key: it would be looked up for each claim, and attempts are only made and deleted with their locked job.
    """

    __tablename__: ClassVar[str] = "attempts"
    __table_args__ = (
        CheckConstraint("(outcome IS NULL) = (ended_at IS NULL)", name="ended_has_time"),
        {"postgresql_with": {"fillfactor": "80", **CLEAN_BIG}},
    )
    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    lease_seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    worker_id: str = _text()
    claim_key: str = _text()
    claimed_at: datetime = _time(now=True)
    ended_at: datetime | None = _time(nullable=True)
    outcome: str | None = _text(nullable=True)
    charged: bool = _bool()
    new_results: int = _int(default=0)
    reason: str | None = _text(nullable=True)
    message: str | None = _text(nullable=True)


class ProvenanceRow(SQLModel, table=True):
    """With what a row was made: one entry for each worker process and engine, joined on export."""

    __tablename__: ClassVar[str] = "provenances"
    __table_args__ = (
        UniqueConstraint(
            "worker_id",
            "engine",
            "engine_version",
            "weights",
            "weights_sha256",
            "prepared",
            "snapshot",
            name="provenances_made_with_key",
            postgresql_nulls_not_distinct=True,
        ),
    )
    id: int = _id()
    worker_id: str = _text()
    engine: str = _text()
    engine_version: str | None = _text(nullable=True)
    weights: str | None = _text(nullable=True)
    weights_sha256: str | None = _text(nullable=True)
    prepared: str | None = _text(nullable=True)
    snapshot: str | None = _text(nullable=True)


class ResultRow(SQLModel, table=True):
    """What became of one image. No foreign keys: a check for each of 100 million rows would be paid at every batch,
    and jobs are only deleted together with their rows.
    """  # noqa: D205

    __tablename__: ClassVar[str] = "results"
    __table_args__ = (
        Index("results_export_idx", "project_id", "seq"),
        # The same bytes elsewhere in the project.
        Index(
            "results_image_sha256_idx",
            "project_id",
            "image_sha256",
            postgresql_where=text("image_sha256 IS NOT NULL"),
        ),
        # Failures by their kind; the function is made by the migration. By a number, for its text would be in the index
        # once for each job; an index is not made anew with its function, so that one must never change.
        Index(
            "results_failures_idx",
            "project_id",
            "engine",
            text("failure_key(status, error_message)"),
            "job_id",
            postgresql_where=text("status <> 'recognised' OR error_message IS NOT NULL"),
        ),
        {"postgresql_with": CLEAN_BIG},
    )
    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    image: str = Field(sa_column=Column(Text, primary_key=True))
    engine: str = Field(sa_column=Column(Text, primary_key=True))
    project_id: int = _bigint()
    seq: int = _bigint(server_default=RESULT_SEQ.next_value())
    provenance_id: int = _bigint()
    lease_seq: int = _bigint()
    processed_at: datetime = _time(now=True)
    run: int = _int()
    stale: bool = _bool()
    truncated: bool | None = _bool(nullable=True)
    is_valid: bool | None = _bool(nullable=True)
    status: str = _text()
    width: int | None = _int(nullable=True)
    height: int | None = _int(nullable=True)
    frames: int | None = _int(nullable=True)
    n_tokens: int | None = _int(nullable=True)
    duration_ms: int | None = _int(nullable=True)
    confidence: float | None = _real()
    confidence_mean: float | None = _real()
    confidence_min: float | None = _real()
    image_sha256: bytes | None = Field(sa_column=Column(LargeBinary, nullable=True))
    smiles: str | None = _text(nullable=True)
    canonical_smiles: str | None = _text(nullable=True)
    inchikey: str | None = _text(nullable=True)
    formula: str | None = _text(nullable=True)
    flags: list[str] = _texts()
    error_message: str | None = _text(nullable=True)
    # What the project's `image_name_pattern` found in the image's name.
    sequence: str | None = _text(nullable=True)
    sub_sequence: str | None = _text(nullable=True)
    part: str | None = _text(nullable=True)
    normalized_smiles: str | None = _text(nullable=True)
    molecular_weight: float | None = _real()
    fragments: int | None = _int(nullable=True)
    # Where the project asks for them; in the engines' own precision.
    tokens: list[str] | None = Field(sa_column=Column(ARRAY(Text), nullable=True))
    token_probabilities: list[float] | None = Field(sa_column=Column(ARRAY(REAL), nullable=True))


class ReviewRow(SQLModel, table=True):
    """What a person says of an engine's answer to an image; not in the row, for that may be replaced and this stays."""

    __tablename__: ClassVar[str] = "reviews"
    __table_args__ = (
        CheckConstraint("review_status IN ('accepted', 'corrected', 'rejected')", name="status_known"),
        CheckConstraint("(review_status = 'corrected') = (corrected_smiles IS NOT NULL)", name="corrected_has_smiles"),
        Index("reviews_browse_idx", "project_id", "job_id", "image", "engine"),
    )
    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    image: str = Field(sa_column=Column(Text, primary_key=True))
    engine: str = Field(sa_column=Column(Text, primary_key=True))
    project_id: int = _bigint()
    review_status: str = _text()
    corrected_smiles: str | None = _text(nullable=True)
    # The engine's answer that was looked at: another one, after a rerun, has not been reviewed.
    reviewed_smiles: str | None = _text(nullable=True)
    note: str | None = _text(nullable=True)
    reviewed_by: str = _text()
    reviewed_at: datetime = _time(now=True)


class WorkerRow(SQLModel, table=True):
    """A worker process, bound to the user or token that first used its id."""

    __tablename__: ClassVar[str] = "workers"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50", **CLEAN_TINY}},)
    id: str = Field(sa_column=Column(Text, primary_key=True))
    owner: str = _text()
    hostname: str | None = _text(nullable=True)
    version: str | None = _text(nullable=True)
    state: str = _text(server_default=text("'run'"))
    state_since: datetime | None = _time(nullable=True)
    reason: str | None = _text(nullable=True)
    load: dict[str, Any] | None = Field(sa_column=Column(JSONB, nullable=True))
    first_seen_at: datetime = _time(now=True)
    last_seen_at: datetime = _time(now=True)


class WorkerFailureRow(SQLModel, table=True):
    """A failure that was charged to a job since its worker's last success; what a quarantine takes back.

    Written by failures and emptied by successes. Most workers have none, so that a success finds an empty table.
    """

    __tablename__: ClassVar[str] = "worker_failures"
    __table_args__ = ({"postgresql_with": CLEAN_TINY},)
    worker_id: str = Field(sa_column=Column(Text, ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True))
    job_id: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    lease_seq: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    # Whether it speaks against the worker: the job had not failed before.
    counts: bool = Field(sa_column=Column(Boolean, nullable=False))
    failed_at: datetime = _time(now=True)


class LogLineRow(SQLModel, table=True):
    """A line of a worker's log."""

    __tablename__: ClassVar[str] = "log_lines"
    __table_args__ = (Index("log_lines_project_idx", "project_id", "id"), Index(None, "worker_id", "id"))
    id: int = _id()
    received_at: datetime = _time(now=True)
    worker_id: str = _text()
    project_id: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    job_id: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    lease_seq: int | None = Field(sa_column=Column(BigInteger, nullable=True))
    level: str = _text()
    logger: str | None = _text(nullable=True)
    image: str | None = _text(nullable=True)
    message: str = _text()
    traceback: str | None = _text(nullable=True)


class SchemaInfoRow(SQLModel, table=True):
    """One row that says which older revisions of the code still work on this schema."""

    __tablename__: ClassVar[str] = "schema_info"
    __table_args__ = (CheckConstraint("id", name="one_row"),)
    id: bool = Field(sa_column=Column(Boolean, primary_key=True, server_default=text("true")))
    compatible_revisions: list[str] = Field(sa_column=Column(ARRAY(Text), nullable=False, server_default=text("'{}'")))
