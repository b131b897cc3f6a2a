"""The memory and time that a loaded version takes, measured in a process of its own that holds nothing else.

The rounds of two versions alternate, so that other load on this machine meets both; the ratio is the median over the
rounds.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy_plugin.errors import DeadlineExceeded, InferenceError, OnnxserveError
from mlflow_deploy_plugin.gate.model import load_version
from mlflow_deploy_plugin.processes import Worker
from mlflow_deploy_plugin.runtime import Array, Feeds

ROUNDS = 7
_ROUND_SECONDS = 0.05
_MAX_TIMES, _MIN_TIMES = 300, 3
_START_TIMEOUT_SECONDS = 300.0
_ROUND_TIMEOUT_SECONDS = 120.0

_loaded: tuple[Any, list[Feeds], Feeds] | None = None
"""In the process that measures: the model, its single rows, and a batch of them."""


@dataclass(frozen=True, eq=False)
class MeasuredCost:
    """The cost of one version.

    Attributes:
        memory: bytes that loading it and predicting a batch added to its process.
        rows, batches: by round, the seconds of each prediction for one row, and for a batch.
    """

    memory: float
    rows: tuple[Array, ...]
    batches: tuple[Array, ...]


def measure_costs(folders: Sequence[Path], rows: Feeds, batch: int, rounds: int = ROUNDS) -> list[MeasuredCost]:
    """Measure the versions side by side, in alternate rounds.

    Raises:
        InferenceError: a version does not load, refuses the rows, or does not answer in time.
    """
    sample = {name: array[:batch] for name, array in rows.items()}
    workers = [Worker(stderr=subprocess.DEVNULL) for _ in folders]
    try:
        # versions load at the same time: only the memory of loading counts, and each process has its own
        with ThreadPoolExecutor(len(folders)) as threads:
            loading = [
                threads.submit(_call, worker, _START_TIMEOUT_SECONDS, _load, folder, sample, batch)
                for worker, folder in zip(workers, folders, strict=True)
            ]
        memory = [future.result() for future in loading]
        times = [[_call(worker, _ROUND_TIMEOUT_SECONDS, _measure_round) for worker in workers] for _ in range(rounds)]
    finally:
        for worker in workers:
            worker.end()
    return [
        MeasuredCost(
            memory[place],
            tuple(np.array(ones) for ones, _ in (answers[place] for answers in times)),
            tuple(np.array(batches) for _, batches in (answers[place] for answers in times)),
        )
        for place in range(len(folders))
    ]


def median_ratio(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """Return the median over the rounds of the ratio of the medians."""
    return float(np.median([np.median(one) / np.median(other) for one, other in zip(ours, theirs, strict=True)]))


def _call(worker: Worker, seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return worker.call(function, *arguments, seconds=seconds)
    except DeadlineExceeded:
        raise InferenceError(f"the model did not answer a measurement within {seconds:.0f} s") from None
    except OnnxserveError as error:
        raise InferenceError(f"the model cannot be measured: {error.message[:300]}") from None


def _load(folder: Path, rows: Feeds, batch: int) -> int:
    """Load a version in this process, and return the memory that loading it and predicting a batch added."""
    import psutil  # imported late: the parent does not need it

    from mlflow_deploy_plugin.runtime import import_onnxruntime

    global _loaded
    total = len(next(iter(rows.values())))
    many = {name: array[np.resize(np.arange(total), batch)] for name, array in rows.items()}
    ones = [{name: array[place : place + 1] for name, array in rows.items()} for place in range(total)]
    import_onnxruntime()  # every server has it in memory anyway, so it does not count for the model
    process = psutil.Process()
    before = process.memory_info().rss
    model = load_version(folder)
    model.predict(ones[0])
    model.predict(many)
    _loaded = model, ones, many
    return int(max(process.memory_info().rss - before, 0))


def _measure_round() -> tuple[list[float], list[float]]:
    """Return the seconds of each prediction for one row, and for a batch."""
    assert _loaded is not None
    model, ones, many = _loaded
    return _times(model, ones), _times(model, [many])


def _times(model: Any, inputs: list[Feeds]) -> list[float]:
    """Predict the inputs in turn for `_ROUND_SECONDS`; return the seconds of each prediction."""
    times: list[float] = []
    end = time.perf_counter() + _ROUND_SECONDS
    while len(times) < _MIN_TIMES or (len(times) < _MAX_TIMES and time.perf_counter() < end):
        start = time.perf_counter()
        model.predict(inputs[len(times) % len(inputs)])
        times.append(time.perf_counter() - start)
    return times
