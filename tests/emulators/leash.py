"""Becomes another program that ends when its parent does: `python leash.py PARENT_PID PROGRAM ARGUMENT...`.

A pytest that is killed ends no fixture, and a server that it started would hold its port and memory for ever.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(sys.argv[1]):
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - a program of ours takes this one's place
