"""How the machine and its control groups are read, and what a mean over some seconds makes of it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from uworker.cgroups import Cgroups, CpuLimit, MemoryLimit
from uworker.machine import WINDOW_SECONDS, Machine, Sampler, own_bytes, read_machine

DEADLINE_SECONDS = 60.0


class Kernel:
    """Files as the kernel shows them: a process's `cgroup` and `mountinfo`, and the groups below a mount point."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc self"
        self.groups = folder / "sys fs cgroup"
        self.proc.mkdir()
        self.groups.mkdir()
        self._cgroup = ""
        self._mountinfo = "22 1 8:1 / / rw,relatime - ext4 /dev/vda rw\n"

    def is_in(self, line: str) -> "Kernel":
        """The process is in a group: "0::/a/b" or "4:memory:/a"."""
        self._cgroup += line + "\n"
        (self.proc / "cgroup").write_text(self._cgroup)
        return self

    def mount(self, kind: str, options: str = "rw", *, name: str = "", root: str = "/") -> "Kernel":
        """A hierarchy is to be seen, from `root` on."""
        point = str(self.groups / name).replace(" ", "\\040")
        self._mountinfo += f"31 23 0:28 {root} {point} rw,relatime shared:9 - {kind} cgroup {options}\n"
        (self.proc / "mountinfo").write_text(self._mountinfo)
        return self

    def write(self, group: str, **files: str) -> "Kernel":
        """Files of a group; `cpu_max="max"` is `cpu.max`."""
        folder = self.groups / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("_", ".", 1)).write_text(content + "\n")
        return self

    @property
    def cgroups(self) -> Cgroups:
        return Cgroups(self.proc)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


@pytest.fixture
def version_2(kernel: Kernel) -> Kernel:
    """A process in /a/b of version 2, without limits."""
    kernel.is_in("0::/a/b").mount("cgroup2")
    return kernel.write("a/b", cpu_max="max 100000", memory_max="max", memory_current="400000")


@pytest.fixture
def version_1(kernel: Kernel) -> Kernel:
    """A process in groups of version 1, without limits; what it uses is counted in a hierarchy of its own."""
    for line in ("4:memory:/m", "3:cpuacct:/c", "2:cpu,cpuset:/c", "1:name=systemd:/", "0::/"):
        kernel.is_in(line)
    for name in ("memory", "cpuacct", "cpu"):
        kernel.mount("cgroup", f"rw,{name}", name=name)
    kernel.mount("cgroup2", name="unified")
    unlimited = str(2**63 - 4096)
    kernel.write("memory/m", memory_limit_in_bytes=unlimited, memory_usage_in_bytes="400000")
    return kernel.write("cpu/c", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")


def test_without_a_cgroup_the_machine_is_what_affinity_and_the_system_say(tmp_path: Path) -> None:
    found = read_machine(Cgroups(tmp_path))
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory_bytes == psutil.virtual_memory().total
    assert 0 < found.memory_used_bytes < found.memory_bytes


def test_affinity_counts_and_not_the_hosts_cores(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert read_machine(Cgroups(tmp_path)).cores == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_groups_without_limits_change_nothing(version_1: Kernel) -> None:
    assert version_1.cgroups.cpu_limits() == []
    assert version_1.cgroups.memory_limits() == []


def test_groups_of_version_2_without_limits_change_nothing(version_2: Kernel) -> None:
    assert version_2.cgroups.cpu_limits() == []
    assert version_2.cgroups.memory_limits() == []


@pytest.mark.parametrize("files", [{}, {"cpu_max": "", "memory_max": "", "memory_current": ""}])
def test_files_that_are_missing_or_empty_are_no_limit(version_2: Kernel, files: dict[str, str]) -> None:
    for file in (version_2.groups / "a/b").iterdir():
        file.unlink()
    version_2.write("a/b", **files)
    assert (version_2.cgroups.cpu_limits(), version_2.cgroups.memory_limits()) == ([], [])


def test_limits_of_the_processs_own_group_of_version_2(version_2: Kernel) -> None:
    version_2.write("a/b", cpu_max="50000 100000", cpu_stat="usage_usec 2500000\nuser_usec 1")
    version_2.write("a/b", memory_max="1000000", memory_current="400000")
    assert version_2.cgroups.cpu_limits() == [CpuLimit(str(version_2.groups / "a/b"), 0.5, 2.5)]
    assert version_2.cgroups.memory_limits() == [MemoryLimit(1_000_000, 400_000)]
    assert read_machine(version_2.cgroups) == Machine(0.5, 1_000_000, 400_000)


def test_limits_of_the_processs_own_groups_of_version_1(version_1: Kernel) -> None:
    version_1.write("cpu/c", cpu_cfs_quota_us="150000")
    version_1.write("cpuacct/c", cpuacct_usage="2500000000")
    version_1.write("memory/m", memory_limit_in_bytes="1000000")
    assert version_1.cgroups.cpu_limits() == [CpuLimit(str(version_1.groups / "cpu/c"), 1.5, 2.5)]
    assert version_1.cgroups.memory_limits() == [MemoryLimit(1_000_000, 400_000)]


def test_a_limit_of_a_group_further_up_holds_for_the_process_too(version_2: Kernel) -> None:
    version_2.write("a", cpu_max="150000 100000", memory_max="900000", memory_current="800000")
    version_2.write("a/b", cpu_max="400000 100000", memory_max="1000000", memory_current="100000")
    assert [limit.cores for limit in version_2.cgroups.cpu_limits()] == [4.0, 1.5]
    assert read_machine(version_2.cgroups) == Machine(min(1.5, len(os.sched_getaffinity(0))), 900_000, 800_000)


def test_a_group_that_is_slowed_down_before_its_limit_has_that_as_its_limit(version_2: Kernel) -> None:
    version_2.write("a/b", memory_max="1000000", memory_high="800000", memory_current="400000")
    assert version_2.cgroups.memory_limits() == [MemoryLimit(800_000, 400_000)]
    version_2.write("a/b", memory_max="max", memory_high="700000")
    assert version_2.cgroups.memory_limits() == [MemoryLimit(700_000, 400_000)]


def test_files_that_were_read_do_not_count_as_used(version_2: Kernel) -> None:
    version_2.write("a/b", memory_max="1000000", memory_current="900000")
    version_2.write("a/b", memory_stat="anon 100000\nfile 800000\ninactive_file 700000\nactive_file 100000")
    assert version_2.cgroups.memory_limits() == [MemoryLimit(1_000_000, 200_000)]


def test_files_that_were_read_do_not_count_as_used_in_version_1_either(version_1: Kernel) -> None:
    version_1.write("memory/m", memory_limit_in_bytes="1000000", memory_usage_in_bytes="900000")
    version_1.write("memory/m", memory_stat="cache 800000\ninactive_file 1\ntotal_inactive_file 700000")
    assert version_1.cgroups.memory_limits() == [MemoryLimit(1_000_000, 200_000)]


@pytest.mark.parametrize(
    ("path", "root", "folder"),
    [
        # A container that sees its own group as the top, while its path is told as the host has it, or as its own.
        ("/docker/abc", "/docker/abc", ""),
        ("/docker/abc/inner", "/docker/abc", "inner"),
        ("/", "/", ""),
        ("/", "/docker/abc", ""),
        # Paths that lead out of what is to be seen, or nowhere.
        ("/../other", "/", ""),
        ("/docker/abcdef", "/docker/abc", ""),
        ("/gone", "/", ""),
    ],
)
def test_the_group_is_found_from_inside_a_container(kernel: Kernel, path: str, root: str, folder: str) -> None:
    kernel.is_in(f"0::{path}").mount("cgroup2", root=root)
    kernel.write(folder, cpu_max="100000 100000", memory_max="1000", memory_current="10")
    assert [limit.group for limit in kernel.cgroups.cpu_limits()] == [str((kernel.groups / folder).resolve())]
    assert kernel.cgroups.memory_limits() == [MemoryLimit(1000, 10)]


def test_this_machines_own_files_are_understood() -> None:
    found = read_machine()
    assert 0 < found.cores <= len(os.sched_getaffinity(0))
    assert 0 < found.memory_used_bytes < found.memory_bytes <= psutil.virtual_memory().total * 2


# --- means ---


def test_the_mean_of_a_group_is_that_of_the_last_seconds(version_2: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the machine does meanwhile.
    monkeypatch.setattr("uworker.machine._busy_seconds", lambda: 0.0)
    monkeypatch.setattr("uworker.machine._stolen_seconds", lambda: 0.0)
    version_2.write("a/b", cpu_max="50000 100000")
    sampler = Sampler(version_2.cgroups)
    percents = []
    used = 0.0
    for second in range(15):
        used += 0.5 if second >= 10 else 0.0
        version_2.write("a/b", cpu_stat=f"usage_usec {round(used * 1e6)}")
        sampler.sample(float(second), [])
        percents.append(0.0 if sampler.load is None else sampler.load.cpu_percent)
    # Idle for ten seconds, then all that it may use: the whole of the mean five seconds later.
    assert percents[9] < 20
    assert percents[11] == pytest.approx(40, abs=15)
    assert percents[14] == pytest.approx(100, abs=1)


def test_a_group_is_used_by_us_and_by_others(version_2: Kernel) -> None:
    version_2.write("a/b", cpu_max="50000 100000")
    sampler = Sampler(version_2.cgroups)
    for second in range(0, 4000, 1000):
        version_2.write("a/b", cpu_stat=f"usage_usec {second * 300_000}")
        sampler.sample(float(second), [])
    load = sampler.load
    assert load is not None
    # 0.3 of 0.5 cores, of which this process took nothing worth mentioning.
    assert load.cpu_percent == pytest.approx(60, abs=1)
    assert load.others_cores == pytest.approx(0.3, abs=0.01)


def test_memory_is_a_mean_over_the_window_and_forgets_what_was_before(version_2: Kernel) -> None:
    sampler = Sampler(version_2.cgroups)

    def sample(second: float, used: int) -> float:
        version_2.write("a/b", memory_max="1000", memory_current=str(used))
        sampler.sample(second, [])
        return 0.0 if sampler.load is None else sampler.load.memory_percent

    sample(0, 0)
    assert sample(1, 1000) == 100
    assert sample(2, 0) == 50
    assert sample(2 + WINDOW_SECONDS, 400) == 40
    assert sample(3 + WINDOW_SECONDS, 600) == 50


def test_the_mean_of_one_limit_is_not_measured_by_another(version_2: Kernel) -> None:
    """Which of them is the scarcest may change from one second to the next."""
    used = 3 * 10**9
    limit = psutil.virtual_memory().available + used // 2
    sampler = Sampler(version_2.cgroups)
    for second in range(4):
        version_2.write("a/b", memory_max=str(limit), memory_current=str(used * (second % 2)))
        sampler.sample(float(second), [])
    assert sampler.load is not None
    assert (sampler.load.machine.memory_bytes, sampler.load.machine.memory_used_bytes) == (limit, 2 * 10**9)


def test_there_is_no_load_before_there_were_two_samples(version_2: Kernel) -> None:
    sampler = Sampler(version_2.cgroups)
    assert sampler.load is None
    sampler.sample(1.0, [])
    sampler.sample(1.0, [])
    assert sampler.load is None


@contextmanager
def program(code: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


HOG = "print(flush=True)\nwhile True: pass"
HOARDER = "data = bytearray(b'x') * 200_000_000\nprint(flush=True)\nimport time\ntime.sleep(600)"
FAMILY = """
import subprocess, sys, threading, time
for _ in range(20):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
children = [subprocess.Popen(waiting, stdin=subprocess.PIPE) for _ in range(3)]
print(flush=True)
time.sleep(600)
"""


def sample_until(sampler: Sampler, pids: list[int], done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not done():
        assert time.monotonic() < deadline, sampler.load
        sampler.sample(time.monotonic(), pids)
        time.sleep(0.1)


def test_a_program_is_told_from_our_own() -> None:
    """The same busy process, counted once as ours and once as another's."""
    with program(HOG) as pid:
        ours, others = Sampler(), Sampler()
        sample_until(ours, [pid], lambda: ours.load is not None and ours.load.own_cores > 0.3)
        sample_until(others, [], lambda: others.load is not None and others.load.others_cores > 0.3)
    assert others.load is not None
    assert others.load.own_cores < 0.3
    assert others.load.cpu_percent > 0


def test_a_program_that_one_of_ours_has_started_is_ours() -> None:
    """As an engine that is a program, while it runs: nobody has waited for it yet."""
    starter = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {HOG!r}])"
    sampler = Sampler()
    with program(starter) as pid:
        try:
            sample_until(sampler, [pid], lambda: sampler.load is not None and sampler.load.own_cores > 0.3)
        finally:
            # It does not end with its parent.
            for hog in psutil.Process(pid).children():
                hog.kill()


def test_processor_time_of_a_child_that_is_gone_stays_ours() -> None:
    sampler = Sampler()
    with program(HOG) as pid:
        sample_until(sampler, [pid], lambda: sampler.load is not None and sampler.load.own_cores > 0.3)
    now = time.monotonic()
    sampler.sample(now, [pid])
    assert sampler.load is not None
    assert sampler.load.own_cores > 0.1


def test_a_process_is_measured_once_it_has_been_ready_for_a_while() -> None:
    sampler = Sampler()
    with program(HOARDER) as pid:
        for at in (0.0, 1.0, WINDOW_SECONDS - 0.1):
            sampler.sample(at, [pid], [pid])
            assert sampler.measured == 0
        sampler.sample(WINDOW_SECONDS, [pid], [pid])
        assert sampler.measured == 1
        assert sampler.load is not None
        assert sampler.load.process_bytes is not None
        assert 200_000_000 < sampler.load.process_bytes < 300_000_000
        # Who is not ready any more is forgotten.
        sampler.sample(WINDOW_SECONDS + 1, [pid], [])
        assert sampler.measured == 0
        assert sampler.load.process_bytes is None


def test_processes_are_measured_by_turns_and_the_largest_counts() -> None:
    sampler = Sampler()
    small = os.getpid()
    with program(HOARDER) as large:
        sampler.sample(0.0, [large], [small, large])
        sampler.sample(WINDOW_SECONDS, [large], [small, large])
        sampler.sample(WINDOW_SECONDS + 1, [large], [small, large])
        assert sampler.measured == 1
        sampler.sample(2 * WINDOW_SECONDS, [large], [small, large])
        assert sampler.measured == 2
        assert sampler.load is not None
        assert sampler.load.process_bytes is not None
        assert sampler.load.process_bytes > 200_000_000


def test_the_size_of_a_process_counts_no_page_that_it_shares() -> None:
    sharing = (
        "import mmap, os, time\n"
        "shared = mmap.mmap(-1, 200_000_000)\n"
        "shared.write(b'x' * 200_000_000)\n"
        "if os.fork() == 0:\n"
        "    sum(shared[::4096])\n"
        "    print(flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    with program(sharing) as pid:
        process = psutil.Process(pid)
        try:
            size = own_bytes(pid)
            assert size is not None
            assert size < 100_000_000 < process.memory_info().rss
        finally:
            for child in process.children():
                child.kill()


def test_a_process_that_is_gone_has_no_size() -> None:
    with program("print(flush=True)") as pid:
        pass
    assert own_bytes(pid) is None


def test_sampling_costs_next_to_nothing() -> None:
    sampler = Sampler()
    # Of a tree of processes that is as large as a worker's, and no larger on a busy machine.
    with program(FAMILY) as pid:
        began = time.process_time()
        for second in range(100):
            sampler.sample(float(second), [pid], [pid])
        # Once a second: a hundredth of a core, with room for a busy machine.
        assert time.process_time() - began < 100 * 0.01
