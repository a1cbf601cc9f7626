"""An engine for tests, loaded in real recogniser processes as `tests.engines:load_pixel_engine`.

It does what the red value of an image's first pixel says, so that a test can place a crash where it wants one. With
`max_batch` in its options it is handed several images at once; while there is a file `spoilt` it cannot be loaded. In
`work`, a file, each thread of all processes notes when it begins and ends with which images, and whoever kills its
process that this is the end of all its threads.
"""

import ctypes
import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
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
KILL_ALL = 216
"""Kills the supervisor's process too, as a container that is out of memory is killed."""
RAISE_ALL = 217
"""Has the whole call of its batch raise, as soon as it is taken up."""
CROWD = 218
"""Waits until as many images wait for a thread of its process as `crowd` in the options says."""
SHORT = 219
"""Is left out of what its batch is answered with."""
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
        self.prepared: str | None = options.get("prepared")
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
        code = int(pixels[0, 0, 0])
        try:
            with self._noted_work([code]):
                return self._obey(code, active)
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self._company.clear()

    def _obey(self, code: int, active: int) -> Recognition:
        self._note(code)
        _die(code, self._options)
        time.sleep(self._options.get("seconds", 0))
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

    @contextmanager
    def _noted_work(self, codes: Sequence[int]) -> Iterator[None]:
        self._note_work("+", codes)
        try:
            yield
        finally:
            self._note_work("-", codes)

    def _note_work(self, sign: str, codes: Sequence[int]) -> None:
        if "work" in self._options:
            # Unbuffered, and so a line in one piece, behind what others have written before.
            with Path(self._options["work"]).open("ab", buffering=0) as work:
                work.write(f"{sign} {os.getpid()} {' '.join(map(str, codes))}\n".encode())

    def _note(self, code: int) -> None:
        """Note each image in the file that is named `tally` in the options."""
        if "tally" in self._options:
            with Path(self._options["tally"]).open("a") as tally:
                tally.write(f"{code}\n")

    def _wait(self, code: int) -> None:
        if code == HANG or (code == HANG_ONCE and self._is_first):
            threading.Event().wait()
        if code == HOLD_LOCK:
            self._company.wait(1)
            ctypes.PyDLL(None).sleep(3600)
        while code == CROWD and len(_waiting()) < self._options["crowd"]:
            time.sleep(0.01)
        while code == GATE and not Path(self._options["gate"]).exists():
            time.sleep(0.01)
        if code in (LINGER, HANG_ONCE, LINGER_AND_COUNT):
            time.sleep(LINGER_SECONDS)


class BatchPixelEngine(PixelEngine):
    """Obeys the first pixels of several images; notes those of each batch in `batches`, a file, when it has them all.

    It takes `takes` images of those that it is offered, where the options say so.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.max_batch = int(options["max_batch"])

    def recognise_batch(self, pictures: Iterator[Pixels]) -> Sequence[Recognition | Exception]:
        codes = []
        for pixels in islice(pictures, self._options.get("takes")):
            code = int(pixels[0, 0, 0])
            codes.append(code)
            _die(code, self._options)
            if code == RAISE_ALL:
                raise RuntimeError("no batch is to be had")
        if "batches" in self._options:
            with Path(self._options["batches"]).open("a") as batches:
                batches.write(" ".join(map(str, codes)) + "\n")
        with self._noted_work(codes):
            return [self._answer(code) for code in codes if code != SHORT]

    def _answer(self, code: int) -> Recognition | Exception:
        try:
            return self._obey(code, 1)
        except Exception as error:  # noqa: BLE001 (it costs this image only)
            return error


def _waiting() -> Sequence[Any]:
    """The images that wait for a thread of this process."""
    tasks: Any = next(each for each in gc.get_objects() if type(each).__qualname__ == "Tasks")
    waiting: Sequence[Any] = tasks._waiting
    return waiting


def _die(code: int, options: Mapping[str, Any]) -> None:
    if code == SEGFAULT:
        ctypes.string_at(0)
    elif code == EXIT:
        os._exit(7)
    elif code == KILL_ALL:
        os.kill(os.getppid(), signal.SIGKILL)
        threading.Event().wait()
    elif code == KILL:
        if "work" in options:
            with Path(options["work"]).open("ab", buffering=0) as work:
                work.write(f"x {os.getpid()}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    elif code == KILL_ONCE and not (flag := Path(options["once"])).exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def load_pixel_engine(options: Mapping[str, Any], home: Path, threads: int) -> PixelEngine:
    if "load_error" in options:
        raise EngineLoadError(options["load_error"])
    if "spoilt" in options and Path(options["spoilt"]).exists():
        raise EngineLoadError("it is spoilt")
    if options.get("die_loading"):
        os.kill(os.getpid(), signal.SIGILL)
    if options.get("hang_loading"):
        threading.Event().wait()
    engine = BatchPixelEngine(options) if "max_batch" in options else PixelEngine(options)
    if options.get("mark"):
        Path(options["once"]).touch()
    return engine


def load_older_engine(options: Mapping[str, Any], home: Path, threads: int) -> PixelEngine:
    """One written before engines said which prepared model they use."""
    engine = load_pixel_engine(options, home, threads)
    del engine.prepared
    return engine


def load_odd_engine(options: Mapping[str, Any], home: Path, threads: int) -> PixelEngine:
    """One of somebody's own: `odd` in the options is the attribute that is of another kind than is meant."""
    engine = load_pixel_engine(options, home, threads)
    odd: Any = {"true": True, "word": "ready", "method": engine.recognise, "digest": "ab" * 32}[options["value"]]
    setattr(engine, options["odd"], odd)
    return engine
