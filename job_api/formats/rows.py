"""Rows as the writers see them: the kind of each column, and values as texts that are the same in all formats."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from types import UnionType
from typing import Any, Union, get_args, get_origin

from job_api.schemas import Result

Row = dict[str, Any]


def _kind(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        [annotation] = (one for one in get_args(annotation) if one is not type(None))
    return next((kind for kind in (bool, int, float, datetime) if annotation is kind), annotation)


def _text_or_list(kind: Any) -> Any:
    return kind if kind in (bool, int, float, datetime) or get_origin(kind) is list else str


KINDS = {name: _text_or_list(_kind(field.annotation)) for name, field in Result.model_fields.items()}
"""Of each column: bool, int, float, datetime, str, list[str] or list[float]."""


def rows(lines: Iterable[bytes]) -> Iterator[Row]:
    """The rows of JSON lines."""
    return (json.loads(line) for line in lines)


def text(name: str, value: Any) -> str:
    """A value that is not null as the CSV of the export has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, list):
        return str(value)
    # A token may hold any character; flags and numbers do not.
    if name == "tokens":
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return ";".join(str(item) for item in value)
