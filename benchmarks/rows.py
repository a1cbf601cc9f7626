"""Realistic content: names of directories, SMILES, and the rows a worker would send for the images of one directory."""

import hashlib
import random

from job_api.schemas import EngineRun, NewResult, ResultStatus

IMAGES_PER_JOB = 50
SMILES_CHARS = 50
RUN = EngineRun(
    engine="decimer",
    engine_version="2.8.1",
    weights="DECIMER-V2/DECIMER_model",
    weights_sha256=hashlib.sha256(b"weights").hexdigest(),
    snapshot="decimer-jobs-worker:2026-11-21",
)

_RINGS = ("c1ccc(cc1)", "C1CCN(CC1)", "C1CCC(CC1)", "c1ccc(nc1)", "c1cc(F)c(cc1)", "c1ccc(s1)")
_LINKS = ("O", "C(=O)N", "CC(C)", "S(=O)(=O)N", "C(=O)O", "CC[C@@H](O)", "NC(=O)")
_COMPOUNDS = ("Aconitine", "Berberine", "Colchicine", "Digoxin", "Emetine", "Galanthamine", "Hyoscyamine", "Ibogaine")
_AUTHORS = ("Abramowitz", "Bäcker", "Chen", "Dvořák", "Eriksson", "Fernández", "García", "Hofmann", "Ito", "Jørgensen")


def smiles(number: int) -> str:
    """A SMILES of about 60 characters; the same for the same number."""
    choose = random.Random(number)
    text = "C"
    while len(text) < SMILES_CHARS:
        text += choose.choice(_LINKS) + choose.choice(_RINGS)
    return text + "C"


def inchikey(number: int) -> str:
    """A text in the form of an InChIKey."""
    choose = random.Random(number)
    letters = "".join(chr(65 + choose.randrange(26)) for _ in range(22))
    return f"{letters[:14]}-{letters[14:]}SA-N"


def formula(number: int) -> str:
    """A molecular formula."""
    return f"C{18 + number % 17}H{20 + number % 23}FN{1 + number % 5}O{2 + number % 7}S"


def directory(number: int) -> str:
    """A directory's name as the first load has them; another one for each number."""
    author = _AUTHORS[number // 40 % len(_AUTHORS)]
    compound = _COMPOUNDS[number // 400 % len(_COMPOUNDS)]
    return f"{compound} {number // 3200} ({author} {1950 + number % 70})/output {number % 40}"


def image(number: int) -> str:
    """The path of an image in its directory."""
    return f"output/sequence_{number:02}_left.png"


def recognised(number: int) -> NewResult:
    """A row as a worker makes it of a recognised image."""
    choose = random.Random(number)
    text = smiles(number)
    confidence = choose.uniform(0.7, 0.999)
    return NewResult(
        image=image(number),
        status=ResultStatus.RECOGNISED,
        image_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        width=choose.randrange(200, 900),
        height=choose.randrange(150, 700),
        frames=1,
        smiles=text,
        confidence=confidence,
        confidence_mean=confidence * 0.998,
        confidence_min=confidence * 0.6,
        n_tokens=choose.randrange(35, 60),
        truncated=False,
        is_valid=True,
        canonical_smiles=text,
        inchikey=inchikey(number),
        formula=formula(number),
        flags=["has_rgroup"] if number % 20 == 7 else [],
        normalized_smiles=text,
        molecular_weight=250 + number % 29_983 / 100,
        fragments=1,
        duration_ms=choose.randrange(300, 1500),
    )
