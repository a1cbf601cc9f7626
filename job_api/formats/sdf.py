"""Results as an SDF, by RDKit: structures with computed 2D coordinates, and the columns as data fields.

Rows without a structure are left out and counted; an SDF has no place for a remark, so the counts are a field of its
last record.
"""

import re
from collections.abc import Iterator, Sequence

from rdkit import Chem
from rdkit.Chem import rdDepictor

from job_api.chemistry import check_smiles, parse
from job_api.formats import About, Counts, Outbox
from job_api.formats.rows import Row, rows, text
from job_api.smi import best_smiles, name, why_not

MAX_TITLE_CHARS = 80
COORDINATES = "computed by RDKit, not from the image"
STEREO_LOST = "not held by the coordinates; see the SMILES"

# What was computed of the engine's answer, which a record of a correction is not of.
_OF_THE_ANSWER = frozenset(
    {
        *("is_valid", "canonical_smiles", "normalized_smiles", "inchikey", "inchikey_first_block"),
        *("formula", "molecular_weight", "fragments", "flags", "agreement"),
    }
)

# A field is one line here, which neither ends the record nor begins another field; a blank line would end it.
_UNSAFE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]|\\A[\\s>$]")


class StructuresFile:
    """Writes SDF."""

    def __init__(self, about: About, sink: Outbox) -> None:
        self.counts = Counts()
        self._columns = about.columns
        self._sink = sink
        # The last record is held back: it takes the counts.
        self._last = ""

    def write(self, lines: Sequence[bytes]) -> None:
        """Take in rows."""
        for row in rows(lines):
            try:
                record = self._record(row)
            except _LeftOut as why:
                self.counts.dropped[str(why)] += 1
                continue
            self.counts.rows += 1
            self._end_record()
            self._last = record

    def finish(self, next_since: int) -> Iterator[None]:
        """Write the last record, with the counts."""
        self._last += _field("EXPORT_COUNTS", str(self.counts))
        self._last += _field("EXPORT_NEXT_SINCE", str(next_since))
        if self.counts.rows:
            self._end_record()
        yield

    def _end_record(self) -> None:
        if self._last:
            self._sink.write(f"{self._last}$$$$\n".encode())

    def _record(self, row: Row) -> str:
        molecule, source = _structure(row)
        molecule.SetProp("_Name", _title(row))
        try:
            block, stereo_held = _drawn(molecule)
        except (RuntimeError, ValueError):
            raise _LeftOut("RDKit cannot draw the structure") from None
        hidden = _OF_THE_ANSWER if row["corrected_smiles"] is not None else frozenset()
        fields = "".join(
            _field(column, text(column, row[column]))
            for column in self._columns
            if row[column] is not None and column not in hidden
        )
        stereo = "" if stereo_held else _field("STEREO", STEREO_LOST)
        return block + fields + _field("STRUCTURE_FROM", source) + _field("COORDINATES", COORDINATES) + stereo


class _LeftOut(Exception):
    """Why a row has no record."""


def _structure(row: Row) -> tuple[Chem.Mol, str]:
    """A row's structure and the column it is of: a person's SMILES or else the engine's, or with `*` for R-groups."""
    best = best_smiles(row)
    if best is None:
        raise _LeftOut(why_not(row))
    is_corrected = row["corrected_smiles"] is not None
    source = "corrected_smiles" if is_corrected else "smiles"
    if (molecule := parse(best)) is not None:
        return molecule, source
    normalized = check_smiles(best).normalized_smiles if is_corrected else row["normalized_smiles"]
    if normalized and (molecule := parse(normalized)) is not None:
        return molecule, source if is_corrected else "normalized_smiles"
    raise _LeftOut("RDKit cannot parse the SMILES")


def _drawn(molecule: Chem.Mol) -> tuple[str, bool]:
    """The block of a structure, and whether its stereochemistry can be read from it."""
    block = _laid_out(molecule)
    if _says(block, molecule):
        return block, True
    # The other way of drawing lays bridged rings out with fewer atoms above each other, in more time.
    rdDepictor.SetPreferCoordGen(True)
    try:
        other = _laid_out(molecule)
    finally:
        rdDepictor.SetPreferCoordGen(False)
    return (other, True) if _says(other, molecule) else (block, False)


def _laid_out(molecule: Chem.Mol) -> str:
    drawn = Chem.Mol(molecule)
    rdDepictor.Compute2DCoords(drawn)
    # V3000 by itself where there are more atoms than V2000 can number.
    return Chem.MolToMolBlock(drawn)


def _says(block: str, molecule: Chem.Mol) -> bool:
    read = Chem.MolFromMolBlock(block)
    return read is not None and Chem.MolToSmiles(read) == Chem.MolToSmiles(molecule)


def _title(row: Row) -> str:
    title = _safe(name(row))
    # The end of a path says most.
    return title if len(title) <= MAX_TITLE_CHARS else "…" + title[-(MAX_TITLE_CHARS - 1) :]


def _field(name: str, value: str) -> str:
    return f"> <{name}>\n{_safe(value)}\n\n" if value else ""


def _safe(value: str) -> str:
    return _UNSAFE.sub(lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()), value)
