"""One process that recognises images with an engine itself: no queue, no service, no worker.

Started by `contest.py`, with the setting as JSON in its first argument and the file that lists the images, as JSON
too, in its second. It loads the `decimer` package, or the prepared model, recognises one image to be warm, says that it
is ready and what it has loaded, and then recognises the images whose numbers it reads from standard input, which
several such processes share. What it says goes to standard output, a line of JSON each, in one write.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uworker.screening import DEFAULT_MAX_PIXELS, screen

NUMBER_BYTES = 4

Read = Callable[[list[str]], Sequence[str]]
"""Recognises files, and returns the SMILES of each."""


def main() -> None:
    """Recognise until there are no more images. Never returns."""
    setting = json.loads(sys.argv[1])
    images = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    # The package prints to standard output.
    reports = os.dup(1)
    os.dup2(2, 1)

    def say(report: dict[str, Any]) -> None:
        os.write(reports, json.dumps(report).encode() + b"\n")

    at_once = 1
    if setting["prepared"] is None:
        prepared = None
        read = _load_shipped(setting["threads"] if setting["one_core_per_image"] else None, images[0])
    else:
        engine = _load_prepared(setting["prepared"], setting["threads"])
        prepared = engine.prepared
        read = _alone(engine)
        if setting["batched"]:
            read, at_once = _together(engine), fair_batch(len(images), setting["readers"], engine.max_batch)
    say({"ready": os.getpid(), "prepared": prepared, "tensorflow": "tensorflow" in sys.modules})

    def recognise() -> None:
        # The kernel gives each number to one reader, whole, since all are written before the first is read.
        while numbers := os.read(0, NUMBER_BYTES * at_once):
            taken = [
                int.from_bytes(numbers[at : at + NUMBER_BYTES], "big") for at in range(0, len(numbers), NUMBER_BYTES)
            ]
            began = time.monotonic()
            answers = read([images[image] for image in taken])
            ended = time.monotonic()
            for image, smiles in zip(taken, answers, strict=True):
                say(
                    {
                        "image": image,
                        "began": began,
                        "ended": ended,
                        "characters": len(smiles),
                        "at_once": len(taken),
                    }
                )

    threads = [threading.Thread(target=recognise) for _ in range(setting["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


def fair_batch(images: int, readers: int, largest: int) -> int:
    """How many images each of the readers takes at once, so that none is left without while another has many."""
    rounds = -(-images // (readers * largest))
    return -(-images // (readers * rounds))


def _load_shipped(threads: int | None, image: str) -> Read:
    """Load the package; with TensorFlow's defaults, or with a core for each of `threads` images at once."""
    import tensorflow as tf  # noqa: PLC0415 (slow)

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    from DECIMER import decimer  # noqa: PLC0415

    decimer.load_models(printed=True, hand_drawn=False)
    decimer.predict_SMILES(image, confidence=True)
    return lambda files: [decimer.predict_SMILES(file, confidence=True)[0] for file in files]


def _load_prepared(prepared: str, threads: int) -> Any:
    """Load the prepared model as a recogniser does, which recognises an image of its own to be warm."""
    from uworker.engines.decimer import load  # noqa: PLC0415 (slow)

    return load({"prepared": prepared}, Path(os.environ["PYSTOW_HOME"]), threads)


def _alone(engine: Any) -> Read:
    return lambda files: [engine.recognise(_pixels(file)).smiles for file in files]


def _together(engine: Any) -> Read:
    def read(files: list[str]) -> list[str]:
        answers = engine.recognise_batch(_pixels(file) for file in files)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer.smiles for answer in answers]

    return read


def _pixels(file: str) -> Any:
    """Decode a file as a recogniser does."""
    screened = screen(Path(file).read_bytes(), DEFAULT_MAX_PIXELS)
    if screened.pixels is None:
        raise ValueError(f"{file}: {screened.error_message or screened.status}")
    return screened.pixels


if __name__ == "__main__":
    main()
