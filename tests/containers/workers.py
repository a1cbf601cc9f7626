"""The worker's image for tests. Its dependencies are built once and kept in the user's cache, for all engines."""

from pathlib import Path

import platformdirs
import pytest
from filelock import FileLock

from tests.containers.engine import Engine
from uworker.prepared.files import Prepared
from uworker.snapshot.images import BuiltImage, ImageRequest, build_image, dependencies_tag, ensure_dependencies
from uworker.weights import Weights

REPOSITORY = Path(__file__).parents[2]
SNAPSHOT = "tests_261121"
_KEEP = platformdirs.user_cache_path("decimer-jobs-tests")


def build_worker(engine: Engine, tag: str, weights: Weights | None, prepared: Prepared | None = None) -> BuiltImage:
    """Build the image of the working tree as it is."""
    request = ImageRequest(tag, SNAPSHOT, REPOSITORY, weights, prepared=prepared)
    load_dependencies(engine, request)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.address)
        return build_image(request, print)


def load_dependencies(engine: Engine, request: ImageRequest) -> None:
    """Give an engine that has the base the image with the dependencies: the kept one, which is made where none is."""
    kind = "small" if request.weights is None else "prepared" if request.prepared is not None else "worker"
    _KEEP.mkdir(parents=True, exist_ok=True)
    # Who comes while another makes it waits, and then loads it.
    with FileLock(_KEEP / f"{kind}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.address)
        wanted = dependencies_tag(request)
        kept = _KEEP / f"{kind}-{wanted.rpartition('-')[2]}.tar"
        if kept.exists():
            if engine.docker("image", "inspect", wanted, check=False).returncode != 0:
                engine.docker("load", "--input", str(kept))
            return
        ensure_dependencies(request, print)
        half = kept.with_suffix(".half")
        engine.docker("save", "--output", str(half), wanted)
        for older in _KEEP.glob(f"{kind}-*.tar"):
            older.unlink()
        half.rename(kept)
