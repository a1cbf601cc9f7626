"""Results, as workers report them and as they are read back; the ends of leases, which may bring results."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)

from job_api.schemas.fields import (
    Flag,
    ImagePath,
    InChIKey,
    LeaseSeq,
    Message,
    Name,
    NamePart,
    Probability,
    Reason,
    ShortText,
    Smiles,
    T,
    TokenProbability,
    TokenText,
    Wire,
    WorkerId,
)
from job_api.schemas.limits import MAX_RESULTS_PER_POST
from job_api.schemas.words import Agreement, JobState, Outcome, ResultStatus, ReviewStatus
from job_api.text import (
    MAX_PATH_BYTES,
    MAX_TOKENS,
    clean_text,
)

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class NewResult(Wire):
    """What became of one image, as the worker reports it."""

    image: ImagePath
    engine: Name = "decimer"
    status: ResultStatus
    image_sha256: Sha256 | None = None
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
    inchikey: InChIKey | None = None
    formula: ShortText | None = None
    normalized_smiles: Smiles | None = None
    molecular_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    fragments: int | None = Field(default=None, ge=0, le=2**31 - 1)
    sequence: NamePart | None = None
    sub_sequence: NamePart | None = None
    part: NamePart | None = None
    tokens: Annotated[list[TokenText], Field(max_length=MAX_TOKENS)] | None = None
    token_probabilities: Annotated[list[TokenProbability], Field(max_length=MAX_TOKENS)] | None = None
    flags: Annotated[list[Flag], Field(max_length=20)] = []
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


def judging(model: type[T], most: int) -> WrapValidator:
    """All rows at once, which is quick, and one by one only where that fails."""

    def judge_rows(rows: Any, validate: Callable[[Any], list[T]]) -> list[T | InvalidRow]:
        try:
            return [*validate(rows)]
        except ValidationError:
            if not isinstance(rows, list) or len(rows) > most:
                raise
            judge = TypeAdapter(model).validate_python
            return [_judge_row(row, judge) for row in rows]

    return WrapValidator(judge_rows)


def _judge_row(row: Any, judge: Callable[[Any], T]) -> T | InvalidRow:
    try:
        return judge(row)
    except ValidationError as error:
        image = row.get("image") if isinstance(row, dict) else None
        reasons = [".".join(str(part) for part in e["loc"]) + ": " + e["msg"] for e in error.errors(include_url=False)]
        # Cleaned, because it is said back and may be what is wrong with the row.
        named = clean_text(image, MAX_PATH_BYTES) if isinstance(image, str) else None
        return InvalidRow(image=named, reason=clean_text("; ".join(reasons), 1000))


ResultRows = Annotated[
    list[NewResult], Field(max_length=MAX_RESULTS_PER_POST), judging(NewResult, MAX_RESULTS_PER_POST)
]
"""Result rows, with an `InvalidRow` where a row was none: one bad row must not cost its batch."""


class EngineRun(Wire):
    """With what the rows of a batch were made; the same for all of them."""

    engine: Name = "decimer"
    engine_version: ShortText | None = None
    weights: ShortText | None = None
    weights_sha256: Sha256 | None = None
    prepared: Sha256 | None = None
    """Of the model prepared of these weights, where one was used in their place."""
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
    tokens: list[str] | None = None
    token_probabilities: list[float] | None = None
    """Absent in answers of older services, and null where the project does not keep them."""


class Result(Wire):
    """A stored row, as read back and exported; the fields' order is the order of the CSV's columns.

    What is absent in answers of older services has a default.
    """

    seq: int
    project: str
    directory: str
    image: str
    sequence: str | None = None
    sub_sequence: str | None = None
    part: str | None = None
    status: ResultStatus
    smiles: str | None
    confidence: float | None
    confidence_mean: float | None
    confidence_min: float | None
    n_tokens: int | None
    truncated: bool | None
    is_valid: bool | None
    canonical_smiles: str | None
    normalized_smiles: str | None = None
    inchikey: str | None
    inchikey_first_block: str | None = None
    formula: str | None
    molecular_weight: float | None = None
    fragments: int | None = None
    flags: list[str]
    duplicate_image: bool | None = None
    agreement: Agreement | None = None
    review_status: ReviewStatus | None = None
    corrected_smiles: str | None = None
    review_note: str | None = None
    reviewed_by: str | None = None
    reviewed_at: datetime | None = None
    review_outdated: bool | None = None
    error_message: str | None
    image_sha256: str | None
    width: int | None
    height: int | None
    frames: int | None
    engine: str
    engine_version: str | None
    weights: str | None
    weights_sha256: str | None
    prepared: str | None = None
    snapshot: str | None
    worker_id: str
    job_id: int
    run: int
    lease_seq: int
    duration_ms: int | None
    processed_at: datetime
    tokens: list[str] | None = None
    token_probabilities: list[float] | None = None
