"""Base images, made of Debian's packages and given the names by which the project's own files call them.

No registry can be reached where the tests run. `debian:bookworm-slim` is a Debian as debootstrap makes it, which is
what the image of that name is, and others are that with more packages, set up to be started as their namesakes are.
"""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs
from filelock import FileLock

from tests.containers.engine import Engine, NoEngine, install

DEBIAN = "debian:bookworm-slim"
_SUITE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
_KEEP = platformdirs.user_cache_path("decimer-jobs-tests")


def import_debian(engine: Engine, *packages: str, name: str = DEBIAN, changes: tuple[str, ...] = ()) -> None:
    """Give the engine a Debian with these packages, under a name.

    Args:
        engine: who gets it.
        packages: what it has besides a minimal system and certificates.
        name: repository and tag.
        changes: instructions of a Dockerfile, such as `ENV A=b`, that apply to it.

    Raises:
        NoEngine: it cannot be made here.
    """
    options = [option for change in changes for option in ("--change", change)]
    engine.docker("import", *options, str(debian(*packages)), name)


def debian(*packages: str) -> Path:
    """Return a tar file of a Debian with these packages; it is made once and kept in the user's cache."""
    wanted = sorted({"ca-certificates", *packages})
    digest = hashlib.sha256(" ".join([_SUITE, *wanted]).encode()).hexdigest()[:12]
    _KEEP.mkdir(parents=True, exist_ok=True)
    kept = _KEEP / f"{_SUITE}-{digest}.tar"
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            _make(wanted, kept)
    return kept


def _make(packages: list[str], kept: Path) -> None:
    install("debootstrap")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        include = f"--include={','.join(packages)}"
        _run("debootstrap", "--variant=minbase", include, _SUITE, str(root), _MIRROR)
        # What can be fetched again, as the published images leave it out too.
        for left in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            for entry in (root / left).iterdir() if (root / left).is_dir() else []:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        half = kept.with_suffix(".half")
        _run("tar", "--directory", str(root), "--create", "--file", str(half), ".")
        half.rename(kept)


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        raise NoEngine(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()[-500:]}")
