"""Cuts a streamed results export into whole records, byte for byte as they came.

A record that arrived whole is told from the piece of one where a download broke, so that it can be taken up again
after the last whole one. Knows nothing of HTTP.
"""

import re
from collections.abc import Iterable, Iterator

from job_api.schemas import ExportFormat

Record = tuple[int | None, bytes]
"""The row's `seq` and its bytes with the line end; the heading of a CSV has no `seq`."""

_JSONL_SEQ = re.compile(rb'\s*\{\s*"seq"\s*:\s*(\d+)')
_CSV_HEADING = re.compile(rb'(?:seq|"seq")[,\r\n]')
_CSV_SEQ = re.compile(rb'"?(\d+)')


_JSONL_BEFORE_SECOND = re.compile(rb'\s*\{\s*"seq"\s*:\s*\d+\s*,\s*')


class NotARecord(ValueError):
    """A whole line came that is no row of an export."""


class CutShort(Exception):
    """The stream ended in the middle of a record."""


def whole_records(chunks: Iterable[bytes], export_format: ExportFormat) -> Iterator[Record]:
    """Yield the records of an export whose `seq` is the first field of each row.

    Raises:
        NotARecord: what came is no export.
        CutShort: the last record is not whole.
    """
    if export_format is ExportFormat.CSV:
        yield from _csv_records(_lines(chunks, rb'["s]'))
        return
    for line in _lines(chunks, rb"\s*\{"):
        yield _seq(_JSONL_SEQ, line), line


def without_seq(record: bytes, export_format: ExportFormat) -> bytes:
    """The same record, or heading, without its first field."""
    if export_format is ExportFormat.CSV:
        rest = record.partition(b",")[2]
        # An empty line is none to those who read it.
        return rest if rest.strip(b"\r\n") else b'""' + rest
    return _JSONL_BEFORE_SECOND.sub(b"{", record, count=1)


def _csv_records(lines: Iterator[bytes]) -> Iterator[Record]:
    heading = next(lines, None)
    if heading is None:
        raise CutShort("nothing came, not even a heading")
    if _CSV_HEADING.match(heading) is None:
        raise NotARecord(repr(heading[:60]))
    yield None, heading
    record = b""
    for line in lines:
        record += line
        # A line end inside quotes belongs to the field; a quote inside a field is doubled.
        if record.count(b'"') % 2 == 0:
            yield _seq(_CSV_SEQ, record), record
            record = b""
    if record:
        raise CutShort("the last row is not whole")


def _lines(chunks: Iterable[bytes], beginning: bytes) -> Iterator[bytes]:
    """Cut at line feeds alone: `str.splitlines` also cuts at U+2028 and others that a name may hold.

    A lone line without an end is the piece of an export only if it begins like one.
    """
    rest, count = b"", 0
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        count += len(lines)
        for line in lines:
            yield line + b"\n"
    if rest and count == 0 and re.match(beginning, rest) is None:
        raise NotARecord(repr(rest[:60]))
    if rest:
        raise CutShort("the last row is not whole")


def _seq(pattern: re.Pattern[bytes], record: bytes) -> int:
    match = pattern.match(record)
    if match is None:
        raise NotARecord(repr(record[:60]))
    return int(match.group(1))
