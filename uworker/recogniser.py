"""A recogniser process: loads one engine and answers images, one JSON row each. Knows nothing but images.

The supervisor starts it as `python -m uworker.recogniser FD`, FD being its end of a socket pair. Over the socket go
whole messages, framed by `multiprocessing.connection.Connection` and never pickled:

- in: the configuration (JSON), then for each image a header `{"task_id": 1}` and after it the file's bytes;
- out: `{"kind": "ready", "run": {...}}` or `{"kind": "cannot_load", "message": "..."}`, then for each image
  `{"kind": "started", "task_id": 1}` before it is touched and `{"kind": "finished", "task_id": 1, "row": {...}}`, which
  where something was raised over the image has the fields of `tasks.Fault` in `fault`, for the log. `{"kind": "alive"}`
  once a second: one that is missing tells that native code keeps Python from running.

When the socket closes, the process ends at once: it never outlives its supervisor.
"""

import ctypes
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job_api.text import MAX_SMILES_CHARS, MAX_TRACEBACK_CHARS, clean_text
from uworker.noise import quieten

if TYPE_CHECKING:
    from uworker.engines import Engine

ALIVE_SECONDS = 1.0

EXIT_STOPPED = 0
EXIT_CRASHED = 1
EXIT_CANNOT_LOAD = 3

_PR_SET_PDEATHSIG = 1
_MAX_CHAIN = 10

Tasks = queue.SimpleQueue[tuple[int, bytes]]


class Channel:
    """The socket to the supervisor; several threads may send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; ends the process where nobody listens any more."""
        try:
            with self._lock:
                self._connection.send_bytes(json.dumps(message, allow_nan=False).encode())
        except OSError:
            os._exit(EXIT_STOPPED)

    def read_tasks(self, tasks: Tasks) -> None:
        """Put tasks into the queue until the supervisor closes the socket or dies, and then end the process."""
        try:
            while True:
                header = json.loads(self._connection.recv_bytes())
                tasks.put((header["task_id"], self._connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(EXIT_STOPPED)


def main(argv: list[str]) -> None:
    """Serve the socket whose file descriptor is `argv[1]`. Never returns."""
    _leave_signals_to_the_supervisor()
    quieten()
    descriptor = int(argv[1])
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    try:
        config = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(EXIT_STOPPED)
    channel = Channel(connection)
    tasks: Tasks = queue.SimpleQueue()
    threading.Thread(target=channel.read_tasks, args=(tasks,), daemon=True).start()
    engine = _load_or_exit(config, channel)
    threads = [
        threading.Thread(target=_serve, args=(engine, config["max_pixels"], tasks, channel))
        for _ in range(config["threads"])
    ]
    for thread in threads:
        thread.start()
    run = {"engine": engine.name, "engine_version": engine.version}
    run |= {"weights": engine.weights, "weights_sha256": engine.weights_sha256}
    channel.send({"kind": "ready", "run": run})
    while True:
        time.sleep(ALIVE_SECONDS)
        channel.send({"kind": "alive"})


def _leave_signals_to_the_supervisor() -> None:
    # A Ctrl-C reaches the whole process group, but only the parent may say when a recogniser ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        # The socket's end tells of the parent's death too, but not while native code keeps Python from reading it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _load_or_exit(config: dict[str, Any], channel: Channel) -> "Engine":
    try:
        # Imported here so that a broken installation is told to the supervisor like any engine that will not load.
        from uworker import chemistry, screening  # noqa: PLC0415
        from uworker.engines import find_loader  # noqa: PLC0415

        screening.silence_warnings()
        chemistry.check_smiles("C")
        return find_loader(config["engine"])(config["engine_options"], Path(config["weights_home"]), config["threads"])
    except Exception as error:  # noqa: BLE001 (whatever it is: the engine cannot be used)
        traceback.print_exc()
        sys.stderr.flush()
        channel.send({"kind": "cannot_load", "message": clean_text(f"{type(error).__name__}: {error}")})
        os._exit(EXIT_CANNOT_LOAD)


def _serve(engine: "Engine", max_pixels: int, tasks: Tasks, channel: Channel) -> None:
    """Answer images until the process ends."""
    try:
        while True:
            task_id, data = tasks.get()
            channel.send({"kind": "started", "task_id": task_id})
            channel.send(_finish(engine, task_id, data, max_pixels))
    except BaseException:  # noqa: BLE001 (a thread that ended alone would leave its image unanswered)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(EXIT_CRASHED)


def _finish(engine: "Engine", task_id: int, data: bytes, max_pixels: int) -> dict[str, Any]:
    """Return the message that says what became of an image."""
    # Written out at once: an exception holds on to the image's pixels.
    faults: list[dict[str, str]] = []
    row = recognise(engine, data, max_pixels, lambda error: faults.append(_fault(error)))
    message = {"kind": "finished", "task_id": task_id, "row": row}
    return message | {"fault": faults[0]} if faults else message


def recognise(engine: "Engine", data: bytes, max_pixels: int, on_error: Callable[[Exception], None]) -> dict[str, Any]:
    """Return what becomes of one image: the fields of `schemas.NewResult` but for `image`, ready for JSON.

    What the engine or RDKit raises is told `on_error`, and is in the row in one line.
    """
    from uworker import screening  # noqa: PLC0415 (Pillow)

    began = time.monotonic()
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
    if screened.pixels is not None:
        row |= _answer(engine, screened.pixels, on_error)
    row["duration_ms"] = round((time.monotonic() - began) * 1000)
    return row


def _answer(engine: "Engine", pixels: Any, on_error: Callable[[Exception], None]) -> dict[str, Any]:
    from uworker import chemistry  # noqa: PLC0415 (RDKit)

    try:
        recognition = engine.recognise(pixels)
    except Exception as error:  # noqa: BLE001 (an engine may raise anything; it costs this image only)
        on_error(error)
        return {"status": "engine_error", "error_message": clean_text(_reason(error))}
    confidence = chemistry.confidence_of(probability for _, probability in recognition.tokens)
    truncated = chemistry.is_truncated(recognition.smiles, recognition.tokens)
    fields: dict[str, Any] = {
        "confidence": confidence.geometric_mean,
        "confidence_mean": confidence.mean,
        "confidence_min": confidence.minimum,
        "n_tokens": confidence.n_tokens,
        "truncated": truncated,
    }
    if not recognition.smiles.strip():
        return fields | {"status": "engine_error", "error_message": "the engine answered with an empty SMILES"}
    fields |= {"status": "recognised", "smiles": clean_text(recognition.smiles, MAX_SMILES_CHARS)}
    try:
        checked = chemistry.check_smiles(recognition.smiles)
    except Exception as error:  # noqa: BLE001 (the answer stands, also where RDKit fails on it)
        on_error(error)
        return fields | {"error_message": clean_text(f"RDKit: {_reason(error)}")}
    return fields | {
        "is_valid": checked.is_valid,
        "canonical_smiles": checked.canonical_smiles,
        "inchikey": checked.inchikey,
        "formula": checked.formula,
        "flags": sorted({*checked.flags, "truncated"} if truncated else checked.flags),
    }


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


if __name__ == "__main__":
    main(sys.argv)
