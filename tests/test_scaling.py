"""How many processes and threads a machine gets, and how the machine is read."""

import os
from pathlib import Path

import psutil
import pytest

from uworker.scaling import PARENT_BYTES, PROCESS_BYTES, Machine, plan, read_machine

GIB = 2**30


@pytest.mark.parametrize(
    ("cores", "memory_gib", "threads_per_process", "processes", "expected"),
    [
        # One process serves as many cores as it may have threads.
        (1, 64, 4, None, (1, 1)),
        (2, 64, 4, None, (1, 2)),
        (4, 64, 4, None, (1, 4)),
        # One more for every further threads_per_process; threads are spread evenly.
        (5, 64, 4, None, (2, 3)),
        (16, 64, 4, None, (4, 4)),
        (16, 64, 1, None, (16, 1)),
        (96, 1024, 4, None, (24, 4)),
        # A part of a core makes no thread, but there is always one.
        (2.5, 64, 4, None, (1, 2)),
        (0.5, 64, 4, None, (1, 1)),
        # Memory allows fewer; even where it allows none, one is tried.
        (16, 6, 4, None, (2, 4)),
        (16, 1, 4, None, (1, 4)),
        (16, 0, 4, None, (1, 4)),
        # What somebody has set is done.
        (16, 64, 4, 2, (2, 4)),
        (2, 64, 4, 3, (3, 1)),
        (2, 1, 4, 2, (2, 1)),
    ],
)
def test_the_plan_uses_all_cores_and_no_more_memory_than_there_is(
    cores: float, memory_gib: int, threads_per_process: int, processes: int | None, expected: tuple[int, int]
) -> None:
    found = plan(Machine(cores, memory_gib * GIB), threads_per_process=threads_per_process, processes=processes)
    assert (found.processes, found.threads) == expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_process_more_is_planned_as_soon_as_its_memory_is_there(count: int) -> None:
    enough = PARENT_BYTES + count * PROCESS_BYTES
    assert plan(Machine(64, enough), threads_per_process=1).processes == count
    assert plan(Machine(64, enough - 1), threads_per_process=1).processes == max(1, count - 1)


def test_the_plan_is_said_in_one_line_with_its_reason() -> None:
    assert str(plan(Machine(2, 64 * GIB), threads_per_process=4)) == "1 recogniser process with 2 threads (2 cores)"
    short = str(plan(Machine(16, 6_000_000_000), threads_per_process=4))
    assert short == "2 recogniser processes with 4 threads (6.0 GB of memory bear no more)"
    assert "as set" in str(plan(Machine(2, 64 * GIB), threads_per_process=4, processes=1))


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_without_a_cgroup_the_machine_is_what_affinity_and_the_system_say(tmp_path: Path) -> None:
    found = read_machine(tmp_path)
    assert found.cores == len(os.sched_getaffinity(0))
    assert 0 < found.memory_bytes <= psutil.virtual_memory().total


def test_affinity_counts_and_not_the_hosts_cores(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert read_machine(tmp_path).cores == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_limits_of_a_cgroup_of_version_2(tmp_path: Path) -> None:
    write(tmp_path, cpuDOTmax="50000 100000\n", memoryDOTmax="1000000\n", memoryDOTcurrent="400000\n")
    assert read_machine(tmp_path) == Machine(0.5, 600_000)


def test_limits_of_a_cgroup_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, cpu__cpuDOTcfs_quota_us="50000\n", cpu__cpuDOTcfs_period_us="100000\n")
    write(tmp_path, memory__memoryDOTlimit_in_bytes="1000000\n", memory__memoryDOTusage_in_bytes="400000\n")
    assert read_machine(tmp_path) == Machine(0.5, 600_000)


def test_files_that_were_read_do_not_count_as_used(tmp_path: Path) -> None:
    write(tmp_path, memoryDOTmax="1000000\n", memoryDOTcurrent="900000\n")
    write(tmp_path, memoryDOTstat="anon 100000\nfile 800000\ninactive_file 700000\nactive_file 100000\n")
    assert read_machine(tmp_path).memory_bytes == 800_000


def test_files_that_were_read_do_not_count_as_used_in_version_1_either(tmp_path: Path) -> None:
    write(tmp_path, memory__memoryDOTlimit_in_bytes="1000000\n", memory__memoryDOTusage_in_bytes="900000\n")
    write(tmp_path, memory__memoryDOTstat="cache 800000\ninactive_file 1\ntotal_inactive_file 700000\n")
    assert read_machine(tmp_path).memory_bytes == 800_000


def test_a_cgroup_that_is_full_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, memoryDOTmax="1000\n", memoryDOTcurrent="2000\n")
    assert read_machine(tmp_path).memory_bytes == 0


@pytest.mark.parametrize(
    "files",
    [
        {"cpuDOTmax": "max 100000\n", "memoryDOTmax": "max\n", "memoryDOTcurrent": "400000\n"},
        {
            "cpu__cpuDOTcfs_quota_us": "-1\n",
            "cpu__cpuDOTcfs_period_us": "100000\n",
            "memory__memoryDOTlimit_in_bytes": "9223372036854771712\n",
            "memory__memoryDOTusage_in_bytes": "400000\n",
        },
        {"cpuDOTmax": "", "memoryDOTmax": "", "memoryDOTcurrent": ""},
    ],
)
def test_a_cgroup_without_limits_changes_nothing(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, **files)
    found = read_machine(tmp_path)
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory_bytes > 10**8
