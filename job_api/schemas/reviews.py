"""Corrections by people, and chemistry computed again."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import (
    Field,
    model_validator,
)

from job_api.schemas.fields import (
    Directory,
    Flag,
    ImagePath,
    InChIKey,
    JobId,
    Message,
    Name,
    NamePart,
    PlainSmiles,
    Request,
    ShortText,
    Smiles,
    Wire,
)
from job_api.schemas.limits import MAX_INT8, MAX_RESULTS_PER_POST, MAX_REVIEWS_PER_PUT
from job_api.schemas.results import RefusedRow, judging
from job_api.schemas.words import ReviewStatus


class NewReview(Request):
    """What a person says of an engine's answer to one image, named by its job or the job's directory."""

    directory: Directory | None = None
    job_id: JobId | None = None
    image: ImagePath
    engine: Name | None = Field(default=None, description="the project's, where it is left out")
    review_status: ReviewStatus | None = Field(description="null takes back what was said before")
    corrected_smiles: PlainSmiles | None = Field(default=None, description="what it should be; for `corrected` alone")
    note: Message | None = None
    smiles: Smiles | None = Field(
        default=None,
        description="the answer that was looked at, null where there was none; a review of another answer than the "
        "one that is stored is refused. Left out, the review is of whatever is stored",
    )

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if (self.directory is None) == (self.job_id is None):
            raise ValueError("name the directory or the job_id, and not both")
        is_corrected = self.review_status is ReviewStatus.CORRECTED
        if is_corrected and self.corrected_smiles is None:
            raise ValueError("corrected needs a corrected_smiles")
        if self.corrected_smiles is not None and not is_corrected:
            raise ValueError("corrected_smiles goes with the review_status corrected, and with no other")
        return self


ReviewRows = Annotated[list[NewReview], Field(max_length=MAX_REVIEWS_PER_PUT), judging(NewReview, MAX_REVIEWS_PER_PUT)]


class NewReviews(Request):
    """A batch of reviews; judged one by one."""

    reviews: ReviewRows


class ReviewsStored(Wire):
    """What became of a batch of reviews."""

    stored: int = Field(description="reviews that are new or another than before")
    removed: int = Field(description="reviews that were taken back")
    unchanged: int = Field(description="those that were there already, whoever said so")
    refused: list[RefusedRow]


class Review(Wire):
    """What was said of an answer, and by whom."""

    job_id: int
    directory: str
    image: str
    engine: str
    review_status: ReviewStatus
    corrected_smiles: str | None
    note: str | None
    reviewed_smiles: str | None = Field(description="the answer that was looked at")
    smiles: str | None = Field(description="the engine's answer now")
    review_outdated: bool = Field(description="whether these two differ")
    reviewed_by: str
    reviewed_at: datetime


class RowChemistry(Wire):
    """What was computed again of a stored row, which is named with the `seq` that it had."""

    job_id: JobId
    image: ImagePath
    engine: Name
    seq: int = Field(ge=1, le=MAX_INT8)
    is_valid: bool | None
    canonical_smiles: Smiles | None
    normalized_smiles: Smiles | None
    inchikey: InChIKey | None
    formula: ShortText | None
    molecular_weight: float | None = Field(ge=0, allow_inf_nan=False)
    fragments: int | None = Field(ge=0, le=2**31 - 1)
    flags: Annotated[list[Flag], Field(max_length=20)]
    sequence: NamePart | None
    sub_sequence: NamePart | None
    part: NamePart | None


class ChemistryRows(Request):
    """A batch of rows whose chemistry was computed again."""

    rows: Annotated[list[RowChemistry], Field(max_length=MAX_RESULTS_PER_POST)]


class ChemistryStored(Wire):
    """What became of such a batch."""

    changed: int
    replaced: int = Field(description="rows that are not there any more as they were named; left alone")
