"""The document that lies beside the images of a directory, `smiles_output.json`; where it is written is `targets`'s.

Its rows come in the order of the service and leave in an order that people expect, and a directory may have a million
of them: they wait in a temporary database of SQLite's, which sorts them and has a few megabytes in memory and the rest
in a file without a name.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from job_api.name_patterns import NameParts, NamePattern
from job_api.schemas import DoneResult, ResultStatus

FILE_NAME = "smiles_output.json"
CHUNK_BYTES = 256_000

_SCHEMA = "CREATE TABLE entries (sequence TEXT, name TEXT NOT NULL, file TEXT NOT NULL, entry TEXT NOT NULL)"
_ADD = "INSERT INTO entries VALUES (?, ?, ?, ?)"
_IN_ORDER = "SELECT entry FROM entries ORDER BY sequence IS NULL, sequence, name, file"


class ResultsFile:
    """The document of one directory, put together from its rows; a context that leaves nothing behind.

    Args:
        directory: the job's directory; its first part is the synthesis.
        pattern: what finds sequence, sub-sequence and part in an image's file name, if anything does.

    Attributes:
        images: how many rows were added.
    """

    def __init__(self, directory: str, pattern: NamePattern | None) -> None:
        self._synthesis = directory.partition("/")[0]
        self._pattern = pattern
        self.images = 0
        self._successful = 0
        self._newest: datetime | None = None
        # No name: a database of its own, gone when it is closed, or with the process.
        self._entries = sqlite3.connect("", isolation_level=None)
        self._entries.execute("PRAGMA journal_mode = OFF")
        self._entries.execute(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entries.close()

    def add(self, rows: Iterable[DoneResult]) -> None:
        """Add rows, in any order; each image once."""
        self._entries.execute("BEGIN")
        self._entries.executemany(_ADD, map(self._kept, rows))
        self._entries.execute("COMMIT")

    def _kept(self, row: DoneResult) -> tuple[str | None, str, str, str]:
        parts = NameParts() if self._pattern is None else self._pattern.find(row.image)
        self.images += 1
        self._successful += row.status is ResultStatus.RECOGNISED
        self._newest = row.processed_at if self._newest is None else max(self._newest, row.processed_at)
        sequence = None if parts.sequence is None else _natural(parts.sequence)
        return sequence, _natural(row.image), row.image, _json(_entry(row, parts))

    def chunks(self) -> Iterator[bytes]:
        """The document, piece by piece: UTF-8, an entry on each line."""
        head = {
            "synthesis": self._synthesis,
            "processed_at": None if self._newest is None else _rfc3339(self._newest),
            "total_images": self.images,
            "successful": self._successful,
            "failed": self.images - self._successful,
        }
        lines = [f'{_json(head)[:-1]}, "entries": [\n']
        size = 0
        for number, (entry,) in enumerate(self._entries.execute(_IN_ORDER), 1):
            lines.append(f'{{"id": {number}, {entry[1:]}{"," if number < self.images else ""}\n')
            size += len(lines[-1])
            if size >= CHUNK_BYTES:
                yield "".join(lines).encode()
                lines, size = [], 0
        lines.append("]}\n")
        yield "".join(lines).encode()


def _entry(row: DoneResult, parts: NameParts) -> dict[str, Any]:
    """What is said of an image, but its number."""
    recognised = row.status is ResultStatus.RECOGNISED
    confidence = None
    if row.confidence_mean is not None or row.confidence_min is not None:
        confidence = {"average": row.confidence_mean, "min": row.confidence_min, "per_token": _per_token(row)}
    return {
        "file": row.image,
        "sequence": parts.sequence,
        "sub_sequence": parts.sub_sequence,
        "part": parts.part,
        "smiles": row.smiles if recognised else None,
        "confidence": confidence,
        "error": None if recognised else {"status": row.status.value, "message": row.error_message},
    }


def _per_token(row: DoneResult) -> list[tuple[str, float]] | None:
    """Each token with its probability, as DECIMER gives them; None where the project does not keep them."""
    if row.tokens is None or row.token_probabilities is None:
        return None
    return list(zip(row.tokens, row.token_probabilities, strict=False))


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _natural(text: str) -> str:
    """A key by which `2` comes before `10`: each number is led by how many digits it has."""
    return re.sub(r"[0-9]+", lambda match: f"{len(match[0].lstrip('0')):04}{match[0].lstrip('0')}", text)
