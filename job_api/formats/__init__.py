"""Files of results that PostgreSQL does not write by itself: made here from the rows of the JSONL export.

The service does it in a child process (`__main__`), the command line in its own. Each format is a `Writer` in a file of
its own, which alone imports the library it takes: the base install and the service's own process need none of them.
Knows nothing of HTTP, of the database or of where a file goes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from typing import Any, Protocol

from job_api import smi
from job_api.schemas import Project, Result, Wire

INSTALL = "pip install '/path/to/decimer-jobs[formats]'"
MAX_XLSX_ROWS = 100_000
TOO_MANY_FOR_XLSX = (
    f"xlsx is for at most {MAX_XLSX_ROWS:,} rows, and there are more; ask for fewer of them, or for csv or parquet"
)
COLUMNS = tuple(Result.model_fields)
MADE_WITH = ("engine", "engine_version", "weights", "weights_sha256", "prepared", "snapshot")
"""Columns whose values are the same for many rows: what a zip counts them by."""


class FormatUnavailable(Exception):
    """What the format takes is not installed."""


class TooManyRows(Exception):
    """The format is for fewer rows than came."""


class About(Wire):
    """What a file says of itself."""

    project: Project
    service_version: str
    made_at: datetime
    columns: list[str]
    """Those that the rows are shown with; they may come with more."""
    filters: dict[str, Any]
    """What was asked for; nothing where all rows were."""
    next_since: int | None = None
    """Where the next export goes on; absent where that is known when the last row has come."""


@dataclass
class Counts:
    """What became of the rows."""

    rows: int = 0
    """How many are in the file."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Those that are not, by reason."""
    altered: Counter[str] = field(default_factory=Counter)
    """What could not be written as it is, by reason."""

    def __str__(self) -> str:
        dropped = "".join(f"; {count} left out: {reason}" for reason, count in sorted(self.dropped.items()))
        altered = "".join(f"; {count} {reason}" for reason, count in sorted(self.altered.items()))
        return f"{self.rows} rows{dropped}{altered}"


class Outbox:
    """A file that cannot be sought in, whose content is taken out as it comes."""

    def __init__(self) -> None:
        self.closed = False
        self._content = bytearray()
        self._position = 0

    def write(self, data: Any) -> int:
        """Append."""
        size = memoryview(data).nbytes
        self._content += data
        self._position += size
        return size

    def tell(self) -> int:
        """How many bytes were written."""
        return self._position

    def writable(self) -> bool:
        """It is."""
        return True

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def take(self) -> bytes:
        """What was written since it was last asked."""
        content = bytes(self._content)
        self._content.clear()
        return content


class Writer(Protocol):
    """Makes a file of one format."""

    counts: Counts

    def write(self, lines: Sequence[bytes]) -> None:
        """Take in rows in JSON, one on each line, with the columns that `columns_read` names.

        Raises:
            TooManyRows: the format is for fewer.
        """

    def finish(self, next_since: int) -> Iterator[None]:
        """Write what comes last, step by step, so that it need not be held in memory as a whole.

        Args:
            next_since: where the next export goes on.
        """


# The module and the class of each.
_WRITERS = {
    "parquet": ("parquet", "ParquetFile"),
    "sdf": ("sdf", "StructuresFile"),
    "xlsx": ("xlsx", "Workbook"),
    "zip": ("archive", "Archive"),
}
# Columns that a format looks at, whichever it is to show.
_LOOKED_AT = {
    "sdf": (*smi.COLUMNS, "normalized_smiles"),
    "zip": (*smi.COLUMNS, "status", *MADE_WITH),
}


def columns_read(name: str, shown: Sequence[str]) -> list[str]:
    """The columns that rows must come with for a file that shows some, in the order of all columns."""
    wanted = {"seq", *shown, *_LOOKED_AT.get(name, ())}
    return [column for column in COLUMNS if column in wanted]


def open_writer(name: str, about: About, sink: Outbox) -> Writer:
    """Begin a file of the format of that name.

    Raises:
        FormatUnavailable: a library is not installed; says how it gets there.
    """
    module_name, class_name = _WRITERS[name]
    try:
        module = import_module(f"job_api.formats.{module_name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("job_api"):
            raise
        raise FormatUnavailable(f"{name} takes {error.name}, which is not installed; {INSTALL}") from None
    writer: Writer = getattr(module, class_name)(about, sink)
    return writer


def encoded(
    writer: Writer, sink: Outbox, batches: Iterable[Sequence[bytes]], next_since: Callable[[], int]
) -> Iterator[bytes]:
    """The file's bytes, as the rows come in batches; `next_since` is asked when all have come."""
    for lines in batches:
        writer.write(lines)
        yield sink.take()
    for _ in writer.finish(next_since()):
        yield sink.take()
    yield sink.take()
