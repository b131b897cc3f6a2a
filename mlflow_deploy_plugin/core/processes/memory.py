"""The memory of this machine or container, and limits of what a process allocates.

A model file of 2 kB may claim a million columns, and its library allocates memory for
each of them. Therefore every process that opens a model has a limit, whatever the file
claims: an allocation above it fails, with an error that this process reports. Only
Linux has such a limit (RLIMIT_DATA).
"""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from mmap import PAGESIZE
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_OWN_MEMORY = Path("/proc/self/statm")
_DATA = 5
"""The column of the memory that RLIMIT_DATA limits (getrlimit(2))."""


def limit_growth(size: int | None = None) -> None:
    """Limit this process to `size` bytes more memory than now, by default half of the
    machine's. A later call may raise the limit.
    """
    if sys.platform != "linux":
        return
    import resource  # Windows has no such module.

    if size is None:
        size = memory_limit() // 2
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _own_bytes(_DATA) + size
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def bytes_left() -> float:
    """Return how many more bytes this process may allocate; infinite without a
    limit.
    """
    if sys.platform != "linux":
        return math.inf
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    return limit - _own_bytes(_DATA)


def resident_bytes() -> int:
    """Return the resident memory of this process. Raises OSError on other systems than
    Linux.
    """
    return _own_bytes(1)


def _own_bytes(column: int) -> int:
    """Return a column of proc_pid_statm(5)."""
    return int(_OWN_MEMORY.read_bytes().split()[column]) * PAGESIZE


def limit_conversion(files: int) -> None:
    """Limit this process, which converts a model whose files have this size. A forest
    of 157 MB takes 20 times its size.
    """
    limit_growth(min(2 * 2**30 + 64 * files, memory_limit() // 2))


def cgroup_folders(controller: str) -> Iterator[Path]:
    """Yield the cgroup folders that limit this process: its own and the parents
    (cgroups(7)). Some may not exist.
    """
    with contextlib.suppress(OSError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            # In cgroups 2, the line has no controllers.
            if controllers == "" or controller in controllers.split(","):
                top = _CGROUPS / controller if controllers else _CGROUPS
                folder = top / path.lstrip("/")
                yield folder
                yield from (above for above in folder.parents if above.is_relative_to(top))


def memory_limit() -> int:
    """Return the memory of the machine in bytes, or the smallest limit of a cgroup that
    contains this process.
    """
    limits = [physical_memory()]
    for folder in cgroup_folders("memory"):
        # The files of cgroups 2 and cgroups 1.
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # A file may be absent or contain "max".
                limits.append(int((folder / name).read_text()))
    return min(limits)


def physical_memory() -> int:
    if sys.platform == "win32":
        import psutil  # Servers need it later, and start faster without it.

        return psutil.virtual_memory().total
    return os.sysconf("SC_PHYS_PAGES") * PAGESIZE
