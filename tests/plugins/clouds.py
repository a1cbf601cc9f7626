"""The environment that storage is opened with: nothing of whoever runs the tests, and what a test sets."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

CLOUDS = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR", "IDENTITY_")
Setter = Callable[[Mapping[str, str]], None]


@pytest.fixture
def set_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setter:
    """Sets variables of an environment that names no store and no credential yet."""
    for name in os.environ:
        if name.startswith(CLOUDS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")

    def set_all(variables: Mapping[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all
