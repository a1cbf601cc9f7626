"""What an export asks the database: which rows, which columns, how written.

COPY takes no parameters, so what was asked for becomes part of a statement. Of what came with a request that is, ever:
numbers; words that `_words` lets through; and a text in hexadecimal digits. A directory is looked up first and stands
here as the id of its job.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from job_api import columns
from job_api.schemas import DEFAULT_COLUMNS, ExportFormat, ResultFilter

# Where a page ends: answered from the index alone where the table is vacuumed.
PAGE_END = """
SELECT count(*) AS rows, max(seq) AS last FROM (
    SELECT r.seq FROM results r WHERE {scope} AND r.seq > $1 AND r.seq <= $2 ORDER BY r.seq LIMIT $3) page
"""
PAGE = """
SELECT {fields} FROM {joined}
WHERE {scope} AND r.seq > {since} AND r.seq <= {until}{filters} ORDER BY r.seq
"""
PAGE_OF_JSON = "SELECT row_to_json(row) FROM ({page}) row"

# What stands in no line of an SMI: control characters, and what else is taken for the end of a line.
_BREAKING = r"\u0001-\u001f\u007f-\u009f\u2028\u2029"
_SMI_NAME = rf"regexp_replace(j.directory || '/' || r.image, '[{_BREAKING}]', ' ', 'g')"
_NO_SPACE = rf"!~ '[{_BREAKING}\s]'"
# What a person put in the engine's place.
_BEST_SMILES = "coalesce(w.corrected_smiles, r.smiles)"
# What was said of another answer than there is now says nothing of this one; a correction is of the image.
_REVIEW_STATUS = (
    "CASE WHEN w.review_status <> 'corrected' AND w.reviewed_smiles IS DISTINCT FROM r.smiles THEN 'none' "
    "ELSE coalesce(w.review_status, 'none') END"
)
_NOT_REJECTED = f"{_REVIEW_STATUS} <> 'rejected'"


@dataclass(frozen=True)
class Selection:
    """Which rows, how written.

    Args:
        project_id: of this project.
        export_format: how.
        names: columns, where the format has any.
        wanted: the filters; `directory` and `since` are not looked at.
        job_id: of this job alone.
        through_job: whether the rows are found through the job.
        reviewed: whether any row of the project was reviewed.
        several_engines: whether rows may be of several engines.
    """

    project_id: int
    export_format: ExportFormat
    names: tuple[str, ...] = DEFAULT_COLUMNS
    wanted: ResultFilter = field(default_factory=ResultFilter)
    job_id: int | None = None
    through_job: bool = False
    reviewed: bool = True
    several_engines: bool = True

    @property
    def scope(self) -> str:
        """The condition whose index is walked."""
        if self.through_job and self.job_id is not None:
            return f"r.job_id = {int(self.job_id)}"
        return f"r.project_id = {int(self.project_id)}"

    def page(self, since: int, until: int) -> str:
        """The statement that reads the rows above `since` up to `until`."""
        page = PAGE.format(
            fields=self._fields,
            joined=self._joined,
            scope=self.scope,
            since=int(since),
            until=int(until),
            filters="".join(f" AND {condition}" for condition in self._conditions),
        )
        return PAGE_OF_JSON.format(page=page) if self.export_format is ExportFormat.JSONL else page

    @property
    def _empty(self) -> set[str]:
        return {*(() if self.reviewed else columns.REVIEW), *(() if self.several_engines else ("agreement",))}

    @cached_property
    def _fields(self) -> str:
        match self.export_format:
            case ExportFormat.CSV:
                return columns.select_list_of_csv(self.names, self._empty)
            case ExportFormat.SMI:
                return f"{_BEST_SMILES if self.reviewed else 'r.smiles'} || chr(9) || {_SMI_NAME}"
            case _:
                # JSONL, of which all other formats are made.
                return columns.select_list(self.names, self._empty)

    @cached_property
    def _joined(self) -> str:
        is_smi = self.export_format is ExportFormat.SMI
        needed = {"directory", *columns.REVIEW} if is_smi else set(self.names)
        if self.wanted.text is not None:
            needed.add("directory")
        if self.wanted.review_status is not None:
            needed.add("review_status")
        return columns.joined(needed - self._empty)

    @cached_property
    def _conditions(self) -> list[str]:
        wanted = self.wanted
        conditions = []
        if self.job_id is not None and not self.through_job:
            # The sum keeps the planner from the index of the job, which is not in the order of `seq`.
            conditions.append(f"r.job_id + 0 = {int(self.job_id)}")
        if wanted.status is not None:
            conditions.append(f"r.status IN ({_words(wanted.status)})")
        if wanted.text is not None:
            conditions.append(f"position({_text(wanted.text)} IN j.directory) > 0")
        if wanted.engine is not None:
            conditions.append(f"r.engine = {_words([wanted.engine])}")
        if wanted.min_confidence is not None:
            conditions.append(f"r.confidence >= {float(wanted.min_confidence)!r}::float8")
        if wanted.flag is not None:
            conditions.append(f"r.flags && ARRAY[{_words(wanted.flag)}]::text[]")
        if wanted.without_flag is not None:
            conditions.append(f"NOT r.flags && ARRAY[{_words(wanted.without_flag)}]::text[]")
        if wanted.valid is not None:
            conditions.append(f"r.is_valid = {'true' if wanted.valid else 'false'}")
        if wanted.review_status is not None:
            said = _REVIEW_STATUS if self.reviewed else "'none'"
            conditions.append(f"{said} IN ({_words(wanted.review_status)})")
        if wanted.agreement is not None:
            said = f"({columns.AGREEMENT})" if self.several_engines else "NULL"
            conditions.append(f"{said} IN ({_words(wanted.agreement)})")
        if self.export_format is ExportFormat.SMI:
            conditions += self._conditions_of_smi()
        return conditions

    def _conditions_of_smi(self) -> list[str]:
        if not self.reviewed:
            return [f"r.smiles {_NO_SPACE}"]
        return [f"{_BEST_SMILES} {_NO_SPACE}", _NOT_REJECTED]


def _words(words: Iterable[str]) -> str:
    """Words as SQL texts.

    Raises:
        ValueError: one holds more than letters, digits, underscores and hyphens.
    """
    listed = [str(word) for word in words]
    for word in listed:
        if re.fullmatch(r"[A-Za-z0-9_-]+", word, re.ASCII) is None:
            raise ValueError(f"{word!r} is no word")
    return ", ".join(f"'{word}'" for word in listed)


def _text(text: str) -> str:
    """Any text as SQL that holds nothing of it but hexadecimal digits."""
    return f"convert_from(decode('{text.encode().hex()}', 'hex'), 'UTF8')"
