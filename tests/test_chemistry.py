"""What RDKit says of a SMILES, and the figures made of token probabilities."""

import math
import re

import pytest

from job_api.chemistry import Checked, check_smiles, confidence_of, is_truncated
from job_api.schemas import KnownFlag


def test_a_valid_smiles_is_described() -> None:
    checked = check_smiles("OC(=O)C")
    assert checked.is_valid
    assert checked.canonical_smiles == "CC(=O)O"
    assert checked.inchikey == "QTBSBXVTEAMEQO-UHFFFAOYSA-N"
    assert checked.normalized_smiles == "CC(=O)O"
    assert checked.formula == "C2H4O2"
    assert checked.molecular_weight == pytest.approx(60.052, abs=1e-3)
    assert checked.fragments == 1
    assert checked.flags == ()
    assert check_smiles("[Na+].[Cl-]").fragments == 2
    assert str(check_smiles("c1ccc2[nH]ccc2c1").molecular_weight) == "117.151"


@pytest.mark.parametrize(
    "smiles",
    ["C1CC", "C(C", "[X]C", "c1cccc1", "C(C)(C)(C)(C)C", "", " ", "CCO ethanol", "CCO |$a;;$|", "Ünsinn", "C\0C"],
)
def test_what_does_not_parse_is_an_answer_and_prints_nothing(smiles: str, capfd: pytest.CaptureFixture[str]) -> None:
    checked = check_smiles(smiles)
    assert not checked.is_valid
    assert checked == Checked(is_valid=False, normalized_smiles=checked.normalized_smiles, flags=checked.flags)
    assert capfd.readouterr() == ("", "")


def test_a_structure_with_a_star_has_no_inchikey() -> None:
    checked = check_smiles("*c1ccccc1")
    assert checked.is_valid
    assert checked.canonical_smiles == "*c1ccccc1"
    assert checked.inchikey is None
    assert checked.formula == "C6H5*"
    assert (checked.molecular_weight, checked.fragments) == (None, 1)


@pytest.mark.parametrize(
    ("smiles", "normalized"),
    [
        ("[R1]c1ccccc1", "*c1ccccc1"),
        ("[R']C([X])[R12']", "*C(*)*"),
        ("C[N+](C)(C)C.[X-]", "C[N+](C)(C)C.[*-]"),
        ("[Ar]C(=O)O", "*C(=O)O"),
        ("[Ar2]C[Y1]", "*C*"),
        ("[R1a]C([Rc])[R2b']", "*C(*)*"),
        ("[Rx+]C", "[*+]C"),
        ("[1*]C[*:2]", "*C*"),
        ("[13CH3][CH2:1]O", "[13CH3][CH2:1]O"),
        ("[Y]C", "[CH3][Y]"),
        ("[R1]c1cccc1", None),
        ("[R1]C(C", None),
        ("[R1]C |$a$|", None),
        ("[D]C", None),
        ("[Rn1]C", "*C"),
        ("[Rn]C", None),
    ],
)
def test_r_groups_are_stars_in_the_normalized_smiles_alone(smiles: str, normalized: str | None) -> None:
    checked = check_smiles(smiles)
    assert checked.normalized_smiles == normalized
    assert checked.canonical_smiles is None or checked.is_valid
    if checked.is_valid and "*" in smiles:
        assert checked.canonical_smiles != normalized


@pytest.mark.parametrize(
    ("numbered", "normalized"),
    [
        ("[1*][C@H](O)[2*]", "*C(*)O"),
        ("[1*][C@](F)([2*])Cl", "*C(*)(F)Cl"),
        ("[1*]/C=C(/[2*])[3*]", "*C=C(*)*"),
        ("[1*]/C=C/[C@H](O)/C=C/[2*]", "*/C=C/C(O)/C=C/*"),
        ("[1*][C@H](F)[C@@H](O)[C@@H](F)[2*]", "*[C@H](F)C(O)[C@H](*)F"),
        ("[1*][C@H](O)C[2*]", "*C[C@H](*)O"),
        ("[1*]/C=C/[2*]", "*/C=C/*"),
        ("[1*][C@H]1C[C@@H]([2*])C1", "*[C@H]1C[C@@H](*)C1"),
    ],
)
def test_groups_that_only_their_numbers_tell_apart_make_no_stereo(numbered: str, normalized: str) -> None:
    spellings = [
        numbered,
        re.sub(r"\[(\d)\*]", r"[*:\1]", numbered),
        re.sub(r"\[(\d)\*]", r"[R\1]", numbered),
        normalized,
    ]
    assert [check_smiles(smiles).normalized_smiles for smiles in spellings] == [normalized] * len(spellings)


@pytest.mark.parametrize(
    ("smiles", "flag"),
    [
        ("*CC", "has_rgroup"),
        ("[R1]CC", "has_rgroup"),
        ("[R]CC", "has_rgroup"),
        ("[X]CC", "has_rgroup"),
        ("[Pb]c1ccccc1", "rare_element"),
        ("[Y]C", "rare_element"),
        ("[W]C", "rare_element"),
        ("C[Ra]", "rare_element"),
        ("C[Rb]", "rare_element"),
        ("C[Rh]", None),
        ("C[Rc]", "has_rgroup"),
        ("C[R1a]", "has_rgroup"),
        ("[2H]C([2H])([2H])[2H]", None),
        ("[13CH3][13CH2][13CH2][13CH3]", "isotope_run"),
        ("[13CH3][13CH2][13CH2][13CH3", None),
        ("[2H][3H][2H][3H][XX]", "isotope_run"),
        ("C.C.C.C.C", "many_fragments"),
        ("C.C.C.C", None),
        ("[Na+].[Cl-]", None),
        ("C[Si](C)(C)Cl", None),
        ("[Fe].[Cu]", None),
    ],
)
def test_flags(smiles: str, flag: str | None) -> None:
    assert check_smiles(smiles).flags == (() if flag is None else (KnownFlag(flag),))


def test_a_misread_element_and_a_group_at_once() -> None:
    assert check_smiles("[Ar]C(=O)O").flags == ("has_rgroup", "rare_element")
    for group in ("[Y1]", "[W2']", "[R1]", "[Ar1]", "[Y1+]", "[Ra1]", "[Rh2']"):
        assert check_smiles(f"{group}CC").flags == ("has_rgroup",)


def test_a_very_long_smiles_is_judged() -> None:
    checked = check_smiles("C" * 4000)
    assert checked.is_valid
    assert checked.canonical_smiles == "C" * 4000
    too_long = check_smiles("C" * 4001)
    assert (too_long.canonical_smiles, too_long.normalized_smiles, too_long.fragments) == (None, None, 1)


def test_confidence_is_the_geometric_mean_in_float64() -> None:
    confidence = confidence_of([0.5, 0.125, 1.0])
    assert confidence.geometric_mean == pytest.approx((0.5 * 0.125) ** (1 / 3), rel=1e-15)
    assert confidence.mean == pytest.approx(1.625 / 3, rel=1e-15)
    assert confidence.minimum == 0.125
    assert confidence.n_tokens == 3


def test_confidence_does_not_underflow_over_many_tokens() -> None:
    assert confidence_of([1e-30] * 400).geometric_mean == pytest.approx(1e-30, rel=1e-9)


def test_confidence_stays_a_probability() -> None:
    confidence = confidence_of([1.0000001, 1.0])
    assert (confidence.geometric_mean, confidence.mean, confidence.minimum) == (1.0, 1.0, 1.0)
    assert confidence_of([0.0, 1.0]).geometric_mean == 0.0


@pytest.mark.parametrize("probabilities", [[], [math.nan, 1.0], [math.inf]])
def test_no_confidence_where_there_is_no_number(probabilities: list[float]) -> None:
    confidence = confidence_of(probabilities)
    assert (confidence.geometric_mean, confidence.mean, confidence.minimum) == (None, None, None)
    assert confidence.n_tokens == len(probabilities)


def test_truncated_is_where_the_tokens_are_not_the_smiles() -> None:
    assert not is_truncated("CCl", [("C", 0.9), ("Cl", 0.8)])
    assert is_truncated("CClC", [("C", 0.9), ("Cl", 0.8)])
    assert is_truncated("", []) is None
