"""`python -m uworker` is the `uworker` command."""

from uworker.cli import app

if __name__ == "__main__":
    app(prog_name="uworker")
