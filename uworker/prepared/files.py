"""A prepared model on disk: where it lies, what belongs to it, and whether it may be used. Imports no engine.

It lies beside the shipped model, `HOME/DECIMER-V2/DECIMER_prepared`, and is used only where its report says that it was
proved to give the same answers.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

FOLDER = "DECIMER-V2"

LEAST_IMAGES, LEAST_TOKENS = 8, 50
"""Fewer prove nothing of a model."""
MOST_NEAR_TIES = 0.02
"""The share of the tokens that may be near ties; of more, they are no longer an accident of adding up."""
LEAST_READ_ALIKE = 0.5
"""The share of the images that must be read alike from the first token to the last, with no near tie on the way."""

ENCODER, STEP, ABOUT, REPORT = "encoder.onnx", "step.onnx", "model.json", "report.json"

# Between the two renames of a model that takes another's place there is none, for microseconds.
_SWAP_SECONDS = 0.1


class About(BaseModel):
    """`model.json`: what the two ONNX files do not say by themselves.

    Attributes:
        format: Version of these files.
        weights: Name of the weights, as in `weights.Weights`.
        weights_sha256: Digest of the weights that it was made of, as in `weights.find_weights`.
        decimer: Version of the package whose preprocessing and spelling are kept.
        vocabulary: The words of the tokens; null for a number that no token has.
        layers, heads, width, start, end, longest: As in `weights.Decoder`.
        pixels: Height and width of what is encoded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    weights: str
    weights_sha256: str
    decimer: str
    vocabulary: list[str | None]
    layers: int
    heads: int
    width: int
    start: int
    end: int
    longest: int
    pixels: tuple[int, int]


class Difference(BaseModel):
    """A token that the two models chose differently after the same tokens.

    Attributes:
        image: Which image.
        position: Which token, the start being 0.
        images_at_once: How many were decoded together when it happened.
        shipped, prepared: The words that they chose.
        shipped_first, shipped_second: What the shipped model itself gives its token, and the other's.
        is_near_tie: Its token is its likeliest, and these differ by less than the margin.
    """

    model_config = ConfigDict(frozen=True)

    image: str
    position: int
    images_at_once: int
    shipped: str
    prepared: str
    shipped_first: float
    shipped_second: float
    is_near_tie: bool


class Report(BaseModel):
    """`report.json`: how a prepared model was compared with the shipped one, and what came of it.

    Attributes:
        proved: It gives the same answers, but for near ties; where false, `reason` says why, and it is not used.
        prepared: Digest of the model, as `find_prepared` computes it; null where none could be made.
        weights_sha256: Digest of the shipped weights.
        margin: Two tokens whose probabilities differ by less count as a near tie.
        tolerance: By how much the probability of a token may differ.
        images: How many were compared, `images_equal` of which were read alike without being led, alone and in a batch;
            `tokens`: how many tokens they have, `tokens_equal` of which were chosen alike one image at a time, and
            `tokens_equal_batched` several at a time.
        longest_answer: How many tokens the longest answer has that was compared.
        greatest_difference: Of the probabilities of the tokens of the shipped answers.
        greatest_pixel_difference: Of the arrays that the package's preprocessing and ours make of an image.
        skipped: Images that DECIMER cannot read, with its reason.
        differences: All tokens that were chosen differently.
        faults: What else was not the same, in words.
        versions: What it was proved with, as `versions.versions_now` has it.
    """

    proved: bool
    reason: str | None
    prepared: str | None
    weights: str
    weights_sha256: str
    margin: float
    tolerance: float
    images: int = 0
    images_equal: int = 0
    tokens: int = 0
    tokens_equal: int = 0
    tokens_equal_batched: int = 0
    longest_answer: int = 0
    greatest_difference: float | None = None
    greatest_pixel_difference: float | None = None
    skipped: dict[str, str] = {}
    differences: list[Difference] = []
    faults: list[str] = []
    versions: dict[str, str] = {}
    made_at: str


class NotComparedError(Exception):
    """`uworker prepare` found nothing out, and has changed nothing; the message is one line that says why."""


class Unusable(Exception):
    """A prepared model that must not be used; the message is one line that says why and what to do."""


class Prepared(BaseModel):
    """A prepared model that may be used.

    Attributes:
        directory: Where it lies.
        about: Its `model.json`.
        sha256: Its digest.
        proved_with: `versions` of its report.
        proved_on: How many images of it.
    """

    model_config = ConfigDict(frozen=True)

    directory: Path
    about: About
    sha256: str
    proved_with: dict[str, str]
    proved_on: int


def model_name(*, hand_drawn: bool) -> str:
    """What the package calls one of its models; a key of `weights.MODEL_URLS`."""
    return "DECIMER_HandDrawn" if hand_drawn else "DECIMER"


def prepared_directory(home: Path, *, hand_drawn: bool) -> Path:
    """Where the prepared model of one of DECIMER's models lies."""
    return home / FOLDER / f"{model_name(hand_drawn=hand_drawn)}_prepared"


def prepare_command(*, hand_drawn: bool) -> str:
    """What makes the prepared model of one of DECIMER's models."""
    return "uworker prepare --hand-drawn" if hand_drawn else "uworker prepare"


def former_directory(place: Path) -> Path:
    """Where the model is kept that another one took the place of: workers that run may still need it."""
    return place.with_name(f"{place.name}_before")


def find_chosen(home: Path, sha256: str, *, hand_drawn: bool) -> Prepared:
    """Return the prepared model of that digest, also where another one has taken its place meanwhile.

    Raises:
        Unusable: it is not there, or no longer whole.
    """
    place = prepared_directory(home, hand_drawn=hand_drawn)
    why = f"the prepared model {sha256} is no longer at {place}; start this worker again"
    for directory in (place, former_directory(place)):
        try:
            found = _look(directory, hand_drawn=hand_drawn)
        except Unusable as error:
            why = str(error)
            continue
        if found is not None and found.sha256 == sha256:
            return found
    raise Unusable(why)


def find_prepared(home: Path, *, hand_drawn: bool) -> Prepared | None:
    """Return the prepared model below `home`; None where there is none.

    Raises:
        Unusable: it is broken, has files of another format, or was not proved.
    """
    place = prepared_directory(home, hand_drawn=hand_drawn)
    try:
        found = _look(place, hand_drawn=hand_drawn)
    except Unusable:
        found = None
    if found is not None:
        return found
    # Another one may have been put there just then, and whoever asks would be without it for as long as it runs.
    time.sleep(_SWAP_SECONDS)
    return _look(place, hand_drawn=hand_drawn)


def _look(directory: Path, *, hand_drawn: bool) -> Prepared | None:
    if not directory.is_dir():
        return None
    again = f"run `{prepare_command(hand_drawn=hand_drawn)}` again"
    try:
        report = Report.model_validate_json(directory.joinpath(REPORT).read_bytes())
        if not report.proved:
            raise Unusable(f"{directory} was not proved to give the same answers: {report.reason}")
        about = About.model_validate_json(directory.joinpath(ABOUT).read_bytes())
        sha256 = digest_of(directory)
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise Unusable(f"{directory} is broken or of another version ({reason}); {again}") from None
    if (sha256, about.weights_sha256) != (report.prepared, report.weights_sha256):
        raise Unusable(f"{directory} is not what its report proves; {again}")
    return Prepared(
        directory=directory, about=about, sha256=sha256, proved_with=report.versions, proved_on=report.images
    )


def is_still_there(found: Prepared) -> bool:
    """Whether the files are still those that were found; where not, what was loaded of them may be of another model."""
    try:
        return digest_of(found.directory) == found.sha256
    except OSError:
        return False


def picture_names(layers: int) -> list[str]:
    """Names of the keys and values of a picture, two for each layer."""
    return [f"picture_{kind}_{number}" for number in range(layers) for kind in ("keys", "values")]


def told_names(layers: int, when: str) -> list[str]:
    """Names of the keys and values of the tokens that were said, "before" or "after" the step, two for each layer."""
    return [f"{when}_{kind}_{number}" for number in range(layers) for kind in ("keys", "values")]


def digest_of(directory: Path) -> str:
    """The digest of a model's three files, as `digest_of_lines`."""
    return digest_of_lines({name: sha256_of(directory / name) for name in (ENCODER, STEP, ABOUT)})


def digest_of_lines(lines: Mapping[str, str]) -> str:
    r"""The sha256 over one line `PATH\0SHA256\n` for each file, sorted by path.

    Args:
        lines: The sha256 of each file, by its path.
    """
    return hashlib.sha256(b"".join(f"{path}\0{lines[path]}\n".encode() for path in sorted(lines))).hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(directory: Path, name: str, content: BaseModel) -> None:
    """Write one of the JSON files, always in the same way."""
    text = json.dumps(content.model_dump(mode="json"), ensure_ascii=False, indent=1)
    directory.joinpath(name).write_text(text + "\n", encoding="utf-8")
