"""Makes a file in a process of its own: `python -m job_api.formats FORMAT`, which the service starts.

On stdin come an `About` in JSON on one line, and then rows, a `Result` in JSON on each; the file goes to stdout. The
exit code says how it went; on stderr stands why, or what became of the rows.
"""

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from job_api.formats import About, FormatUnavailable, Outbox, TooManyRows, encoded, open_writer

EXIT_UNAVAILABLE = 3
EXIT_TOO_MANY_ROWS = 4

BATCH_BYTES = 2**20
# The machine is the service's and the database's first.
NICENESS = 5


def main(name: str, source: BinaryIO, target: BinaryIO) -> None:
    """Make the file of the format of that name."""
    os.nice(NICENESS)
    about = About.model_validate_json(source.readline())
    sink = Outbox()
    try:
        writer = open_writer(name, about, sink)
        for block in encoded(writer, sink, _batches(source), lambda: about.next_since or 0):
            target.write(block)
            target.flush()
    except FormatUnavailable as error:
        _end(str(error), EXIT_UNAVAILABLE)
    except TooManyRows as error:
        _end(str(error), EXIT_TOO_MANY_ROWS)
    sys.stderr.write(f"{writer.counts}\n")


def _batches(source: BinaryIO) -> Iterator[list[bytes]]:
    while lines := source.readlines(BATCH_BYTES):
        yield lines


def _end(why: str, code: int) -> None:
    sys.stderr.write(why + "\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
