"""Real object stores and a web server for the tests; each test process has its own, each test its own bucket."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from tests.emulators.azurite import Azurite, run_azurite
from tests.emulators.buckets import Bucket, Emulator
from tests.emulators.relay import Relay, run_relay
from tests.emulators.s3 import GcsServer, S3Server, run_gcs, run_s3
from tests.emulators.web import WebServer, run_web


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """Azure Blob Storage."""
    with run_azurite() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """S3, which refuses wrong keys."""
    with run_s3() as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """What is reached as Google Cloud Storage."""
    with run_gcs() as server:
        yield server


@pytest.fixture
def azure_bucket(azurite: Azurite) -> Iterator[Bucket]:
    """An empty container in Azurite."""
    yield from _bucket_of(azurite)


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> Iterator[Bucket]:
    """An empty bucket on the S3 server."""
    yield from _bucket_of(s3_server)


@pytest.fixture
def gcs_bucket(gcs_server: GcsServer) -> Iterator[Bucket]:
    """An empty bucket that is reached as Google Cloud Storage."""
    yield from _bucket_of(gcs_server)


@pytest.fixture(params=["azurite", "s3_server", "gcs_server"])
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    """An empty bucket of each kind, one after another."""
    yield from _bucket_of(cast("Emulator", request.getfixturevalue(request.param)))


def _bucket_of(emulator: Emulator) -> Iterator[Bucket]:
    new = emulator.new_bucket()
    yield new
    emulator.remove(new.name)


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[WebServer]:
    """A web server with index pages, of this test alone."""
    root = tmp_path / "web"
    root.mkdir()
    with run_web(root) as server:
        yield server


@pytest.fixture
def relay_to() -> Iterator[Callable[[str], Relay]]:
    """Puts a relay before a server: `relay_to(bucket.emulator.server)`."""
    with ExitStack() as stack:
        yield lambda address: stack.enter_context(run_relay(address))
