"""Makes a prepared model of DECIMER's weights, proves it, and puts it beside them. Needs TensorFlow and decimer."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import onnx

from uworker.engines import EngineError
from uworker.engines.decimer import import_decimer
from uworker.engines.preprocessing import preprocess
from uworker.prepared import decoder, encoder, files
from uworker.prepared.decoding import Floats, PreparedModel
from uworker.prepared.files import About, NotComparedError, Report
from uworker.prepared.graph import StructureError
from uworker.prepared.proof import Shown, compare
from uworker.prepared.shipped import Shipped
from uworker.prepared.structure import read_decoder
from uworker.prepared.versions import versions_now
from uworker.prepared.writer import FLOAT, Writer
from uworker.screening import screen
from uworker.weights import Weights, find_weights, model_directory

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        weights: The shipped weights.
        hand_drawn: Which model.
        images: Files to prove it on.
        margin, tolerance: As in `files.Report`.
    """

    weights: Weights
    hand_drawn: bool
    images: Sequence[tuple[str, Path]]
    margin: float
    tolerance: float


def prepare(wanted: Wanted, say: Say) -> Report:
    """Make, prove and put down a prepared model; what was there before is kept beside it, for workers that run.

    Where the model is not built as known here, or the proof fails, the report says so and lies there alone.

    Raises:
        NotComparedError: too few images could be compared, the weights were changed meanwhile, or it broke off.
    """
    place = files.prepared_directory(wanted.weights.home, hand_drawn=wanted.hand_drawn)
    with _alone(place, say), _replacing(place) as fresh:
        try:
            report = _make(wanted, fresh, say)
        except StructureError as error:
            report = _report(wanted, proved=False, reason=f"the model is not built as DECIMER's: {error}")
        except (NotComparedError, EngineError, OSError):
            raise
        except Exception as error:
            # TensorFlow and ONNX Runtime have errors of their own, also when interrupted; none tells of the model.
            raise NotComparedError(f"nothing is changed, for it broke off: {type(error).__name__}: {error}") from error
        now = find_weights(wanted.weights.home, hand_drawn=wanted.hand_drawn)
        if now is None or now.sha256 != wanted.weights.sha256:
            raise NotComparedError("the weights were changed meanwhile; start again")
        if not report.proved:
            for path in fresh.iterdir():
                path.unlink()
        files.write_json(fresh, files.REPORT, report)
    return report


def _make(wanted: Wanted, fresh: Path, say: Say) -> Report:
    home = wanted.weights.home
    package = import_decimer(home, threads=1)
    words = package.load_tokenizer(model_directory(home, "DECIMER") / "assets" / "tokenizer_SMILES.pkl").index_word
    say("loading the model as it is shipped, which takes up to a minute")
    try:
        shipped = Shipped(model_directory(home, files.model_name(hand_drawn=wanted.hand_drawn)))
        say("translating it")
        about = _write(shipped, fresh, words, wanted.weights)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Where something is missed that each model known here has.
        raise StructureError(f"{type(error).__name__}: {error}") from error
    sha256 = files.digest_of(fresh)
    say(f"comparing both on {len(wanted.images)} images")
    skipped: dict[str, str] = {}
    refused: list[str] = []
    model = PreparedModel(fresh, about)
    shown = _show(package, wanted.images, skipped, refused)
    original = _Package(shipped, package)
    proof = compare(original, model, shown, margin=wanted.margin, words=about.vocabulary, say=say)
    proof.faults += refused
    reason = proof.fault(wanted.tolerance)
    if reason is not None and reason == proof.lack():
        raise NotComparedError(reason)
    return _report(wanted, proved=reason is None, reason=reason, prepared=sha256, skipped=skipped, **asdict(proof))


@dataclass(frozen=True)
class _Package:
    """The model as it is shipped, and how the package spells what it says."""

    shipped: Shipped
    package: Any

    def answer(self, image: Any) -> tuple[list[int], list[float]]:
        return self.shipped.answer(image)

    def probabilities(self, image: Any, said: Sequence[int]) -> Floats:
        return self.shipped.probabilities(image, said)

    def spell(self, tokens: Sequence[int]) -> str:
        import tensorflow as tf  # noqa: PLC0415 (slow)

        return str(self.package.utils.decoder(self.package.detokenize_output(tf.constant([list(tokens)]))))


def _write(shipped: Shipped, fresh: Path, words: dict[int, str], weights: Weights) -> About:
    """Write the three files of the model."""
    parts = read_decoder(shipped.loop)
    writer = Writer()
    seen = encoder.translate(writer, shipped.outer, shipped.image, shipped.loop.seen)
    outputs = decoder.write_picture(writer, parts, seen)
    shipped.check_all_used()
    rows, columns, colours = shipped.outer.outside(shipped.image)
    onnx.save(writer.model("encoder", {"image": (FLOAT, [1, colours, rows, columns])}, outputs), fresh / files.ENCODER)
    onnx.save(decoder.write_step(parts), fresh / files.STEP)
    about = About(
        weights=weights.name,
        weights_sha256=weights.sha256,
        decimer=version("decimer"),
        vocabulary=[words.get(token) for token in range(parts.last.kernel.shape[1])],
        layers=len(parts.layers),
        heads=parts.heads,
        width=parts.width,
        start=parts.start,
        end=parts.end,
        longest=parts.longest,
        pixels=(rows, columns),
    )
    files.write_json(fresh, files.ABOUT, about)
    return about


def _show(
    package: Any, images: Sequence[tuple[str, Path]], skipped: dict[str, str], refused: list[str]
) -> Iterator[Shown]:
    """Bring images into the form that the models take, each by its own preprocessing."""
    import tensorflow as tf  # noqa: PLC0415 (slow)

    for name, path in images:
        try:
            screened = screen(path.read_bytes())
        except OSError as error:
            skipped[name] = error.strerror or str(error)
            continue
        if screened.pixels is None:
            skipped[name] = screened.error_message or str(screened.status)
            continue
        try:
            original = tf.constant(package.pre_process.decode_image(screened.pixels))
        except Exception as error:  # noqa: BLE001 (what the package cannot read is not compared)
            skipped[name] = f"{type(error).__name__}: {error}"
            continue
        try:
            ours = preprocess(screened.pixels)
        except EngineError as error:
            refused.append(f"{name} is refused ({error}), and the package reads it")
            continue
        yield Shown(name, original, ours, float(np.abs(original.numpy() - ours).max()))


def _report(wanted: Wanted, **found: Any) -> Report:
    return Report(
        weights=wanted.weights.name,
        weights_sha256=wanted.weights.sha256,
        margin=wanted.margin,
        tolerance=wanted.tolerance,
        versions=versions_now(),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        **{"prepared": None, **found},
    )


@contextmanager
def _alone(place: Path, say: Say) -> Iterator[None]:
    """Have others wait that want to put something there; what they left when they were killed is removed."""
    lock = filelock.FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"{place} is being made by another process; waiting for its end")
        lock.acquire()
    try:
        for leftover in place.parent.glob(f".{place.name}.*/"):
            shutil.rmtree(leftover)
        yield
    finally:
        lock.release()


def _is_same(one: Path, other: Path) -> bool:
    """Whether both are the same model; not where one of them is none."""
    try:
        return files.digest_of(one) == files.digest_of(other)
    except OSError:
        return False


@contextmanager
def _replacing(place: Path) -> Iterator[Path]:
    """A directory that takes the place of another when all has been written, and otherwise leaves it as it is.

    Of models that were there before, the last is kept: recognisers of running workers load it. The same one, proved
    anew, gets its new report and keeps no other.
    """
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as scratch:
        fresh = Path(scratch, "fresh")
        fresh.mkdir()
        yield fresh
        if _is_same(fresh, place):
            fresh.joinpath(files.REPORT).replace(place / files.REPORT)
            return
        if not place.joinpath(files.ENCODER).exists():
            # A report of what could not be proved.
            if place.exists():
                place.rename(Path(scratch, "replaced"))
            fresh.rename(place)
            return
        former = files.former_directory(place)
        if former.exists():
            former.rename(Path(scratch, "replaced"))
        place.rename(former)
        fresh.rename(place)
