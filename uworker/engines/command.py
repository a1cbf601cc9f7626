"""Engines that are programs: each image is given to one as a PNG, and it prints the SMILES. Knows no program by name.

What a program prints is all lines of its output, of each the first word: one structure a line, joined by dots where the
image shows several. It ends with exit code 0, or the image is an `engine_error`.
"""

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from job_api.text import MAX_SMILES_CHARS
from uworker.child import describe_exit
from uworker.commands import EngineCommand, ProgramMissing, find_program
from uworker.engines import EngineError, EngineLoadError, EngineTimeout, Pixels, Recognition, guard

IMAGE = "{image}"
MAX_OUTPUT_BYTES = 100_000
"""A program that prints more is killed: it does not print SMILES."""
VERSION_SECONDS = 30.0

_MAX_COMPLAINT_BYTES = 4_000
_CHUNK_BYTES = 65_536
_LOOK_SECONDS = 0.25
# What a program printed may still be in the pipes, which something that it leaves running may hold open for ever.
_LAST_WORDS_SECONDS = 1.0
# Of the recogniser's own: a program may be Python, and would look for its modules among the worker's.
_NOT_PASSED_ON = ("PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONUTF8", "PYSTOW_HOME", "TF_CPP_MIN_LOG_LEVEL")


class CommandError(EngineError):
    """A program failed on an image; the message says how, in one line."""


class CommandEngine:
    """A program that is on this machine.

    Args:
        command: what it is.
        program: where it is.
        version: what it says of itself.
    """

    weights: str | None = None
    weights_sha256: str | None = None
    prepared: str | None = None

    def __init__(self, command: EngineCommand, program: Path, version: str | None) -> None:
        self.name = command.name
        self.version = version
        self._arguments = [str(program), *shlex.split(command.line)[1:]]
        self._timeout_seconds = command.timeout_seconds
        self._folder = tempfile.mkdtemp(prefix="uworker-")
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def recognise(self, pixels: Pixels) -> Recognition:
        """Return what the program prints of uint8[height, width, 3]; there are no probabilities.

        Raises:
            CommandError: it failed, or printed something that is no SMILES.
            EngineTimeout: it took too long.
        """
        with tempfile.TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as folder:
            image = Path(folder) / "image.png"
            # One core is one image's; and the guard goes by TMPDIR.
            environment = {"OMP_NUM_THREADS": "1", **os.environ, "TMPDIR": folder}
            Image.fromarray(pixels).save(image, compress_level=1)
            output = self._run(image, {k: v for k, v in environment.items() if k not in _NOT_PASSED_ON})
        return Recognition(smiles=_smiles_in(output), tokens=[])

    def _run(self, image: Path, environment: Mapping[str, str]) -> bytes:
        arguments = [part.replace(IMAGE, str(image)) for part in self._arguments]
        deadline = time.monotonic() + self._timeout_seconds
        with image.open("rb") as file:
            process = subprocess.Popen(
                arguments,
                stdin=file if arguments == self._arguments else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        with process, _killing(process.pid, image.parent):
            try:
                output, complaint = _listen(process, deadline)
                exit_code = process.wait(max(deadline - time.monotonic(), 0))
            except (TimeoutError, subprocess.TimeoutExpired):
                raise EngineTimeout(f"{self.name} did not end within {self._timeout_seconds:g} s") from None
        if exit_code != 0:
            last_line = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise CommandError(f"{describe_exit(exit_code)}: {last_line}" if last_line else describe_exit(exit_code))
        return output


def load(command: EngineCommand, options: Mapping[str, Any]) -> CommandEngine:
    """Find the program and ask for its version.

    Raises:
        EngineLoadError: it is not there or does not start, or the project wants options, which a program has not.
    """
    if options:
        raise EngineLoadError(
            f"{command.name} has no option {', '.join(sorted(options))}; take them from the project's engine_options"
        )
    try:
        program = find_program(command)
    except ProgramMissing as error:
        raise EngineLoadError(str(error)) from None
    return CommandEngine(command, program, command.version_line and _ask_version(command.version_line))


@contextmanager
def _killing(group: int, folder: Path) -> Iterator[None]:
    """At the end kill what is left of a program's process group, and what has its temporary files in its folder."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        guard.end_all(str(folder))


def _ask_version(line: str) -> str | None:
    try:
        asked = subprocess.run(
            shlex.split(line), stdin=subprocess.DEVNULL, capture_output=True, timeout=VERSION_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineLoadError(f"{line}: {error}") from error
    found = re.search(rb"\d+(\.\d+)+", asked.stdout)
    return found[0].decode() if found else None


def _listen(process: "subprocess.Popen[bytes]", deadline: float) -> tuple[bytes, bytes]:
    """Return all that a program prints, and the end of what it complains of.

    Raises:
        TimeoutError: it is not done at `deadline` (monotonic).
        CommandError: it prints too much.
    """
    output, complaint, has_ended = bytearray(), bytearray(), False
    with selectors.DefaultSelector() as selector:
        for pipe, heard in ((process.stdout, output), (process.stderr, complaint)):
            assert pipe is not None  # noqa: S101 (says so to the type checker)
            selector.register(pipe, selectors.EVENT_READ, heard)
        while selector.get_map():
            ready = selector.select(max(min(deadline - time.monotonic(), _LOOK_SECONDS), 0))
            if not has_ended and process.poll() is not None:
                has_ended, deadline = True, time.monotonic() + _LAST_WORDS_SECONDS
            if time.monotonic() >= deadline:
                if has_ended:
                    break
                raise TimeoutError
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                key.data.extend(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
            if len(output) > MAX_OUTPUT_BYTES:
                raise CommandError(f"it printed more than {MAX_OUTPUT_BYTES} bytes")
            del complaint[:-_MAX_COMPLAINT_BYTES]
    return bytes(output), bytes(complaint)


def _smiles_in(output: bytes) -> str:
    """Return the first words of all lines, joined by dots.

    Raises:
        CommandError: that cannot be SMILES.
    """
    smiles = ".".join(words[0] for line in output.decode(errors="replace").splitlines() if (words := line.split()))
    if not (smiles.isascii() and smiles.isprintable()):
        raise CommandError("it printed something else than SMILES")
    if len(smiles) > MAX_SMILES_CHARS:
        raise CommandError(f"it printed a SMILES of {len(smiles)} characters; {MAX_SMILES_CHARS} can be stored")
    return smiles
