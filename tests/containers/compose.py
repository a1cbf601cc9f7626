"""Compose as docker's plugin, which Debian 12 has not: the one of Debian 13, for tests that it works with that, too."""

import hashlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import httpx
import platformdirs
from filelock import FileLock

from tests.containers.engine import NoEngine

_URL = "http://deb.debian.org/debian/pool/main/d/docker-compose/docker-compose_2.26.1-4_amd64.deb"
_SHA256 = "47681197cb2b1ab88206b42a1a92fc75f50d9530a6322d03494a473eed0408ea"
_PROGRAM = "usr/libexec/docker/cli-plugins/docker-compose"


def compose_plugin() -> Path:
    """A folder for `DOCKER_CONFIG` with which docker knows `docker compose`; fetched once, into the user's cache.

    Raises:
        NoEngine: it cannot be had here.
    """
    if platform.machine() != "x86_64":
        raise NoEngine(f"{_URL} is not for {platform.machine()}")
    home = platformdirs.user_cache_path("decimer-jobs-tests") / "compose-2.26.1"
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_suffix(".lock")):
        if not home.exists():
            _fetch(home)
    return home


def _fetch(home: Path) -> None:
    try:
        package = httpx.get(_URL, timeout=120).raise_for_status().content
    except httpx.HTTPError as error:
        raise NoEngine(f"{_URL} cannot be fetched: {error}") from None
    if hashlib.sha256(package).hexdigest() != _SHA256:
        raise NoEngine(f"{_URL} is not what it was")
    with tempfile.TemporaryDirectory(dir=home.parent) as folder:
        file, unpacked, half = Path(folder) / "package.deb", Path(folder) / "unpacked", Path(folder) / "config"
        file.write_bytes(package)
        subprocess.run(["dpkg-deb", "--extract", str(file), str(unpacked)], check=True)  # noqa: S607 - Debian's own
        (half / "cli-plugins").mkdir(parents=True)
        shutil.move(unpacked / _PROGRAM, half / "cli-plugins" / "docker-compose")
        half.rename(home)
