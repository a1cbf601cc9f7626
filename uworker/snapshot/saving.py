"""An image as a file that every engine can load: what `docker save` writes, compressed with gzip.

gzip, because it is what `docker load` reads itself everywhere: engines as old as Debian 12's (20.10) know no zstd.
"""

import gzip
import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from uworker.snapshot.access import SnapshotError
from uworker.snapshot.builder import advice, run

# Weights hardly get smaller at any level, and libraries little more at higher ones.
LEVEL = 1
_CHUNK_BYTES = 8 << 20
_AHEAD = 2


def tag_image(image_id: str, tag: str) -> None:
    """Give an image of this engine one more name.

    Raises:
        SnapshotError: docker does not.
    """
    done = run("tag", image_id, tag)
    if done.returncode != 0:
        raise SnapshotError(f"docker cannot tag the image as {tag}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Saved:
    """How large images are in their file, and what the engine that loads them unpacks."""

    file_bytes: int
    size_bytes: int


def save_images(tags: Iterable[str], file: Path) -> Saved:
    """Write images of this engine to one file, layers that they share once.

    Raises:
        SnapshotError: docker does not give them, or it cannot be written.
    """
    try:
        command = ["docker", "save", *tags]
        with (
            file.open("xb") as target,
            tempfile.TemporaryFile() as told,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told) as process,
        ):
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            try:
                size_bytes = _compress(process.stdout, target)
            except BaseException:
                process.kill()
                raise
            process.wait()
            told.seek(0)
            said = told.read().decode(errors="replace").strip()
    except OSError as error:
        raise SnapshotError(
            f"{file} cannot be written: {error.strerror or error}; make room, or name another folder with --output"
        ) from error
    if process.returncode != 0:
        raise SnapshotError(f"docker save failed: {said or 'it does not say why'}{advice([said])}")
    return Saved(file.stat().st_size, size_bytes)


def _compress(source: IO[bytes], target: IO[bytes]) -> int:
    """By all cores: pieces, each compressed for itself, are one file to readers of gzip; returns the bytes read."""
    workers, size_bytes = os.cpu_count() or 1, 0
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[bytes]] = deque()
        while chunk := source.read(_CHUNK_BYTES):
            size_bytes += len(chunk)
            waiting.append(pool.submit(gzip.compress, chunk, LEVEL, mtime=0))
            if len(waiting) >= workers + _AHEAD:
                target.write(waiting.popleft().result())
        target.writelines(done.result() for done in waiting)
    return size_bytes
