"""Libraries are quiet in the worker's log, whatever it is set to; the worker itself is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines import picture
from tests.scripted import Answer, serving

NOISY = [
    "PIL.PngImagePlugin",
    "absl",
    "aiohttp.access",
    "azure.core.pipeline.policies.http_logging_policy",
    "azure.identity",
    "boto3.resources",
    "botocore.hooks",
    "fsspec",
    "gcsfs",
    "google.auth.transport",
    "h5py._conv",
    "httpcore.http11",
    "httpx",
    "matplotlib.font_manager",
    "s3transfer.tasks",
    "tensorflow",
    "urllib3.connectionpool",
]
SILENT = {"azure.core.pipeline.policies.http_logging_policy", "tensorflow", "urllib3.connectionpool"}

DISPLAY = """\
from uworker.display import Display
from uworker.journal import SecretFilter
Display(SecretFilter([]), {level!r})
"""


def said(program: str) -> str:
    """What a fresh interpreter writes to its standard error."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_libraries_are_heard_when_they_warn_and_ours_at_the_level_that_is_set(level: str) -> None:
    lines = said(
        DISPLAY.format(level=level)
        + "import logging\n"
        + f"for name in ['uworker.reader', *{NOISY!r}]:\n"
        + "    log = logging.getLogger(name)\n"
        + "    log.debug('%s-debug', name); log.info('%s-info', name)\n"
        + "    log.warning('%s-warning', name); log.error('%s-error', name)\n"
    )
    heard = {line.split()[-1] for line in lines.splitlines()}
    ours = {f"uworker.reader-{name}" for name in ("debug", "info", "warning", "error")}
    if level == "INFO":
        ours.remove("uworker.reader-debug")
    theirs = {f"{name}-warning" for name in NOISY if name not in SILENT} | {f"{name}-error" for name in NOISY}
    assert heard == ours | theirs


def test_a_worker_that_shows_errors_only_shows_no_librarys_warnings() -> None:
    assert said(DISPLAY.format(level="ERROR") + "import logging; logging.getLogger('azure').warning('a word')") == ""


def test_real_libraries_at_work_say_nothing_at_debug(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(picture(1))
    with serving([Answer(200, "text")]) as server:
        work = f"import httpx, PIL.Image; PIL.Image.open({str(image)!r}).load(); httpx.get({server.root!r})\n"
        plain = "import logging; logging.basicConfig(level='DEBUG')\n"
        assert "IHDR" in said(plain + work), "they would, if they were let"
        assert "HTTP Request" in said(plain + work)
        assert said(DISPLAY.format(level="DEBUG") + work) == ""


def test_absl_works_on_after_it_was_quietened() -> None:
    heard = said(
        "from uworker.noise import quieten; quieten(); import absl.logging as log\n"
        "log.info('a detail'); log.warning('a %s', 'warning'); log.log_every_n(log.ERROR, 'an error', 1)"
    )
    assert "a detail" not in heard
    assert "a warning" in heard
    assert "an error" in heard
