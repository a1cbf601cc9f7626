"""Kinds of fields, each with what it must be, and the bases of all models."""

import re
from typing import Annotated, Any, Generic, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
)

from job_api.schemas.limits import MAX_INT8, MIN_FLOAT4, RESERVED_PROJECT_NAMES
from job_api.text import (
    MAX_MESSAGE_CHARS,
    MAX_PATH_BYTES,
    MAX_SMILES_CHARS,
    MAX_TOKEN_CHARS,
    check_directory,
    check_relative_path,
)

T = TypeVar("T")
_PLAIN = "[!-~]+"
_FAILURE_ID = "(image|job)-[0-9a-f]{12}"


def no_nul(text: str) -> str:
    """Refuse a text that PostgreSQL cannot store."""
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


def _not_reserved(name: str) -> str:
    if name in RESERVED_PROJECT_NAMES:
        raise ValueError(f"is reserved; choose another name than {', '.join(sorted(RESERVED_PROJECT_NAMES))}")
    return name


def _plain_smiles(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    if re.fullmatch(_PLAIN, text) is None:
        raise ValueError("holds a blank or a character that is not printable ASCII")
    return text


def _failure_id(text: str) -> str:
    if re.fullmatch(_FAILURE_ID, text) is None:
        raise ValueError("is no id of a group; `job-api failures` shows them")
    return text


def text_type(max_chars: int) -> Any:
    """A string of at most `max_chars` characters that PostgreSQL can store."""
    return Annotated[str, StringConstraints(max_length=max_chars), AfterValidator(no_nul)]


NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"
ProjectName = Annotated[str, StringConstraints(pattern=NAME_PATTERN), AfterValidator(_not_reserved)]
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
WorkerId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
ClaimKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
JobId = Annotated[int, Field(ge=1, le=MAX_INT8)]
LeaseSeq = Annotated[int, Field(ge=1, le=MAX_INT8)]
ShortText = Annotated[str, StringConstraints(max_length=200), AfterValidator(no_nul)]
Message = Annotated[str, StringConstraints(max_length=MAX_MESSAGE_CHARS), AfterValidator(no_nul)]
Smiles = Annotated[str, StringConstraints(max_length=MAX_SMILES_CHARS), AfterValidator(no_nul)]
# As OpenSMILES has it: printable ASCII, no blanks. Whether it is a structure is for chemistry to say.
PlainSmiles = Annotated[
    str,
    StringConstraints(max_length=MAX_SMILES_CHARS),
    AfterValidator(_plain_smiles),
    Field(json_schema_extra={"pattern": f"^{_PLAIN}$"}),
]
InChIKey = Annotated[str, StringConstraints(max_length=27), AfterValidator(no_nul)]
Directory = Annotated[str, StringConstraints(max_length=MAX_PATH_BYTES + 8), AfterValidator(check_directory)]
ImagePath = Annotated[str, AfterValidator(check_relative_path)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TokenText = Annotated[str, StringConstraints(max_length=MAX_TOKEN_CHARS), AfterValidator(no_nul)]
# In four bytes; what is smaller than they can say is nothing, and PostgreSQL would refuse it.
TokenProbability = Annotated[Probability, AfterValidator(lambda value: value if value >= MIN_FLOAT4 else 0.0)]
NamePart = Annotated[str, StringConstraints(max_length=MAX_PATH_BYTES), AfterValidator(no_nul)]
Flag = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}$")]
Reason = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
FailureId = Annotated[str, AfterValidator(_failure_id), Field(json_schema_extra={"pattern": f"^{_FAILURE_ID}$"})]


class Wire(BaseModel):
    """Base of all wire models. Unknown fields are ignored, so that old and new versions understand each other."""

    model_config = ConfigDict(extra="ignore")


class Request(BaseModel):
    """Base of what people send: an unknown field is a mistake and is refused by name."""

    model_config = ConfigDict(extra="forbid")


class Page(Wire, Generic[T]):
    """A keyset page; `Link: rel=next` leads on."""

    items: list[T]
