"""What `./build_snapshot.sh` runs."""

import signal

from uworker.snapshot.cli import app

# A polite end is an interruption like Ctrl-C, after which nothing half is left.
signal.signal(signal.SIGTERM, signal.default_int_handler)
# So is the end of the terminal, but for who said nohup.
if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
    signal.signal(signal.SIGHUP, signal.default_int_handler)
app(prog_name="build_snapshot.sh")
