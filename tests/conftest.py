"""The plugins that give the tests their real parts."""

import pytest
from hypothesis import HealthCheck, Phase, settings

pytest_plugins = [
    "tests.plugins.model",
    "tests.plugins.service",
    "tests.plugins.fleet",
    "tests.plugins.emulators",
    "tests.plugins.clouds",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "service(**settings): settings of the `service` fixture")
    config.addinivalue_line("markers", "alone: wants the machine for itself, so `make tests` runs it after the others")
    config.addinivalue_line("markers", "may_deadlock: the test makes its databases deadlock")


# The same sequences at each run, and a failing one is told as it is; --hypothesis-profile=long looks for new ones all
# the time, and makes those that fail as short as they get, which takes minutes.
_KNOWN = settings(
    database=None,
    deadline=None,
    print_blob=True,
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("short", _KNOWN, derandomize=True, max_examples=100, phases=[Phase.generate])
settings.register_profile("long", _KNOWN, max_examples=1_000)
settings.load_profile("short")
