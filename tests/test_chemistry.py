"""What RDKit says of a SMILES, and the figures made of token probabilities."""

import math

import pytest

from uworker.chemistry import check_smiles, confidence_of, is_truncated


def test_a_valid_smiles_is_described() -> None:
    checked = check_smiles("OC(=O)C")
    assert checked.is_valid
    assert checked.canonical_smiles == "CC(=O)O"
    assert checked.inchikey == "QTBSBXVTEAMEQO-UHFFFAOYSA-N"
    assert checked.formula == "C2H4O2"
    assert checked.flags == ()


@pytest.mark.parametrize(
    "smiles",
    ["C1CC", "C(C", "[X]C", "c1cccc1", "C(C)(C)(C)(C)C", "", " ", "CCO ethanol", "CCO |$a;;$|", "Ünsinn", "C\0C"],
)
def test_what_does_not_parse_is_an_answer_and_prints_nothing(smiles: str, capfd: pytest.CaptureFixture[str]) -> None:
    checked = check_smiles(smiles)
    assert not checked.is_valid
    assert (checked.canonical_smiles, checked.inchikey, checked.formula) == (None, None, None)
    assert capfd.readouterr() == ("", "")


def test_a_structure_with_a_star_has_no_inchikey() -> None:
    checked = check_smiles("*c1ccccc1")
    assert checked.is_valid
    assert checked.canonical_smiles == "*c1ccccc1"
    assert checked.inchikey is None
    assert checked.formula == "C6H5*"


@pytest.mark.parametrize(
    ("smiles", "flag"),
    [
        ("*CC", "has_rgroup"),
        ("[R1]CC", "has_rgroup"),
        ("[R]CC", "has_rgroup"),
        ("[X]CC", "has_rgroup"),
        ("[Pb]c1ccccc1", "rare_element"),
        ("[Y]C", "rare_element"),
        ("[Ar]C(=O)O", "rare_element"),
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
    assert check_smiles(smiles).flags == (() if flag is None else (flag,))


def test_a_very_long_smiles_is_judged() -> None:
    checked = check_smiles("C" * 4000)
    assert checked.is_valid
    assert checked.canonical_smiles == "C" * 4000
    assert check_smiles("C" * 4001).canonical_smiles is None


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
    assert not is_truncated("", [])
