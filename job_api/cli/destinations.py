"""Where an export goes: standard output, a file, or an object in storage. A file or an object is whole or not there.

A FIFO or a device takes the rows as they come.
"""

import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event
from typing import TYPE_CHECKING

import typer

from job_api.apart import begin
from job_api.client import ClientError

if TYPE_CHECKING:
    from job_api.stores import Store

BLOCK_BYTES = 8 << 20
"""Rows go to object storage in blocks of this size; an export that is no larger goes in one request."""
TAKE_BACK_SECONDS = 5.0
"""How long an export that was broken off waits for the storage to forget what it was sent."""
DESTINATIONS = "a path, or az://container/results.csv, s3://bucket/results.csv or gs://bucket/results.csv"


@dataclass(frozen=True)
class Destination:
    """Takes all of an export, and gives it its name only when it has come to its end."""

    name: str
    """What to call it; never holds a credential."""
    write: Callable[[Iterable[bytes]], None]
    """Raises ClientError when it cannot be written, and what the rows raise."""


def destination(output: str) -> Destination:
    """The place that `-o` names.

    Raises:
        typer.BadParameter: it makes no sense.
        ClientError: what it takes to write there is not set.
    """
    if not output:
        raise typer.BadParameter(f"no name; write {DESTINATIONS}; - is standard output")
    # What has been opened for it may be a file with something in it already.
    if output in ("-", "/dev/stdout"):
        return Destination("standard output", _write_stdout)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", output) is None:
        return Destination(output, partial(_write_file, Path(output)))
    # What speaks to object storage is loaded only when it is wanted.
    from job_api.stores import BadLocation, StoreError, locate, open_store  # noqa: PLC0415

    try:
        location = locate(output)
        url, name = location.url, location.prefix.rpartition("/")[2]
        if location.kind == "http":
            raise typer.BadParameter(f"{url} is a web server, which takes no results; write {DESTINATIONS}")
        if location.kind == "file":
            path = Path("/", location.prefix)
            return Destination(str(path), partial(_write_file, path))
        if output.endswith("/") or not name:
            raise typer.BadParameter(f"{url} names no object; say which, such as {url}/results.csv")
        return Destination(url, partial(_write_object, open_store(url.rpartition("/")[0]), name))
    except BadLocation as error:
        raise typer.BadParameter(str(error)) from None
    except StoreError as error:
        raise ClientError(f"cannot write the results: {error}") from None


def _write_stdout(records: Iterable[bytes]) -> None:
    try:
        sys.stdout.buffer.writelines(records)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise  # whoever reads has enough
    except OSError as error:
        raise ClientError(f"cannot write standard output: {error.strerror}") from None


def _write_file(path: Path, records: Iterable[bytes]) -> None:
    try:
        if _is_replaceable(path):
            _replace(path.resolve(), records)
        else:
            # Without O_CREAT, which Linux refuses for another user's FIFO in /tmp.
            with os.fdopen(os.open(path, os.O_WRONLY), "wb") as file:
                file.writelines(records)
    except BrokenPipeError:
        raise  # as above
    except OSError as error:
        raise ClientError(f"cannot write {path}: {error.strerror}") from None


def _is_replaceable(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True


def _replace(path: Path, records: Iterable[bytes]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            file.writelines(records)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_object(store: "Store", key: str, records: Iterable[bytes]) -> None:
    from job_api.stores import StoreError  # noqa: PLC0415 - as above

    blocks = _blocks(records)
    # The service is heard before the storage is: nothing is begun there for a project that does not exist.
    first = next(blocks, b"")
    second = next(blocks, None)
    try:
        if second is None:
            begin(partial(store.write, key, first)).result()
        else:
            _hand_over(chain((first, second), blocks), partial(store.write, key))
    except StoreError as error:
        raise ClientError(f"cannot write the results: {error}") from None


def _hand_over(blocks: Iterable[bytes], write: Callable[[Iterator[bytes]], None]) -> None:
    """Have blocks written apart while they are made here, where Ctrl-C is heard; what ends them ends the writing."""
    handed: Queue[bytes | None] = Queue(1)
    broken = Event()

    def taken() -> Iterator[bytes]:
        while (block := handed.get()) is not None and not broken.is_set():
            yield block
        if broken.is_set():
            raise InterruptedError

    def make_room(_: Future[None]) -> None:
        with suppress(Empty):
            handed.get_nowait()

    writing = begin(lambda: write(taken()))
    # Whoever hands over waits for room, and for nothing more when the writing has ended.
    writing.add_done_callback(make_room)
    try:
        for block in blocks:
            handed.put(block)
            if writing.done():
                break
        else:
            handed.put(None)
        writing.result()
    except BaseException:
        broken.set()
        with suppress(Full):
            handed.put_nowait(None)
        # So that what was sent is taken back, if the storage answers.
        wait([writing], TAKE_BACK_SECONDS)
        raise


def _blocks(records: Iterable[bytes]) -> Iterator[bytes]:
    block = bytearray()
    for record in records:
        block += record
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)
