"""Ends what programs leave running; as `python guard.py FOLDER` those of a recogniser that is gone, with its folder.

A recogniser may be killed at any moment, and what it had started would go on, with the children of that. They are known
by their environment, in whatever session they are: TMPDIR is a folder below FOLDER. That the recogniser is gone is told
by the end of standard input, whose other end a program that is just being started still holds, so that none is
overlooked. Imports next to nothing, since one runs beside each recogniser.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

_LOOKS = 100
_LOOK_AGAIN_SECONDS = 0.05


def main() -> None:
    """Wait for the recogniser's end, and leave nothing of it."""
    folder = sys.argv[1]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    end_all(folder)
    shutil.rmtree(folder, ignore_errors=True)


def end_all(folder: str) -> None:
    """Kill the programs that have their temporary files in a folder or below it, with their process groups."""
    for _ in range(_LOOKS):
        groups = _groups_of(folder)
        if not groups:
            break
        for group in groups:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        time.sleep(_LOOK_AGAIN_SECONDS)


def _groups_of(folder: str) -> set[int]:
    mark, groups = f"TMPDIR={folder}".encode(), set()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (place / "environ").read_bytes().split(b"\0")
            if any(variable == mark or variable.startswith(mark + b"/") for variable in variables):
                groups.add(os.getpgid(int(place.name)))
    return groups


if __name__ == "__main__":
    main()
