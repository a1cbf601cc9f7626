"""How images are built of chosen files: what is built anew, which image it was, and whose certificates are believed."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.containers.bases import DEBIAN, import_debian
from tests.containers.engine import Engine
from tests.containers.workers import REPOSITORY
from tests.plugins.containers import EngineStarter
from uworker.snapshot.builder import build
from uworker.snapshot.images import ImageRequest, dependencies_tag

TAG = "decimer-tests:builder"


def program(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def test_a_newer_base_is_built_on_and_the_same_one_is_not_built_on_again(
    fresh_engine: EngineStarter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = fresh_engine()
    monkeypatch.setenv("DOCKER_HOST", engine.address)
    request = ImageRequest(TAG, "tests", REPOSITORY, None)
    unknown = dependencies_tag(request)
    import_debian(engine)
    first = dependencies_tag(request)
    import_debian(engine)
    assert dependencies_tag(request) == first != unknown
    newer = tmp_path / "newer.tar"
    with tarfile.open(newer, "w") as archive:
        archive.addfile(tarfile.TarInfo("updated"), io.BytesIO())
    engine.docker("import", str(newer), DEBIAN)
    assert dependencies_tag(request) not in (first, unknown)


def test_the_image_is_the_one_that_was_built_though_another_build_took_the_tag(
    docker_engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docker = shutil.which("docker")
    # The other build ends at the worst moment: when this one is through and nobody has looked at it yet.
    program(
        tmp_path / "bin" / "docker",
        f'{docker} "$@" || exit',
        f'[ "$1" != build ] || {docker} tag {DEBIAN} {TAG}',
    )
    monkeypatch.setenv("DOCKER_HOST", docker_engine.address)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    context = {"Dockerfile": f"FROM {DEBIAN}\nCOPY made /made\n".encode(), "made": b"by this build"}
    built = build(TAG, context, print, arguments={})
    taken = docker_engine.docker("image", "inspect", "--format={{.Id}}", TAG).stdout.strip()
    assert taken != built
    assert docker_engine.docker("run", "--rm", "--network=none", built, "cat", "/made").stdout == "by this build"


def test_the_certificates_of_the_machine_that_builds_are_believed_besides_debians(tmp_path: Path) -> None:
    debians = Path("/etc/ssl/certs/ca-certificates.crt")
    if not debians.exists():
        pytest.skip("this system keeps its certificates elsewhere; the images are Debian")
    # Ends where pip would ask PyPI, and keeps what that would believe.
    program(tmp_path / "bin" / "python3", 'cat "$SSL_CERT_FILE" >ssl', 'cat "$PIP_CERT" >pip', "exit 7")
    (tmp_path / "ca-bundle.crt").write_text("of this machine\n")
    command = ["sh", str(REPOSITORY / "docker/install-dependencies.sh"), "0.13.8", "worker"]
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == 7
    believed = (tmp_path / "ssl").read_text()
    assert believed == (tmp_path / "pip").read_text()
    assert believed.startswith(debians.read_text())
    assert believed.endswith("\nof this machine\n")
