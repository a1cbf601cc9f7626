"""One process that recognises images with the `decimer` package itself: no queue, no service, no worker.

Started by `contest.py`, with the setting as JSON in its first argument and the file that lists the images, as JSON
too, in its second. It loads the model, recognises one image to be
warm, says that it is ready, and then recognises the images whose numbers it reads from standard input, which several
such processes share. What it says goes to standard output, a line of JSON each, in one write.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

NUMBER_BYTES = 4


def main() -> None:
    """Recognise until there are no more images. Never returns."""
    setting = json.loads(sys.argv[1])
    images = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    # The package prints to standard output.
    reports = os.dup(1)
    os.dup2(2, 1)

    def say(report: dict[str, Any]) -> None:
        os.write(reports, json.dumps(report).encode() + b"\n")

    package = _import_decimer(setting["threads"] if setting["one_core_per_image"] else None)
    package.load_models(printed=True, hand_drawn=False)
    package.predict_SMILES(images[0], confidence=True)
    say({"ready": os.getpid()})

    def recognise() -> None:
        # The kernel gives each number to one reader, whole, since all are written before the first is read.
        while number := os.read(0, NUMBER_BYTES):
            image = int.from_bytes(number, "big")
            began = time.monotonic()
            package.predict_SMILES(images[image], confidence=True)
            say({"image": image, "began": began, "ended": time.monotonic()})

    threads = [threading.Thread(target=recognise) for _ in range(setting["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


def _import_decimer(threads: int | None) -> Any:
    """Import the package; with TensorFlow's defaults, or with a core for each of `threads` images at once."""
    import tensorflow as tf  # noqa: PLC0415 (slow)

    if threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    from DECIMER import decimer  # noqa: PLC0415

    return decimer


if __name__ == "__main__":
    main()
