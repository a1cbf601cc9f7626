"""The plugins that give the tests their real parts."""

import pytest

pytest_plugins = ["tests.plugins.model", "tests.plugins.service", "tests.plugins.fleet"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "service(**settings): settings of the `service` fixture")
