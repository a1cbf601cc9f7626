"""The rows of a download in Python: dictionaries one after another, or a pandas DataFrame of them all.

pandas is imported only where a frame is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, get_args

from job_api.schemas import DEFAULT_COLUMNS, Result
from job_api.sending import ClientError

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]
# One row in the database; a download may bring it twice, the newer one last.
KEY = ("job_id", "image", "engine")
_DTYPES = {int: "Int64", bool: "boolean", float: "float64", list: "object"}


class ResultRows(Iterator[Row]):
    """Result rows of a project as dictionaries, downloaded as they are read.

    Args:
        download: begins a download of columns, or of the usual ones.
        columns: which are asked for; None: the usual ones.
    """

    def __init__(
        self, download: Callable[[Sequence[str] | None], Iterator[Row]], columns: Sequence[str] | None
    ) -> None:
        self._download = download
        self._columns = columns
        self._rows: Iterator[Row] | None = None

    def __next__(self) -> Row:
        if self._rows is None:
            self._rows = self._download(self._columns)
        return next(self._rows)

    def to_pandas(self) -> "pandas.DataFrame":
        """All rows as a frame, by a download of its own; of a row that came twice the newer one alone.

        Numbers and booleans may be missing in it, texts are of pandas' type `string`, times are in UTC, `flags` are
        lists.

        Raises:
            ClientError: pandas is not installed, or what a download raises.
        """
        try:
            import pandas  # noqa: PLC0415 - an extra
        except ImportError:
            raise ClientError("pandas is not installed here; pip install '/path/to/decimer-jobs[pandas]'") from None
        asked = (
            None if self._columns is None else [*self._columns, *(name for name in KEY if name not in self._columns)]
        )
        rows = self._download(asked)
        first = next(rows, None)
        names = list(asked or DEFAULT_COLUMNS) if first is None else list(first)
        values: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows if first is None else chain((first,), rows):
            for name, column in values.items():
                column.append(row[name])
        frame = pandas.DataFrame({name: _column(pandas, name, column) for name, column in values.items()})
        newest = frame.drop_duplicates(list(KEY), keep="last", ignore_index=True)
        return newest if self._columns is None else newest[[name for name in names if name in self._columns]]


def _column(pandas: Any, name: str, values: list[Any]) -> Any:
    field = Result.model_fields.get(name)
    if field is None:
        # Of a newer service.
        return pandas.Series(values, dtype="object")
    kinds = [getattr(kind, "__origin__", kind) for kind in get_args(field.annotation) or (field.annotation,)]
    if getattr(field.annotation, "__origin__", None) is list:
        kinds = [list]
    if datetime in kinds:
        return pandas.to_datetime(values, utc=True, format="ISO8601")
    return pandas.Series(values, dtype=next((_DTYPES[kind] for kind in kinds if kind in _DTYPES), "string"))
