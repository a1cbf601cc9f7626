"""What the command-line programs write to a terminal, made safe and brief."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from job_api.text import clean_text


def printable(text: str, max_chars: int = 200) -> str:
    r"""Return `text` on one line, what could steer a terminal spelled out (`\n`, `\x1b`), cut to `max_chars`."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in clean_text(text, max_chars))


def progress_bar() -> Progress:
    """A bar on standard error, where that is a terminal; elsewhere nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
