"""What the kernel's control groups allow this process: limits and use of processor and memory, versions 1 and 2.

A container's limit is not the host's, and it may lie on any group between the process's own and the root: all of them
are looked at. Which these are is said by `/proc/self/cgroup` (the paths) and `/proc/self/mountinfo` (where they are
to be seen). What cannot be read counts as no limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self")

# Version 1 says "no limit" with a number larger than any machine.
_UNLIMITED_BYTES = 2**60
_NANOSECONDS, _MICROSECONDS = 1e9, 1e6


@dataclass(frozen=True)
class CpuLimit:
    """Cores' worth of time that a group may use, and what it has used. `used_seconds` is None where nobody counts."""

    group: str
    cores: float
    used_seconds: float | None


@dataclass(frozen=True)
class MemoryLimit:
    """What a group may take and has taken. Files that were read are no use: they make room when it is needed."""

    limit_bytes: int
    used_bytes: int


class Cgroups:
    """The groups that a process is in, from its own up to the root.

    Args:
        proc: the process's folder in `/proc`.
    """

    def __init__(self, proc: Path = PROC) -> None:
        paths, mounts = dict(_paths(proc)), list(_mounts(proc))
        self._cpu_is_v1, self._cpu = _find("cpu", paths, mounts)
        self._memory_is_v1, self._memory = _find("memory", paths, mounts)
        # In version 1 the use may be counted in another hierarchy than the one that limits it.
        self._counted = _find("cpuacct", paths, mounts)[1] if self._cpu_is_v1 else self._cpu

    def cpu_limits(self) -> list[CpuLimit]:
        """The groups whose processor time is limited."""
        found = []
        # The two hierarchies have their top in common, if not the depth.
        deeper = len(self._counted) - len(self._cpu)
        for place, group in enumerate(self._cpu):
            if (cores := self._quota(group)) is not None:
                counted = self._counted[deeper + place] if deeper + place >= 0 else None
                found.append(CpuLimit(str(group), cores, None if counted is None else self._used_seconds(counted)))
        return found

    def memory_limits(self) -> list[MemoryLimit]:
        """The groups whose memory is limited."""
        limits = (self._memory_limit(group) for group in self._memory)
        return [limit for limit in limits if limit is not None]

    def _quota(self, group: Path) -> float | None:
        if self._cpu_is_v1:
            quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
            return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None
        words = _words(group / "cpu.max")
        return int(words[0]) / int(words[1]) if words and words[0] != "max" else None

    def _used_seconds(self, group: Path) -> float | None:
        if self._cpu_is_v1:
            words = _words(group / "cpuacct.usage")
            return int(words[0]) / _NANOSECONDS if words else None
        used = _named(group / "cpu.stat", "usage_usec")
        return None if used is None else used / _MICROSECONDS

    def _memory_limit(self, group: Path) -> MemoryLimit | None:
        # Above `memory.high` nobody is killed, but slowed down until next to nothing goes on.
        limits, usage, cache = ["memory.max", "memory.high"], "memory.current", "inactive_file"
        if self._memory_is_v1:
            limits, usage, cache = ["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file"
        words = [word for name in limits for word in _words(group / name) if word != "max"]
        limit, used = min(map(int, words), default=_UNLIMITED_BYTES), _words(group / usage)
        if not used or limit >= _UNLIMITED_BYTES:
            return None
        return MemoryLimit(limit, max(int(used[0]) - (_named(group / "memory.stat", cache) or 0), 0))


@dataclass(frozen=True)
class _Mount:
    """A hierarchy of groups: its controllers (none in version 2), which group is at its top, and where it is seen."""

    controllers: frozenset[str]
    root: str
    point: Path


def _paths(proc: Path) -> Iterator[tuple[str, str]]:
    """The process's group in each hierarchy, by controller; that of version 2 by ''."""
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _mounts(proc: Path) -> Iterator[_Mount]:
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(" "), [*after.split(" "), "", "", ""][:3]
        if kind in ("cgroup", "cgroup2"):
            controllers = frozenset(options.split(",")) if kind == "cgroup" else frozenset[str]()
            yield _Mount(controllers, _unescaped(fields[3]), Path(_unescaped(fields[4])))


def _find(controller: str, paths: dict[str, str], mounts: list[_Mount]) -> tuple[bool, list[Path]]:
    """Whether a controller is one of version 1, and the folders of its groups from the process's own to the topmost."""
    is_v1 = controller in paths
    path = paths.get(controller if is_v1 else "")
    mount = next((m for m in mounts if (controller in m.controllers if is_v1 else not m.controllers)), None)
    if path is None or mount is None:
        return is_v1, []
    # In a container the top that is seen is often the container's own group, while the path is told as the host has it.
    root = mount.root.rstrip("/")
    below = path[len(root) :].strip("/") if path == root or path.startswith(root + "/") else ""
    own = mount.point / below if ".." not in below.split("/") else mount.point
    if not own.is_dir():
        own = mount.point
    return is_v1, [own, *(parent for parent in own.parents if parent.is_relative_to(mount.point))]


def _unescaped(word: str) -> str:
    """A word of mountinfo, in which white space and backslashes are three octal digits."""
    for octal in ("040", "011", "012", "134"):
        word = word.replace("\\" + octal, chr(int(octal, 8)))
    return word


def _named(path: Path, name: str) -> int | None:
    """A number in a file of lines with a name and a number."""
    for line in _lines(path):
        if line.startswith(name + " "):
            return int(line.split()[1])
    return None


def _words(path: Path) -> list[str]:
    return _read(path).split()


def _lines(path: Path) -> list[str]:
    return _read(path).splitlines()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
