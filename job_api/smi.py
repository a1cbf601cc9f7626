"""The SMI format: which SMILES stands for a row, and its line. What the service does with SQL (`export_sql.py`)."""

import re
from collections.abc import Mapping
from typing import Any

from job_api.schemas import ReviewStatus

COLUMNS = ("directory", "image", "smiles", "corrected_smiles", "review_status", "review_outdated")
"""What `line` looks at."""

# Control characters, and what else is taken for the end of a line.
_BREAKING = "\x01-\x1f\x7f-\x9f\u2028\u2029"
_IN_NAMES = re.compile(f"[{_BREAKING}]")
_IN_SMILES = re.compile(rf"[{_BREAKING}\s]")


def best_smiles(row: Mapping[str, Any]) -> str | None:
    """What a person put in the engine's place, or else what the engine says; none where a person rejected that."""
    if row["corrected_smiles"] is not None:
        corrected: str = row["corrected_smiles"]
        return corrected
    if row["review_status"] == ReviewStatus.REJECTED and not row["review_outdated"]:
        return None
    smiles: str | None = row["smiles"]
    return smiles


def has_space(smiles: str) -> bool:
    """Whether white space is in it, at which a SMILES ends for those who read it."""
    return _IN_SMILES.search(smiles) is not None


def name(row: Mapping[str, Any]) -> str:
    """The path of a row's image with its directory, on one line."""
    return _IN_NAMES.sub(" ", f"{row['directory']}/{row['image']}")


def why_not(row: Mapping[str, Any]) -> str:
    """Why a row has no line."""
    if best_smiles(row) is not None:
        return "white space in the SMILES"
    return "rejected by a review" if row["smiles"] is not None else "no SMILES"


def line(row: Mapping[str, Any]) -> str | None:
    """The line of a row: SMILES, tab, name; none where there is no SMILES, or none that a line can hold."""
    smiles = best_smiles(row)
    return None if smiles is None or has_space(smiles) else f"{smiles}\t{name(row)}\n"
