"""Describe this machine, and measure how fast it is."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

_SECONDS = 1.0
"""The duration of each measurement."""


def describe() -> dict[str, Any]:
    """Return the date (UTC), the name of the CPU, the number of cores of this process,
    the version of Python, and the load average of the last minute.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "cpu": names[0],
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def speed() -> dict[str, dict[str, float]]:
    """Return the milliseconds of three kinds of work on one core: the fastest run, and
    the median, which programs that share the core make longer.

    `python` writes and reads JSON, `arithmetic` multiplies matrices of 200 × 200
    doubles, and `memory` copies 16 MB.
    """
    document = {f"column {number}": [number, 0.5 * number, None] for number in range(300)}
    matrix = np.random.default_rng(0).normal(size=(200, 200))
    block = np.zeros(2_000_000)
    works: dict[str, Callable[[], object]] = {
        "python": lambda: json.loads(json.dumps(document)),
        "arithmetic": lambda: matrix @ matrix,
        "memory": block.copy,
    }
    return {name: _milliseconds(work) for name, work in works.items()}


def slowness(now: dict[str, dict[str, float]], reference: dict[str, dict[str, float]]) -> float:
    """Return the geometric mean of the ratios of the fastest runs; above 1: slower."""
    ratios = [now[name]["fastest"] / reference[name]["fastest"] for name in reference]
    return statistics.geometric_mean(ratios)


def disturbance(now: dict[str, dict[str, float]]) -> float:
    """Return the geometric mean of the ratios of the median to the fastest run."""
    return statistics.geometric_mean([work["median"] / work["fastest"] for work in now.values()])


def _milliseconds(work: Callable[[], object]) -> dict[str, float]:
    spent = []
    end = time.perf_counter() + _SECONDS
    while (began := time.perf_counter()) < end:
        work()
        spent.append(1e3 * (time.perf_counter() - began))
    return {"fastest": round(min(spent), 4), "median": round(statistics.median(spent), 4)}


@contextmanager
def measured(cost: list[tuple[float, float]]) -> Iterator[None]:
    """Append the CPU seconds and the largest memory of this process, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    begun = time.process_time()
    yield
    seconds = time.process_time() - begun
    status = Path("/proc/self/status").read_text().split()
    cost.append((seconds, int(status[status.index("VmHWM:") + 1]) / 1_000))
    print(f"  {seconds:.1f} s, {cost[-1][1]:,.0f} MB", file=sys.stderr)
