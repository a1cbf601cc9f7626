"""A web server that shows folders as index pages: Python's own, in a process of its own."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.emulators.processes import run_server

_LISTENS = r"Serving HTTP on \S+ port \d+ \((http://\S+:\d+)/\)"


@dataclass(frozen=True)
class WebServer:
    """A running web server.

    Args:
        address: such as `http://127.0.0.1:40123`.
        root: the folder that it shows.
    """

    address: str
    root: Path

    def fill(self, files: Mapping[str, bytes]) -> None:
        """Put files there; names are paths below the root."""
        for name, data in files.items():
            file = self.root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def delete(self, name: str) -> None:
        """Take one file away."""
        (self.root / name).unlink()


@contextmanager
def run_web(root: Path) -> Iterator[WebServer]:
    """A running web server that shows a folder.

    Raises:
        NoServer: it does not start.
    """
    command = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--protocol", "HTTP/1.1"]
    with run_server([*command, "--directory", str(root)], _LISTENS) as server:
        yield WebServer(server.address, root)
