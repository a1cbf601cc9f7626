"""Results as Parquet, by pyarrow: rows are parsed and written in C++ alone."""

from collections.abc import Iterator, Sequence
from datetime import datetime

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from job_api.formats import MADE_WITH, About, Counts, Outbox
from job_api.formats.rows import KINDS

ROW_GROUP_ROWS = 2**16
# Rows with tokens are large.
ROW_GROUP_BYTES = 2**25

_TYPES = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    datetime: pa.timestamp("us", tz="UTC"),
    list[str]: pa.list_(pa.string()),
    list[float]: pa.list_(pa.float64()),
}
# Texts that many rows share; of the others a dictionary would only be begun and given up.
_REPEATED = (
    *("project", "directory", "sequence", "sub_sequence", "part", "status", "agreement"),
    *("review_status", "reviewed_by", *MADE_WITH, "worker_id"),
)


class ParquetFile:
    """Writes Parquet."""

    def __init__(self, about: About, sink: Outbox) -> None:
        self.counts = Counts()
        self._schema = pa.schema([(name, _TYPES[KINDS[name]]) for name in about.columns])
        self._parsing = pa.json.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior="ignore")
        self._file = pa.parquet.ParquetWriter(
            sink,
            self._schema,
            compression="zstd",
            use_dictionary=[name for name in about.columns if name in _REPEATED],
        )
        self._file.add_key_value_metadata(
            {
                "decimer_jobs.project": about.project.name,
                "decimer_jobs.service_version": about.service_version,
                "decimer_jobs.made_at": about.made_at.isoformat(),
            }
        )
        self._waiting: list[pa.Table] = []

    def write(self, lines: Sequence[bytes]) -> None:
        """Take in rows."""
        if not lines:
            return
        data = b"".join(lines)
        # One block, because a row must not be longer than one.
        reading = pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        table = pa.json.read_json(pa.BufferReader(data), read_options=reading, parse_options=self._parsing)
        self.counts.rows += len(lines)
        self._waiting.append(table)
        rows = sum(waiting.num_rows for waiting in self._waiting)
        if rows >= ROW_GROUP_ROWS or sum(waiting.nbytes for waiting in self._waiting) >= ROW_GROUP_BYTES:
            self._write_group()

    def finish(self, next_since: int) -> Iterator[None]:
        """Write the last rows and the footer."""
        if self._waiting:
            self._write_group()
        self._file.add_key_value_metadata({"decimer_jobs.next_since": str(next_since)})
        self._file.close()
        yield

    def _write_group(self) -> None:
        group = pa.concat_tables(self._waiting)
        self._waiting.clear()
        self._file.write_table(group, row_group_size=group.num_rows)
