"""A Docker engine of the tests' own, one for each test process; where none can be run, its tests are skipped."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.containers.bases import import_debian
from tests.containers.engine import Engine, NoEngine, install, run_engine
from tests.containers.workers import build_worker
from uworker.prepared.files import find_prepared
from uworker.snapshot.images import BuiltImage
from uworker.weights import find_weights

# The first time dependencies are downloaded, and that counts for the first test that wants the image.
BUILD_SECONDS = 1_800
# The first time Debian's packages are installed, and base images made.
INSTALL_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give what is built and installed its time."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if {"worker_image", "prepared_worker_image", "small_worker_image", "snapshot"} & fixtures:
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS))
        elif {"docker_engine", "cluster"} & fixtures and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(INSTALL_SECONDS))


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that knows `debian:bookworm-slim`, for all tests of this process; names in it are taken once."""
    with ExitStack() as stack:
        try:
            install("docker-compose")
            engine = stack.enter_context(run_engine(tmp_path_factory.mktemp("docker")))
            import_debian(engine)
        except NoEngine as error:
            pytest.skip(f"NO DOCKER ENGINE, so nothing in containers was tested: {error}")
        yield engine


EngineStarter = Callable[[], Engine]


@pytest.fixture
def fresh_engine(docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineStarter]:
    """Starts further engines that have no image at all, as on a machine that was just set up."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(run_engine(tmp_path_factory.mktemp("docker")))


@pytest.fixture(scope="session")
def worker_image(docker_engine: Engine, miniature_home: Path) -> BuiltImage:
    """The worker's image of this working tree, with the miniature model for weights, in `docker_engine`."""
    return build_worker(docker_engine, "decimer-tests:worker", find_weights(miniature_home, hand_drawn=False))


@pytest.fixture(scope="session")
def prepared_worker_image(docker_engine: Engine, prepared_home: Path) -> BuiltImage:
    """The worker's image with the prepared model of a replica instead of weights, in `docker_engine`."""
    weights, prepared = find_weights(prepared_home, hand_drawn=False), find_prepared(prepared_home, hand_drawn=False)
    return build_worker(docker_engine, "decimer-tests:prepared-worker", weights, prepared)


@pytest.fixture(scope="session")
def small_worker_image(docker_engine: Engine) -> BuiltImage:
    """The worker's image without an engine, in `docker_engine`."""
    return build_worker(docker_engine, "decimer-tests:small-worker", None)
