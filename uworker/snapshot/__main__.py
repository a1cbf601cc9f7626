"""What `./build_snapshot.sh` runs."""

import signal

from uworker.snapshot.cli import app

# A polite end is an interruption like Ctrl-C, after which nothing half is left.
signal.signal(signal.SIGTERM, signal.default_int_handler)
app(prog_name="build_snapshot.sh")
