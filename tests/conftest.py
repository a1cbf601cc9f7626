"""The plugins that give the tests their real parts."""

import os
import sys

import pytest
from hypothesis import HealthCheck, Phase, settings

# Containers like to set it. The tests start hundreds of Python processes: each would compile all that it imports anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest_plugins = [
    "tests.plugins.model",
    "tests.plugins.replica",
    "tests.plugins.service",
    "tests.plugins.fleet",
    "tests.plugins.recognisers",
    "tests.plugins.apart",
    "tests.plugins.emulators",
    "tests.plugins.clouds",
    "tests.plugins.containers",
    "tests.plugins.snapshots",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "service(**settings): settings of the `service` fixture")
    config.addinivalue_line("markers", "alone: wants the machine for itself, so `make tests` runs it after the others")
    config.addinivalue_line("markers", "may_deadlock: the test makes its databases deadlock")


# The files that take longest begin first, so that none of them is left at the end to one process alone.
LONGEST = (
    "test_start_worker.py",
    "test_service_containers.py",
    "test_worker_image.py",
    "test_engine_container.py",
    "test_prepared_structure.py",
    "test_prepared.py",
    "test_prepared_worker.py",
    "test_engine_apart.py",
    "test_slurm.py",
    "test_survival.py",
    "test_worker.py",
    "test_bench_recognition.py",
    "test_job_life.py",
    "test_stores.py",
    "test_beside.py",
    "test_supervisor.py",
    "test_quarantine.py",
    "test_eviction.py",
    "test_demo.py",
    "test_contention.py",
    "test_rolling.py",
    "test_processes.py",
    "test_failover.py",
    "test_benchmarks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


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
