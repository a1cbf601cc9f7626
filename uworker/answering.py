"""What becomes of images, one by one or several that an engine is handed at once.

Owns the rows that a recogniser says, and the order in which the images of a batch are taken up. Knows no socket.
Imported in recogniser processes only.
"""

import hashlib
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from job_api import chemistry
from job_api.text import MAX_SMILES_CHARS, MAX_TOKEN_CHARS, MAX_TOKENS, MAX_TRACEBACK_CHARS, clean_text
from uworker import screening
from uworker.engines import BatchEngine, Engine, EngineError, EngineTimeout, Pixels, Recognition, takes_batches

_MAX_CHAIN = 10

Task = tuple[int, bytes]
"""An image's id and its file's bytes."""
Send = Callable[[dict[str, Any]], None]
"""Tells the supervisor something."""


class WrongAnswerError(EngineError):
    """An engine has answered a batch with too few or too many recognitions."""


@dataclass
class _Taken:
    """An image of a batch that the engine has the pixels of; its row so far, and the seconds that it cost."""

    task_id: int
    data: bytes
    row: dict[str, Any]
    seconds: float


def answer(engine: Engine, tasks: Sequence[Task], max_pixels: int, send: Send) -> None:
    """Send of each image that it is started, before it is touched, and what has become of it."""
    if takes_batches(engine) and len(tasks) > 1:
        _answer_together(engine, tasks, max_pixels, send)
        return
    for task_id, data in tasks:
        send({"kind": "started", "task_id": task_id})
        faults = _Faults()
        send(_finished(task_id, recognise(engine, data, max_pixels, faults.note), faults))


def max_batch_of(engine: Engine) -> int:
    """Return how many images an engine is handed at once at most."""
    return max(engine.max_batch, 1) if takes_batches(engine) else 1


def recognise(engine: Engine, data: bytes, max_pixels: int, on_error: Callable[[Exception], None]) -> dict[str, Any]:
    """Return what becomes of one image: the fields of `schemas.NewResult` but for `image`, ready for JSON.

    What the engine or RDKit raises is told `on_error`, and is in the row in one line.
    """
    began = time.monotonic()
    row, pixels = _look_at(engine, data, max_pixels)
    if pixels is not None:
        row |= _fields_of(_ask(engine, pixels), on_error)
    row["duration_ms"] = _milliseconds(time.monotonic() - began)
    return row


# --- a batch ---------------------------------------------------------------------------------------------------------


def _answer_together(engine: BatchEngine, tasks: Sequence[Task], max_pixels: int, send: Send) -> None:
    """Hand images to the engine at once, and again those that it has not taken.

    An image's `duration_ms` is what it took alone, its decoding and the check of its SMILES, and an equal share of what
    the engine took for all: those of a batch come to the time that the thread spent on it.
    """
    waiting = deque(tasks)
    while waiting:
        pictures = _Pictures(engine, waiting, max_pixels, send)
        began, faults = time.monotonic(), _Faults()
        answers = _ask_for_all(engine, pictures, faults.note)
        taken = pictures.close()
        together = time.monotonic() - began - pictures.seconds
        for each in taken:
            each.seconds += together / len(taken)
        if answers is None:
            _answer_alone(engine, taken, faults, max_pixels, send)
            continue
        for each, recognition in zip(taken, answers, strict=True):
            began, faults = time.monotonic(), _Faults()
            each.row |= _fields_of(recognition, faults.note)
            each.row["duration_ms"] = _milliseconds(each.seconds + time.monotonic() - began)
            send(_finished(each.task_id, each.row, faults))


def _answer_alone(engine: Engine, taken: Sequence[_Taken], faults: "_Faults", max_pixels: int, send: Send) -> None:
    """Take up each image of a batch again, of which the engine has answered none; the first that goes well tells why.

    What went wrong may lie in one of them, or in their being many, as where there is no memory for all.
    """
    for each in taken:
        send({"kind": "started", "task_id": each.task_id})
        own = _Faults()
        row = recognise(engine, each.data, max_pixels, own.note)
        row["duration_ms"] += _milliseconds(each.seconds)
        if own.first is None:
            own, faults = faults, _Faults()
        send(_finished(each.task_id, row, own))


class _Pictures(Iterator[Pixels]):
    """The pixels of images, each decoded when it is asked for; of those without any the row is sent at once.

    It keeps no pixels, as a generator would in its frame.

    Attributes:
        seconds: What the decoding took.
    """

    def __init__(self, engine: Engine, waiting: deque[Task], max_pixels: int, send: Send) -> None:
        self._engine = engine
        self._waiting = waiting
        self._max_pixels = max_pixels
        self._send = send
        self._batch = waiting[0][0]
        self._taken: list[_Taken] = []
        self._is_closed = False
        self.seconds = 0.0

    def __next__(self) -> Pixels:
        while self._waiting and not self._is_closed:
            task_id, data = self._waiting.popleft()
            self._send({"kind": "started", "task_id": task_id, "batch": self._batch})
            began = time.monotonic()
            row, pixels = _look_at(self._engine, data, self._max_pixels)
            seconds = time.monotonic() - began
            self.seconds += seconds
            if pixels is not None:
                self._taken.append(_Taken(task_id, data, row, seconds))
                return pixels
            row["duration_ms"] = _milliseconds(seconds)
            self._send({"kind": "finished", "task_id": task_id, "row": row})
        raise StopIteration

    @property
    def count(self) -> int:
        """How many the engine has taken."""
        return len(self._taken)

    def count_at_least_one(self) -> int:
        """Take one in the engine's stead, where it has taken none and there is one; returns how many are taken."""
        if not self._taken:
            next(self, None)
        return len(self._taken)

    def close(self) -> list[_Taken]:
        """Give no more, whoever still has it, and return what was taken."""
        self._is_closed = True
        return self._taken


def _ask_for_all(
    engine: BatchEngine, pictures: _Pictures, on_error: Callable[[Exception], None]
) -> list[Recognition | Exception] | None:
    """Return the answer of each picture that was taken; at least one is, so that a round brings each batch on.

    None where they are to be recognised alone; why, is told `on_error`.
    """
    try:
        answers = list(engine.recognise_batch(pictures))
    except Exception as error:  # noqa: BLE001 (an engine may raise anything)
        # No name may keep it after this: it holds on to this frame, and to pixels.
        return _none_answered(pictures, error, on_error)
    if len(answers) == pictures.count > 0:
        return answers
    wrong = WrongAnswerError(f"the engine answered {len(answers)} of {pictures.count} images")
    return _none_answered(pictures, wrong, on_error)


def _none_answered(
    pictures: _Pictures, error: Exception, on_error: Callable[[Exception], None]
) -> list[Recognition | Exception] | None:
    """Say what becomes of what was taken: a single image has been alone, and the error is its answer."""
    if pictures.count == 1:
        return [error]
    if pictures.count_at_least_one() == 0:
        return []
    on_error(error)
    return None


# --- a row -----------------------------------------------------------------------------------------------------------


def _look_at(engine: Engine, data: bytes, max_pixels: int) -> tuple[dict[str, Any], Pixels | None]:
    """Decode an image; returns its row so far, and its pixels, if the engine is to see them."""
    screened = screening.screen(data, max_pixels)
    row: dict[str, Any] = {
        "engine": engine.name,
        "status": screened.status,
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "width": screened.width,
        "height": screened.height,
        "frames": screened.frames,
        "error_message": screened.error_message and clean_text(screened.error_message),
    }
    return row, screened.pixels


def _ask(engine: Engine, pixels: Pixels) -> Recognition | Exception:
    try:
        return engine.recognise(pixels)
    except Exception as error:  # noqa: BLE001 (an engine may raise anything; it costs this image only)
        return error


def _fields_of(answered: Recognition | Exception, on_error: Callable[[Exception], None]) -> dict[str, Any]:
    """Return what an answer adds to its image's row."""
    if isinstance(answered, EngineTimeout):
        return {"status": "timeout", "error_message": clean_text(str(answered))}
    if isinstance(answered, Exception):
        on_error(answered)
        return {"status": "engine_error", "error_message": clean_text(_reason(answered))}
    return _fields_of_recognition(answered, on_error)


def _fields_of_recognition(recognition: Recognition, on_error: Callable[[Exception], None]) -> dict[str, Any]:
    confidence = chemistry.confidence_of(probability for _, probability in recognition.tokens)
    truncated = chemistry.is_truncated(recognition.smiles, recognition.tokens)
    fields: dict[str, Any] = {
        "confidence": confidence.geometric_mean,
        "confidence_mean": confidence.mean,
        "confidence_min": confidence.minimum,
        "n_tokens": confidence.n_tokens,
        "truncated": truncated,
    }
    tokens = [clean_text(token) for token, _ in recognition.tokens]
    if confidence.geometric_mean is not None and _fit(tokens):
        fields["tokens"] = tokens
        fields["token_probabilities"] = [min(max(float(p), 0.0), 1.0) for _, p in recognition.tokens]
    if not recognition.smiles.strip():
        return fields | {"status": "engine_error", "error_message": "the engine answered with an empty SMILES"}
    flags = {"truncated"} if truncated else set()
    fields |= {"status": "recognised", "smiles": clean_text(recognition.smiles, MAX_SMILES_CHARS)}
    try:
        checked = chemistry.check_smiles(recognition.smiles)
    except Exception as error:  # noqa: BLE001 (the answer stands, also where RDKit fails on it)
        on_error(error)
        return fields | {"flags": sorted(flags), "error_message": clean_text(f"RDKit: {_reason(error)}")}
    return fields | {
        "is_valid": checked.is_valid,
        "canonical_smiles": checked.canonical_smiles,
        "normalized_smiles": checked.normalized_smiles,
        "inchikey": checked.inchikey,
        "formula": checked.formula,
        "molecular_weight": checked.molecular_weight,
        "fragments": checked.fragments,
        "flags": sorted(flags.union(checked.flags)),
    }


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _fit(tokens: Sequence[str]) -> bool:
    """Whether a row can have these tokens: all or none, for a part of them would be another answer's."""
    lengths = [len(token) for token in tokens]
    return len(lengths) <= MAX_TOKENS and max(lengths) <= MAX_TOKEN_CHARS and sum(lengths) <= MAX_SMILES_CHARS


# --- what was raised --------------------------------------------------------------------------------------------------


class _Faults:
    """Notes what is raised over an image. Written out at once: an exception holds on to the image's pixels."""

    def __init__(self) -> None:
        self.first: dict[str, str] | None = None

    def note(self, error: Exception) -> None:
        """Note the first of them."""
        self.first = self.first or _fault(error)


def _finished(task_id: int, row: dict[str, Any], faults: _Faults) -> dict[str, Any]:
    """Return the message that says what became of an image."""
    message = {"kind": "finished", "task_id": task_id, "row": row}
    return message | {"fault": faults.first} if faults.first else message


def _reason(error: BaseException) -> str:
    """Say what an exception says; DECIMER raises a bare `Exception('')` whose context holds the reason."""
    if not str(error) and error.__context__ is not None:
        return _reason(error.__context__)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _fault(error: BaseException) -> dict[str, str]:
    """Return the fields of `tasks.Fault`: those of one kind have the same origin, whatever they say."""
    kind = " after ".join(f"{type(e).__name__} at {_origin(e)}" for e in islice(_chain(error), _MAX_CHAIN))
    # Of a long one the end is kept: it says what happened.
    return {"kind": kind, "traceback": "".join(traceback.format_exception(error))[-MAX_TRACEBACK_CHARS:]}


def _origin(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception, and those in whose handling it arose."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
