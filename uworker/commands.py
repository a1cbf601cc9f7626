"""Which engines are programs of this machine: osra, and the one that the settings name. Starts none: `engines.command`.

A command can only come from here: a project names an engine, and nothing that it says becomes a part of a command.
"""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from uworker.settings import PREFIX, EngineSettings

OSRA = "osra"


@dataclass(frozen=True)
class EngineCommand:
    """A program that prints the SMILES of an image.

    Attributes:
        name: The engine's name, as projects and rows say it.
        line: The command, parted as a shell parts words; `{image}` is the path of a PNG.
        timeout_seconds: After which it is killed.
        version_line: The command that prints its version, if there is one.
        advice: How to get the program where it is missing.
    """

    name: str
    line: str
    timeout_seconds: float
    version_line: str | None = None
    advice: str = f"correct {PREFIX}ENGINE_COMMAND"


class ProgramMissing(Exception):
    """The program of a command is not on this machine; the message says how to get it."""


def find_command(settings: EngineSettings, engine: str) -> EngineCommand | None:
    """The command of an engine that is one; what the settings name goes before what is known anyway."""
    seconds = settings.engine_command_timeout_seconds
    if settings.engine_command is not None and engine == settings.engine_command_name:
        return EngineCommand(engine, settings.engine_command, seconds)
    if engine == OSRA:
        return EngineCommand(OSRA, "osra {image}", seconds, "osra --version", "apt-get install osra")
    return None


def find_program(command: EngineCommand) -> Path:
    """Where the program of a command is.

    Raises:
        ProgramMissing: nowhere on this machine.
    """
    program = shlex.split(command.line)[0]
    found = shutil.which(program)
    if found is None:
        raise ProgramMissing(f"the engine {command.name} needs the program {program}: {command.advice}")
    return Path(found).absolute()
