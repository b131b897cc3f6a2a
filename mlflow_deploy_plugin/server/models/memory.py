"""The memory limit of a worker: a new version is loaded beside the serving one only if both have room.

A container that exceeds its limit is killed, and with it the serving version. So the memory of a load is estimated
first: by what the last version has taken for each byte of its files, or twice the files if none was large enough to
measure (ONNX Runtime holds the graph as it was read beside its own form of it). The first version of a worker endangers
no other: it is refused only if its files alone are too large.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_deploy_plugin.errors import ModelError

_CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_OTHERS_BYTES = 384 * 2**20
"""The memory of supervisor, gunicorn and agent in a container; at most a quarter of the limit is set aside for them."""
_MEASURABLE_BYTES = 4 * 2**20
"""The load of smaller files mostly measures the libraries that they need."""
_DEFAULT_FACTOR = 2.0
_MIN_FACTOR, _MAX_FACTOR = 1.0, 4.0
_NO_LIMIT = 2**60
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MemoryLimit:
    """The limit of one worker in bytes, or None."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._factor = _MIN_FACTOR

    @contextmanager
    def loading(self, folder: Path) -> Iterator[None]:
        """Check that the version in `folder` has room, and measure what loading it within the context takes.

        Raises:
            ModelError: it would exceed the limit; the message has the figures.
        """
        if self._limit is None:
            yield
            return
        files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        before = self.used()
        needed = int(files * self._factor)
        if before + needed > self._limit:
            raise ModelError(
                f"loading it would take about {_mebibytes(needed)} beside the {_mebibytes(before)} that this worker "
                f"has in memory, and its limit is {_mebibytes(self._limit)} (server.max_worker_memory_bytes)"
            )
        yield
        taken = (self.used() - before) / files if files >= _MEASURABLE_BYTES else _DEFAULT_FACTOR
        self._factor = min(max(taken, _MIN_FACTOR), _MAX_FACTOR)

    def used(self) -> int:
        """Return the resident memory of this process and its descendants."""
        statms = (_words(Path(f"/proc/{pid}/statm")) for pid in _family(os.getpid()))
        return sum(int(words[1]) for words in statms if len(words) > 1) * _PAGE_BYTES


def worker_limit(configured: int | None, workers: int) -> int | None:
    """Return the limit of one worker: the configured one, or its share of the container's memory if that is limited."""
    if configured is not None:
        return configured
    for path in _CGROUPS:
        try:
            limit = int(path.read_text())
        except (OSError, ValueError):  # "max"
            continue
        if limit < _NO_LIMIT:
            return (limit - min(_OTHERS_BYTES, limit // 4)) // workers
    return None


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in _words(task / "children")]
    except OSError:  # it has ended, or this is not Linux
        return
    for child in children:
        yield from _family(int(child))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
