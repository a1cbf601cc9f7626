"""Which rows and columns an export is asked for."""

from difflib import get_close_matches
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from job_api.schemas.fields import Name, NamePart, Probability, Request
from job_api.schemas.limits import MAX_INT8
from job_api.schemas.results import Result
from job_api.schemas.words import Agreement, ExportFormat, KnownFlag, ResultStatus, ReviewedAs

LONG_COLUMNS = frozenset({"tokens", "token_probabilities"})
"""Larger than all others together: they are exported only where they are asked for by name."""
_MAX_SAID_CHARS = 60
DEFAULT_COLUMNS = tuple(name for name in Result.model_fields if name not in LONG_COLUMNS)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _names_of_columns(value: Any) -> Any:
    """Names with commas between are taken apart, and each is taken once."""
    given = _as_list(value)
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        return value
    names = [name.strip() for text in given for name in text.split(",")]
    if unknown := [name for name in names if name not in Result.model_fields]:
        close = get_close_matches(unknown[0], Result.model_fields)
        raise ValueError(
            f"{unknown[0][:_MAX_SAID_CHARS]!r} is no column; "
            + (f"close to it: {', '.join(close)}" if close else f"known are {', '.join(Result.model_fields)}")
        )
    return list(dict.fromkeys(names))


ColumnNames = Annotated[
    list[Annotated[str, Field(json_schema_extra={"enum": list(Result.model_fields)})]],
    Field(min_length=1),
    BeforeValidator(_names_of_columns),
]
OneOrMore = BeforeValidator(_as_list)
Few = Field(min_length=1, max_length=50)


class ResultFilter(Request):
    """Which rows of a project's results are meant: those for which all that is given holds."""

    status: Annotated[list[ResultStatus], Few, OneOrMore] | None = Field(
        default=None, description="rows with one of these"
    )
    directory: NamePart | None = Field(default=None, description="rows of the directory of this name")
    text: Annotated[NamePart, Field(min_length=1)] | None = Field(
        default=None, description="rows of directories with this text in their name"
    )
    engine: Name | None = Field(default=None, description="rows of this engine")
    min_confidence: Probability | None = Field(default=None, description="rows with this confidence or a higher one")
    flag: Annotated[list[KnownFlag], Few, OneOrMore] | None = Field(
        default=None, description="rows that have any of these flags"
    )
    without_flag: Annotated[list[KnownFlag], Few, OneOrMore] | None = Field(
        default=None, description="rows that have none of these flags"
    )
    valid: bool | None = Field(default=None, description="rows whose SMILES can be read, or those whose cannot")
    review_status: Annotated[list[ReviewedAs], Few, OneOrMore] | None = Field(
        default=None, description="rows that a person said one of these of; none: that nobody has looked at"
    )
    agreement: Annotated[list[Agreement], Few, OneOrMore] | None = Field(
        default=None, description="rows that stand so to those of other engines for the same image"
    )
    since: int | None = Field(default=None, ge=0, le=MAX_INT8, description="rows with a higher `seq`")


class ResultQuery(ResultFilter):
    """What an export is asked for: which rows, which of their columns, how written."""

    format: ExportFormat = Field(default=ExportFormat.CSV, description="csv, jsonl, smi, parquet, sdf, xlsx or zip")
    columns: ColumnNames | None = Field(
        default=None,
        description="names of columns, repeated or with commas between, in this order; without it all but `tokens` and "
        "`token_probabilities`; an smi has none",
    )

    @model_validator(mode="after")
    def _smi_has_no_columns(self) -> Self:
        if self.format is ExportFormat.SMI and self.columns is not None:
            raise ValueError("an smi has no columns to choose")
        return self
