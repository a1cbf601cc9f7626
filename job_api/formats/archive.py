"""Results as a zip: the same rows as CSV, Parquet and SMILES lines, what they are, and a manifest.

Rows are looked at once: the CSV goes straight into the archive, the other files wait in temporary files without a name,
which are gone with the process.
"""

import csv
import hashlib
import json
import platform
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import IO, Any

import pyarrow as pa

from job_api import smi
from job_api.formats import MADE_WITH, About, Counts, Outbox
from job_api.formats.meanings import MEANINGS
from job_api.formats.parquet import ParquetFile
from job_api.formats.rows import KINDS, Row, rows, text
from job_api.version import VERSION

MANIFEST_VERSION = 1
BLOCK_BYTES = 2**20

_ODD = (bool, list[str], list[float])

README = """Results of the project {project}, made at {made_at}.

results.csv      every row; UTF-8 with a heading, RFC 4180 with line feeds; empty is null. Texts stand as they are:
                 a spreadsheet may take one that begins with = + - or @ for a formula, so import the columns as text
results.parquet  the same rows with types, for pandas, R, DuckDB, Spark and others
results.smi      a SMILES, a tab and the image's path on each line: of rows with a SMILES that no review rejected, the
                 corrected one where there is one
manifest.json    how many rows each file has and which it leaves out, checksums, the project's settings, what made the
                 rows, and `next_since`: what to ask for next time to get the newer rows

A row whose image was worked on again during the download may be there twice: the one with the higher `seq` counts.

The columns:
"""


class Archive:
    """Writes the zip."""

    def __init__(self, about: About, sink: Outbox) -> None:
        self.counts = Counts()
        self._about = about
        self._zip = zipfile.ZipFile(sink, "w")
        self._table = _Member(self._open("results.csv"))
        self._table.write((",".join(about.columns) + "\n").encode())
        # What Python's CSV would write otherwise than the export does.
        self._odd = [(place, name) for place, name in enumerate(about.columns) if KINDS[name] in _ODD]
        self._columnar = _Member(_nameless())
        self._columns_sink = Outbox()
        self._columns = ParquetFile(about, self._columns_sink)
        self._structures = _Member(_nameless())
        self._smi_counts = Counts()
        self._statuses: Counter[str] = Counter()
        self._provenances: Counter[tuple[str | None, ...]] = Counter()

    def write(self, lines: Sequence[bytes]) -> None:
        """Take in rows."""
        self._columns.write(lines)
        self._columnar.write(self._columns_sink.take())
        table, structures = [], []
        for row in rows(lines):
            table.append(self._csv_fields(row))
            structures.append(self._smi_line(row))
            self._statuses[row["status"]] += 1
            self._provenances[tuple(row[name] for name in MADE_WITH)] += 1
        self._table.write(_csv(table))
        self._structures.write("".join(structures).encode())
        self.counts.rows += len(table)

    def finish(self, next_since: int) -> Iterator[None]:
        """Write the other files, the manifest last."""
        self._table.file.close()
        for _ in self._columns.finish(next_since):
            self._columnar.write(self._columns_sink.take())
        files = [self._table.entry("results.csv", self.counts)]
        for member, name, counts in (
            (self._columnar, "results.parquet", self.counts),
            (self._structures, "results.smi", self._smi_counts),
        ):
            yield from self._copy(member.file, name)
            files.append(member.entry(name, counts))
        readme = _Member(self._open("README.txt"))
        readme.write(self._readme().encode())
        readme.file.close()
        files.append(readme.entry("README.txt"))
        with self._open("manifest.json") as manifest:
            manifest.write(json.dumps(self._manifest(files, next_since), indent=2, ensure_ascii=False).encode() + b"\n")
        self._zip.close()
        self.counts.dropped.update({f"{why} (results.smi)": n for why, n in self._smi_counts.dropped.items()})
        yield

    def _open(self, name: str) -> IO[bytes]:
        entry = zipfile.ZipInfo(f"{self._about.project.name}/{name}", self._about.made_at.timetuple()[:6])
        # Parquet is compressed already.
        entry.compress_type = zipfile.ZIP_STORED if name.endswith(".parquet") else zipfile.ZIP_DEFLATED
        return self._zip.open(entry, "w", force_zip64=True)

    def _copy(self, file: IO[bytes], name: str) -> Iterator[None]:
        file.seek(0)
        with file, self._open(name) as entry:
            while block := file.read(BLOCK_BYTES):
                entry.write(block)
                yield

    def _csv_fields(self, row: Row) -> list[Any]:
        fields = [row[name] for name in self._about.columns]
        for place, name in self._odd:
            fields[place] = text(name, fields[place]) if fields[place] not in (None, []) else None
        return fields

    def _smi_line(self, row: Row) -> str:
        line = smi.line(row)
        if line is None:
            self._smi_counts.dropped[smi.why_not(row)] += 1
            return ""
        self._smi_counts.rows += 1
        return line

    def _readme(self) -> str:
        head = README.format(project=self._about.project.name, made_at=self._about.made_at.isoformat())
        return head + "".join(f"  {name}: {MEANINGS[name]}\n" for name in self._about.columns)

    def _manifest(self, files: list[dict[str, Any]], next_since: int) -> dict[str, Any]:
        said = self._about.model_dump(mode="json", exclude={"next_since"})
        return {
            "manifest_version": MANIFEST_VERSION,
            **said,
            "next_since": next_since,
            "made_with": {"decimer-jobs": VERSION, "pyarrow": pa.__version__, "python": platform.python_version()},
            "rows": self.counts.rows,
            "rows_by_status": dict(self._statuses.most_common()),
            "provenance": [
                {**dict(zip(MADE_WITH, values, strict=True)), "rows": count}
                for values, count in self._provenances.most_common()
            ],
            "files": files,
        }


class _Member:
    """A file of the archive, of whose bytes is known how many and which they are."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self._bytes = 0
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self._bytes += len(data)
        self._sha256.update(data)

    def entry(self, name: str, counts: Counts | None = None) -> dict[str, Any]:
        """What the manifest says of it."""
        said = {"name": name, "bytes": self._bytes, "sha256": self._sha256.hexdigest()}
        if counts is None:
            return said
        return {**said, "rows": counts.rows, "dropped": dict(counts.dropped)}


def _nameless() -> IO[bytes]:
    return tempfile.TemporaryFile()


def _csv(table: Sequence[Sequence[Any]]) -> bytes:
    lines: list[str] = []
    # With this line end both of its characters are quoted in fields, as the export does it.
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n").writerows(table)
    return "".join(f"{line[:-2]}\n" for line in lines).encode()
