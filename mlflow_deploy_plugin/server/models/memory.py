"""Memory for two versions: a new one is loaded beside the one that serves only where both have room.

A container whose limit is passed is killed, and with it the version that served. So what loading takes is estimated
before: by what the last version has taken for each byte of its files, or twice the files where none was large enough
to tell (ONNX Runtime holds the graph as it was read beside what it makes of it). The first version of a worker has
nobody beside it that could suffer: it is refused only where its files alone are too large.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_deploy_plugin.errors import ModelError

_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_OTHERS_BYTES = 384 * 2**20
"""What supervisor, gunicorn and the agent take in a container; a quarter of it where that is less."""
_TELLING_BYTES = 4 * 2**20
"""Of smaller files, what is measured is mostly the libraries that they need."""
_TIMES_FILES = 2.0
_LEAST_TIMES, _MOST_TIMES = 1.0, 4.0
_NO_LIMIT = 2**60
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MemoryLimit:
    """The bound of one worker; `limit` in bytes, None: there is none."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._times_files = _LEAST_TIMES

    @contextmanager
    def loading(self, folder: Path) -> Iterator[None]:
        """Within it the version of this folder is loaded, once it is known to have room.

        Raises:
            ModelError: it would pass the limit; the message has the figures.
        """
        if self._limit is None:
            yield
            return
        files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        before = self.used()
        needed = int(files * self._times_files)
        if before + needed > self._limit:
            raise ModelError(
                f"loading it would take about {_mebibytes(needed)} beside the {_mebibytes(before)} that this worker "
                f"has in memory, and its limit is {_mebibytes(self._limit)} (server.max_worker_memory_bytes)"
            )
        yield
        taken = (self.used() - before) / files if files >= _TELLING_BYTES else _TIMES_FILES
        self._times_files = min(max(taken, _LEAST_TIMES), _MOST_TIMES)

    def used(self) -> int:
        """Resident memory of this process and of those that it has started."""
        return sum(_resident(pid) for pid in _family(os.getpid()))


def worker_limit(said: int | None, workers: int) -> int | None:
    """What one worker may take: as the spec says, or its share of the container's memory; None: there is no limit."""
    if said is not None:
        return said
    limit = next((limit for path in _CGROUPS if (limit := _read_limit(path)) is not None), None)
    if limit is None:
        return None
    return (limit - min(_OTHERS_BYTES, limit // 4)) // workers


def _read_limit(path: Path) -> int | None:
    try:
        limit = int(path.read_text())
    except (OSError, ValueError):  # "max"
        return None
    return limit if limit < _NO_LIMIT else None


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    except OSError:  # it has ended, or this is not Linux
        return
    for child in children:
        yield from _family(int(child))


def _resident(pid: int) -> int:
    words = _words(Path(f"/proc/{pid}/statm"))
    return int(words[1]) * _PAGE_BYTES if len(words) > 1 else 0


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
