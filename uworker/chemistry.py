"""What RDKit and plain arithmetic say of one SMILES, which stays as it is. Imported in recogniser processes only."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rdkit import Chem, rdBase
from rdkit.Chem import rdMolDescriptors

from job_api.text import MAX_SMILES_CHARS

# RDKit writes its complaints to the process's stderr from C++; a SMILES that does not parse is a plain answer here.
rdBase.DisableLog("rdApp.*")

MANY_FRAGMENTS = 5
"""Parts between dots from which an answer looks invented rather than a salt or a solvate."""
ISOTOPE_RUN = 4
"""Isotope labels in a row from which an answer looks invented rather than a labelled compound."""

COMMON_ELEMENTS = frozenset(
    re.findall(
        "[A-Z][a-z]?",
        "H LiBeBCNOF NaMgAlSiPSCl KCaTiVCrMnFeCoNiCuZnGaGeAsSeBr RbSrZrMoRuRhPdAgCdInSnSbTeI CsBaGdHfWReOsIrPtAuHgBi",
    )
)
"""Elements that are drawn as themselves. The rest (Pb, Y, Ar, Ac, Pr, Ts, ...) are mostly Ph, a variable, aryl, acetyl,
propyl and tosyl misread."""

_RARE_ELEMENTS = {Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(1, 119)} - COMMON_ELEMENTS
_BRACKET_SYMBOL = re.compile(r"\[\d*([A-Z][a-z]?)")
_RGROUP = re.compile(r"\*|\[(?:R|X|Z|Q|A|G|L|M)\d*'*\]")
_LABEL = r"\[\d+[A-Za-z][^\[\]]*\]"
_ISOTOPE_RUN = re.compile(rf"(?:{_LABEL}[()=#/\\\-%\d]*){{{ISOTOPE_RUN},}}")
_MAX_FORMULA_CHARS = 200


@dataclass(frozen=True)
class Checked:
    """A SMILES as RDKit sees it. Where `is_valid` is False all but the flags are empty.

    Attributes:
        is_valid: RDKit parses and sanitises it.
        canonical_smiles: RDKit's canonical form.
        inchikey: Standard InChIKey, 27 characters; None for a structure with `*`, which InChI cannot say.
        formula: Molecular formula in Hill order, with the charge.
        flags: Hints that the answer deserves a look, sorted.
    """

    is_valid: bool
    canonical_smiles: str | None = None
    inchikey: str | None = None
    formula: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Confidence:
    """Token probabilities in three figures, each in [0, 1], or None where there are none or one is no number.

    Attributes:
        geometric_mean: exp(mean(ln p)), in float64: the likelihood of the sequence made independent of its length.
        mean: Arithmetic mean.
        minimum: The least certain token.
        n_tokens: How many there are.
    """

    geometric_mean: float | None
    mean: float | None
    minimum: float | None
    n_tokens: int


def check_smiles(smiles: str) -> Checked:
    """Parse one SMILES and say what it is; what does not parse is an answer, not an exception."""
    flags = _flags_of_text(smiles)
    molecule = _parse(smiles)
    if molecule is None:
        return Checked(is_valid=False, flags=tuple(sorted(flags)))
    symbols = {atom.GetSymbol() for atom in molecule.GetAtoms()}
    if "*" in symbols:
        flags.add("has_rgroup")
    canonical = Chem.MolToSmiles(molecule)
    return Checked(
        is_valid=True,
        canonical_smiles=canonical if len(canonical) <= MAX_SMILES_CHARS else None,
        inchikey=None if "*" in symbols else Chem.MolToInchiKey(molecule) or None,  # type: ignore[no-untyped-call]
        formula=rdMolDescriptors.CalcMolFormula(molecule)[:_MAX_FORMULA_CHARS],
        flags=tuple(sorted(flags)),
    )


def confidence_of(probabilities: Iterable[float]) -> Confidence:
    """Sum up token probabilities. Float32 softmax may say 1.0000001, which counts as 1."""
    values = [float(p) for p in probabilities]
    if not values or not all(math.isfinite(p) for p in values):
        return Confidence(None, None, None, len(values))
    values = [min(max(p, 0.0), 1.0) for p in values]
    mean_log = math.fsum(math.log(p) if p > 0 else -math.inf for p in values) / len(values)
    return Confidence(math.exp(mean_log), min(math.fsum(values) / len(values), 1.0), min(values), len(values))


def is_truncated(smiles: str, tokens: Sequence[tuple[str, float]]) -> bool:
    """Tell whether the engine stopped at its length cap.

    DECIMER cuts the first and the last token off the list, meaning start and end. At the cap there is no end, so a
    token of the structure is cut off, and the joined tokens differ from the SMILES.
    """
    return "".join(token for token, _ in tokens) != smiles


def _parse(smiles: str) -> Chem.Mol | None:
    # Blanks would start a name or an extension, which RDKit accepts and DECIMER never means.
    if not smiles or any(character.isspace() for character in smiles):
        return None
    parameters = Chem.SmilesParserParams()
    parameters.parseName = False  # type: ignore[assignment]  # RDKit's stubs give the property its class's type
    parameters.allowCXSMILES = False  # type: ignore[assignment]
    return Chem.MolFromSmiles(smiles, parameters)


def _flags_of_text(smiles: str) -> set[str]:
    """Find what can be seen without parsing, so that an invalid SMILES has its hints too."""
    seen = {
        "has_rgroup": _RGROUP.search(smiles) is not None,
        "isotope_run": _ISOTOPE_RUN.search(smiles) is not None,
        # By text, because many a misread [Ar] has a valence that RDKit refuses.
        "rare_element": not _RARE_ELEMENTS.isdisjoint(_BRACKET_SYMBOL.findall(smiles)),
        "many_fragments": smiles.count(".") + 1 >= MANY_FRAGMENTS,
    }
    return {flag for flag, present in seen.items() if present}
