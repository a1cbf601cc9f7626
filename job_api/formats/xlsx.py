"""Results as a workbook, by xlsxwriter: for people, and small.

Texts are cells of type text, whatever they begin with: nothing that an image or an engine says becomes a formula, a
link or a number. Rows go through temporary files below the folder that TMPDIR names.
"""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import xlsxwriter

from job_api.formats import MAX_XLSX_ROWS, TOO_MANY_FOR_XLSX, About, Counts, Outbox, TooManyRows
from job_api.formats.meanings import MEANINGS
from job_api.formats.rows import rows, text

MAX_CELL_CHARS = 32_767
# A cell's number is a float64.
_MAX_WHOLE = 2**53

_WIDTHS = {"directory": 28, "image": 28, "smiles": 48, "canonical_smiles": 48, "inchikey": 30}
_OPTIONS = {
    "constant_memory": True,
    "strings_to_formulas": False,
    "strings_to_urls": False,
    "strings_to_numbers": False,
    "nan_inf_to_errors": False,
}


class Workbook:
    """Writes XLSX."""

    def __init__(self, about: About, sink: Outbox) -> None:
        self.counts = Counts()
        self._about = about
        self._folder = tempfile.TemporaryDirectory(prefix="job-api-xlsx-")
        self._book = xlsxwriter.Workbook(sink, _OPTIONS | {"tmpdir": self._folder.name})
        self._plain, bold = self._book.add_format(), self._book.add_format({"bold": True})
        self._sheet = self._book.add_worksheet("results")
        self._sheet.freeze_panes(1, 0)
        for column, name in enumerate(about.columns):
            self._sheet.set_column(column, column, _WIDTHS.get(name, 12))
            self._sheet.write_string(0, column, name, bold)

    def write(self, lines: Sequence[bytes]) -> None:
        """Take in rows."""
        if self.counts.rows + len(lines) > MAX_XLSX_ROWS:
            self._sheet.row_data_fh.close()
            self._folder.cleanup()
            raise TooManyRows(TOO_MANY_FOR_XLSX)
        for row in rows(lines):
            self.counts.rows += 1
            for column, name in enumerate(self._about.columns):
                if (value := row[name]) not in (None, []):
                    self._write_cell(self.counts.rows, column, name, value)

    def finish(self, next_since: int) -> Iterator[None]:
        """Write the second sheet, and the file, which comes as a whole."""
        self._sheet.autofilter(0, 0, self.counts.rows, len(self._about.columns) - 1)
        second = self._book.add_worksheet("about")
        second.set_column(0, 0, 24)
        second.set_column(1, 1, 110)
        said: list[tuple[str, str]] = [
            ("project", self._about.project.name),
            ("made at", self._about.made_at.isoformat()),
            ("service version", self._about.service_version),
            ("rows", str(self.counts).removesuffix(" rows")),
            ("newer rows", f"--since {next_since}"),
            ("", ""),
            *((name, MEANINGS[name]) for name in self._about.columns),
        ]
        for row, (name, meaning) in enumerate(said):
            second.write_string(row, 0, name)
            second.write_string(row, 1, meaning)
        self._book.close()
        self._folder.cleanup()
        yield

    def _write_cell(self, row: int, column: int, name: str, value: Any) -> None:
        if isinstance(value, bool):
            self._sheet.write_boolean(row, column, value)
        elif isinstance(value, int | float) and abs(value) <= _MAX_WHOLE:
            self._sheet.write_number(row, column, value)
        else:
            self._write_text(row, column, text(name, value))

    def _write_text(self, row: int, column: int, value: str) -> None:
        if len(value) > MAX_CELL_CHARS:
            value = value[: MAX_CELL_CHARS - 1] + "…"
            self.counts.altered[f"cells cut at {MAX_CELL_CHARS:,} characters"] += 1
        if value.startswith("<r>") and value.endswith("</r>"):
            # The library would take this for XML of its own making; as a text in two parts it is not looked at.
            self._sheet.write_rich_string(row, column, value[:1], self._plain, value[1:])
        else:
            self._sheet.write_string(row, column, value)
