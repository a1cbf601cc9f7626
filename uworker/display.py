"""How the worker looks to a person: a live line on a terminal, and a rare plain line elsewhere."""

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from uworker.journal import CHILDREN_LOGGER, LineFormatter, SecretFilter
from uworker.noise import quieten

log = logging.getLogger(__name__)

PLAIN_LINE_SECONDS = 60.0


class ConsoleHandler(logging.Handler):
    """Writes log lines above the live line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line as it is."""
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class Display:
    """Shows jobs, images and speed on standard error. Owned by the main thread.

    Args:
        secrets: blanks what must not be seen.
        level: the least severe level that is shown.
    """

    def __init__(self, secrets: SecretFilter, level: str) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[jobs]} jobs done, {task.completed:.0f} images, {task.fields[speed]}"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, jobs=0, speed="")
        self._began = time.monotonic()
        self._said_at = self._began
        self._images_said = 0
        handler = ConsoleHandler(self._console)
        handler.setFormatter(LineFormatter(secrets))
        handler.addFilter(secrets)
        handler.setLevel(level)
        root = logging.getLogger()
        root.setLevel(level)
        root.addHandler(handler)
        logging.getLogger(CHILDREN_LOGGER).setLevel(logging.DEBUG)
        quieten(root.level)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, *, jobs: int, images: int, speed: float, doing: str) -> None:
        """Show where the worker stands; on a terminal at once, elsewhere at most once a minute.

        Args:
            jobs: jobs done since the start.
            images: images done since the start.
            speed: images per second over the last while.
            doing: what the worker does now.
        """
        self._progress.update(self._task, completed=images, jobs=jobs, speed=f"{speed:.2f} images/s", description=doing)
        now = time.monotonic()
        if self._progress.disable and now - self._said_at >= PLAIN_LINE_SECONDS:
            if images != self._images_said:
                log.info("%d jobs done, %d images, %.2f images/s", jobs, images, speed)
            self._said_at, self._images_said = now, images
