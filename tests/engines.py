"""An engine for tests, loaded in real recogniser processes as `tests.engines:load_pixel_engine`.

It does what the red value of an image's first pixel says, so that a test can place a crash where it wants one.
"""

import ctypes
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uworker.engines import EngineLoadError, Pixels, Recognition

NAME = "tests.engines:load_pixel_engine"

KILL, HANG, KILL_ONCE, RAISE, EMPTY, FLOOD, GATE, SEGFAULT, LINGER, COUNT_ACTIVE, TRUNCATED, EXIT = range(200, 212)
HANG_ONCE = 212
"""Hangs in the first process of a test (`once` in the options); then lingers and counts who is active beside it."""
COMPANY = 213
"""Answers CC as soon as another image has been active beside it, else C."""
COMPANY_SECONDS = 20
LINGER_AND_COUNT = 214
"""Lingers and counts how many images are active then."""
HOLD_LOCK = 215
"""Once another image is active, or none has come, keeps the interpreter lock for ever, as native code may."""
FLOOD_BYTES = 4_000_000
LINGER_SECONDS = 0.2


def picture(code: int, width: int = 8, height: int = 8) -> bytes:
    """A PNG that has the engine answer with `code` carbon atoms, or do what the code says."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[0, 0] = (code, 0, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class PixelEngine:
    """Obeys the first pixel."""

    name = "pixel"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.version: str | None = "1.0"
        self.weights: str | None = None
        self.weights_sha256: str | None = None
        self._options = options
        self._active = 0
        self._lock = threading.Lock()
        self._company = threading.Event()
        self._is_first = "once" in options and not Path(options["once"]).exists()

    def recognise(self, pixels: Pixels) -> Recognition:
        with self._lock:
            self._active += 1
            active = self._active
            if active > 1:
                self._company.set()
        try:
            return self._obey(int(pixels[0, 0, 0]), active)
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self._company.clear()

    def _obey(self, code: int, active: int) -> Recognition:
        _die(code, self._options)
        self._wait(code)
        match code:
            case _ if code == RAISE:
                try:
                    int("the reason")
                except ValueError:
                    raise Exception("")  # noqa: B904, TRY002 (as DECIMER does)
            case _ if code == EMPTY:
                return Recognition("", [])
            case _ if code == FLOOD:
                sys.stdout.write("x" * FLOOD_BYTES + "\nlast line\n")
                sys.stdout.flush()
            case _ if code == TRUNCATED:
                return Recognition("CCO", [("C", 0.5), ("C", 0.25)])
            case _ if code == COUNT_ACTIVE:
                code = active
            case _ if code in (HANG_ONCE, LINGER_AND_COUNT):
                code = self._active
            case _ if code == COMPANY:
                code = 2 if self._company.wait(COMPANY_SECONDS) else 1
        smiles = "C" * (code if code < KILL else 1)
        return Recognition(smiles, [("C", 0.5)] * len(smiles))

    def _wait(self, code: int) -> None:
        if code == HANG or (code == HANG_ONCE and self._is_first):
            threading.Event().wait()
        if code == HOLD_LOCK:
            self._company.wait(1)
            ctypes.PyDLL(None).sleep(3600)
        while code == GATE and not Path(self._options["gate"]).exists():
            time.sleep(0.01)
        if code in (LINGER, HANG_ONCE, LINGER_AND_COUNT):
            time.sleep(LINGER_SECONDS)


def _die(code: int, options: Mapping[str, Any]) -> None:
    if code == SEGFAULT:
        ctypes.string_at(0)
    elif code == EXIT:
        os._exit(7)
    elif code == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    elif code == KILL_ONCE and not (flag := Path(options["once"])).exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def load_pixel_engine(options: Mapping[str, Any], home: Path, threads: int) -> PixelEngine:
    if "load_error" in options:
        raise EngineLoadError(options["load_error"])
    if options.get("die_loading"):
        os.kill(os.getpid(), signal.SIGILL)
    if options.get("hang_loading"):
        threading.Event().wait()
    engine = PixelEngine(options)
    if options.get("mark"):
        Path(options["once"]).touch()
    return engine
