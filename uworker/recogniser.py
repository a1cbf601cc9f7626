"""A recogniser process: loads one engine and answers images, one JSON row each. Knows nothing but images.

The supervisor starts it as `python -m uworker.recogniser FD`, FD being its end of a socket pair. Over the socket go
whole messages, framed by `multiprocessing.connection.Connection` and never pickled:

- in: the configuration (JSON), then for each image a header `{"task_id": 1}` and after it the file's bytes; one with
  `"more": true` is followed by the next of the same unit, which one thread takes whole;
- out: `{"kind": "ready", "run": {...}, "max_batch": 1}` or `{"kind": "cannot_load", "message": "..."}`, then for each
  image `{"kind": "started", "task_id": 1}` before it is touched and `{"kind": "finished", "task_id": 1, "row": {...}}`,
  which where something was raised over the image has the fields of `tasks.Fault` in `fault`, for the log. Images of one
  batch have the id of its first image in `batch` of `started`; one that is started again is tried alone, since the
  engine has answered none of its batch. `{"kind": "alive"}` once a second: one that is missing
  tells that native code keeps Python from running.

Each thread waits for a unit, or else for one image, and takes with that, without waiting, its share of those there are,
as many as the engine is handed at once at most: with few images all threads work, and each image is answered as soon as
it can be.

When the socket closes, the process ends at once: it never outlives its supervisor.
"""

import ctypes
import json
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job_api.text import clean_text
from uworker.noise import quieten

if TYPE_CHECKING:
    from uworker.engines import Engine

ALIVE_SECONDS = 1.0

EXIT_STOPPED = 0
EXIT_CRASHED = 1
EXIT_CANNOT_LOAD = 3

_PR_SET_PDEATHSIG = 1


class Tasks:
    """Images that wait for a thread, by their ids; several threads take them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._units: deque[list[tuple[int, bytes]]] = deque()
        self._coming: list[tuple[int, bytes]] = []
        """Of a unit that is not here in full."""
        self._has_some = threading.Condition()

    def put(self, task_id: int, data: bytes, *, more: bool = False) -> None:
        """Add an image; `more` of its unit follow, and until then it waits for them."""
        with self._has_some:
            if more:
                self._coming.append((task_id, data))
                return
            if self._coming:
                self._units.append([*self._coming, (task_id, data)])
                self._coming = []
            else:
                self._waiting.append((task_id, data))
            self._has_some.notify()

    def take(self, most: int) -> list[tuple[int, bytes]]:
        """Wait for a unit, or for a thread's share, at most `most`, of the images that wait and are in none."""
        with self._has_some:
            while not self._units and not self._waiting:
                self._has_some.wait()
            if self._units:
                return self._units.popleft()
            share = math.ceil(len(self._waiting) / self._threads)
            return [self._waiting.popleft() for _ in range(min(share, most))]


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
                tasks.put(header["task_id"], self._connection.recv_bytes(), more=header.get("more", False))
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
    tasks = Tasks(config["threads"])
    threading.Thread(target=channel.read_tasks, args=(tasks,), daemon=True).start()
    engine, max_batch, run = _load_or_exit(config, channel)
    threads = [
        threading.Thread(target=_serve, args=(engine, max_batch, config["max_pixels"], tasks, channel))
        for _ in range(config["threads"])
    ]
    for thread in threads:
        thread.start()
    channel.send({"kind": "ready", "run": run, "max_batch": max_batch})
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


def _load_or_exit(config: dict[str, Any], channel: Channel) -> tuple["Engine", int, dict[str, Any]]:
    """Return the engine, how many images it is handed at once at most, and the fields of `schemas.EngineRun`."""
    try:
        # Imported here so that a broken installation is told to the supervisor like any engine that will not load.
        from job_api import chemistry  # noqa: PLC0415
        from uworker import answering, screening  # noqa: PLC0415

        screening.silence_warnings()
        chemistry.check_smiles("C")
        engine = _load(config)
        return engine, answering.max_batch_of(engine), _run_of(engine)
    except Exception as error:  # noqa: BLE001 (whatever it is: the engine cannot be used)
        traceback.print_exc()
        sys.stderr.flush()
        channel.send({"kind": "cannot_load", "message": clean_text(f"{type(error).__name__}: {error}")})
        os._exit(EXIT_CANNOT_LOAD)


def _load(config: dict[str, Any]) -> "Engine":
    from uworker.engines import find_loader  # noqa: PLC0415 (NumPy)

    if config["command"] is not None:
        from uworker.commands import EngineCommand  # noqa: PLC0415
        from uworker.engines import command  # noqa: PLC0415

        return command.load(EngineCommand(**config["command"]), config["engine_options"])
    return find_loader(config["engine"])(config["engine_options"], Path(config["weights_home"]), config["threads"])


def _run_of(engine: "Engine") -> dict[str, Any]:
    """What the engine says of itself, as rows can have it.

    Raises:
        EngineLoadError: rows cannot have it.
    """
    from pydantic import ValidationError  # noqa: PLC0415 (told to the supervisor where it is not there)

    from job_api.schemas import EngineRun  # noqa: PLC0415
    from uworker.engines import EngineLoadError  # noqa: PLC0415

    # Engines that people have written may be older than the attribute, and mean another thing by the name.
    prepared = getattr(engine, "prepared", None)
    is_digest = isinstance(prepared, str) and re.fullmatch("[0-9a-f]{64}", prepared) is not None
    try:
        run = EngineRun(
            engine=engine.name,
            engine_version=engine.version,
            weights=engine.weights,
            weights_sha256=engine.weights_sha256,
            prepared=prepared if is_digest else None,
        )
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise EngineLoadError(f"what the engine says of itself cannot be in a row: {wrong}") from error
    return run.model_dump(mode="json", exclude={"snapshot"})


def _serve(engine: "Engine", max_batch: int, max_pixels: int, tasks: Tasks, channel: Channel) -> None:
    """Answer images until the process ends."""
    from uworker import answering  # noqa: PLC0415 (Pillow, RDKit)

    try:
        while True:
            answering.answer(engine, tasks.take(max_batch), max_pixels, channel.send)
    except BaseException:  # noqa: BLE001 (a thread that ended alone would leave its images unanswered)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(EXIT_CRASHED)


if __name__ == "__main__":
    main(sys.argv)
