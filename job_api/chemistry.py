"""What RDKit and plain arithmetic say of one SMILES, which stays as it is.

Imports RDKit, so nothing imports it before it is needed: recogniser processes, those that compute rows again or write
structures, and the command that checks corrections.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rdkit import Chem, rdBase
from rdkit.Chem import Descriptors, rdMolDescriptors

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
        "H LiBeBCNOF NaMgAlSiPSCl KCaTiVCrMnFeCoNiCuZnGaGeAsSeBr SrZrMoRuRhPdAgCdInSnSbTeI CsBaGdHfReOsIrPtAuHgBi",
    )
)
"""Elements that are drawn as themselves. The rest (Pb, Y, W, Ar, Ra, Rb, Ac, Pr, Ts, ...) are mostly Ph, variables,
aryl, acetyl, propyl and tosyl misread."""

_RARE_ELEMENTS = {Chem.GetPeriodicTable().GetElementSymbol(number) for number in range(1, 119)} - COMMON_ELEMENTS
_BRACKET_SYMBOL = re.compile(r"\[\d*([A-Z][a-z]?)")
# What stands for a group: a letter that is no element, or Ar for aryl (argon bears no bond), with digits and primes or
# without (`[R]`, `[R1']`, `[X]`, `[Ar]`); Y and W only with them, since alone they are elements; R also with an index
# (`[Rc]`, `[R1a]`, `[Rb2]`) that makes it no element. The charge stays.
_VARIABLE = re.compile(
    r"\[(?:(?:[AEGJLMQRXZ]|Ar)[\d']*|[YW][\d']+|R(?:\d+[a-z]|[cdi-mo-qstv-z]|[a-z](?=[\d']))[\d']*)((?:[+-]\d?)?)\]"
)
# With a digit or a prime it is a group for sure, and no element.
_NUMBERED_VARIABLE = re.compile(r"\[(?:[A-Z]|Ar|R[a-z])[\d']+(?:[+-]\d?)?\]")
_LABEL = r"\[\d+[A-Za-z][^\[\]]*\]"
_ISOTOPE_RUN = re.compile(rf"(?:{_LABEL}[()=#/\\\-%\d]*){{{ISOTOPE_RUN},}}")
_MAX_FORMULA_CHARS = 200


@dataclass(frozen=True)
class Checked:
    """A SMILES as RDKit sees it. Where `is_valid` is False all but `normalized_smiles` and the flags are empty.

    Attributes:
        is_valid: RDKit parses and sanitises it.
        canonical_smiles: RDKit's canonical form.
        normalized_smiles: The same with each R-group as a plain `*`, without the number of `[1*]` and `[*:1]`. In a
            SMILES that is not valid the names of groups (`[R1]`, `[X]`, `[Ar']`) become `*` first; None where it then
            is not valid either.
        inchikey: Standard InChIKey, 27 characters; None for a structure with `*`, which InChI cannot say.
        formula: Molecular formula in Hill order, with the charge.
        molecular_weight: Average mass in g/mol; of a labelled atom that of its isotope. None for a structure with `*`.
        fragments: Parts that no bond connects.
        flags: Hints that the answer deserves a look, sorted.
    """

    is_valid: bool
    canonical_smiles: str | None = None
    normalized_smiles: str | None = None
    inchikey: str | None = None
    formula: str | None = None
    molecular_weight: float | None = None
    fragments: int | None = None
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
    molecule = parse(smiles)
    if molecule is None:
        return Checked(False, normalized_smiles=_without_variables(smiles), flags=tuple(sorted(flags)))
    has_star = any(atom.GetAtomicNum() == 0 for atom in molecule.GetAtoms())
    if has_star:
        flags.add("has_rgroup")
    canonical = _stored(Chem.MolToSmiles(molecule))
    return Checked(
        is_valid=True,
        canonical_smiles=canonical,
        normalized_smiles=_with_plain_stars(molecule) if has_star else canonical,
        inchikey=None if has_star else Chem.MolToInchiKey(molecule) or None,  # type: ignore[no-untyped-call]
        formula=rdMolDescriptors.CalcMolFormula(molecule)[:_MAX_FORMULA_CHARS],
        # RDKit's sum of floats is 117.15099999999997 where its weights make 117.151.
        molecular_weight=None if has_star else round(Descriptors.MolWt(molecule), 4),  # type: ignore[attr-defined]
        fragments=len(Chem.GetMolFrags(molecule)),
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


def is_truncated(smiles: str, tokens: Sequence[tuple[str, float]]) -> bool | None:
    """Tell whether the engine stopped at its length cap; None where it gives no tokens.

    DECIMER cuts the first and the last token off the list, meaning start and end. At the cap there is no end, so a
    token of the structure is cut off, and the joined tokens differ from the SMILES.
    """
    return "".join(token for token, _ in tokens) != smiles if tokens else None


def parse(smiles: str) -> Chem.Mol | None:
    """The structure of a SMILES, or None where RDKit cannot read it."""
    # Blanks would start a name or an extension, which RDKit accepts and DECIMER never means.
    if not smiles or any(character.isspace() for character in smiles):
        return None
    parameters = Chem.SmilesParserParams()
    parameters.parseName = False  # type: ignore[assignment]  # RDKit's stubs give the property its class's type
    parameters.allowCXSMILES = False  # type: ignore[assignment]
    return Chem.MolFromSmiles(smiles, parameters)


def _without_variables(smiles: str) -> str | None:
    """Normalise what does not parse, where its variables alone are at fault."""
    replaced, count = _VARIABLE.subn(lambda match: f"[*{match[1]}]", smiles)
    molecule = parse(replaced) if count else None
    return None if molecule is None else _with_plain_stars(molecule)


def _with_plain_stars(molecule: Chem.Mol) -> str | None:
    plain = Chem.Mol(molecule)
    for atom in plain.GetAtoms():
        if atom.GetAtomicNum() == 0:
            atom.SetIsotope(0)
            atom.SetAtomMapNum(0)
    # Parsed again, for groups that only their numbers told apart make no stereocentres and no geometry any more.
    again = parse(Chem.MolToSmiles(plain))
    return None if again is None else _stored(Chem.MolToSmiles(again))


def _stored(smiles: str) -> str | None:
    return smiles if len(smiles) <= MAX_SMILES_CHARS else None


def _flags_of_text(smiles: str) -> set[str]:
    """Find what can be seen without parsing, so that an invalid SMILES has its hints too."""
    seen = {
        "has_rgroup": "*" in smiles or _VARIABLE.search(smiles) is not None,
        "isotope_run": _ISOTOPE_RUN.search(smiles) is not None,
        # By text, because many a misread [Ar] has a valence that RDKit refuses.
        "rare_element": not _RARE_ELEMENTS.isdisjoint(_BRACKET_SYMBOL.findall(_NUMBERED_VARIABLE.sub("", smiles))),
        "many_fragments": smiles.count(".") + 1 >= MANY_FRAGMENTS,
    }
    return {flag for flag, present in seen.items() if present}
