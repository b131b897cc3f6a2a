"""Budget: time and memory compared with the current version on this machine, and
absolute limits if specified.

Each version is measured in a separate process. The rounds of the two versions
alternate, so that other load on this machine affects both. Ratios are compared, because
absolute times do not transfer to other machines. The ratio of times is the median over
the rounds. A ratio is ignored if the absolute growth is small, e.g. from 1.5 MB to 3
MB.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlflow_deploy_plugin.core.errors import DeadlineExceeded, InferenceError, OnnxserveError
from mlflow_deploy_plugin.core.processes.memory import limit_growth
from mlflow_deploy_plugin.core.processes.worker import Worker
from mlflow_deploy_plugin.core.registry.policy import BudgetPolicy
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult, ReportTable, state_of
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, slice_feeds
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedModel, load_version

NAME = "budget"
ROUNDS = 7
_MB = 1e6
_ROUND_SECONDS = 0.05
_MAX_TIMES = 300
_MIN_TIMES = 3
_START_TIMEOUT_SECONDS = 300.0
_ROUND_TIMEOUT_SECONDS = 120.0


_loaded: tuple[LoadedModel, list[Feeds], Feeds] | None = None
"""The model, its single rows and a batch, which are set only in the measuring process.
"""


@dataclass(frozen=True, eq=False)
class MeasuredCost:
    """The cost of a version.

    Attributes:
        memory: the growth of its process in bytes after a load and a batch.
        rows: an array per round, with the seconds of each prediction of a row.
        batches: an array per round, with the seconds of each prediction of a batch.
    """

    memory: float
    rows: tuple[Array, ...]
    batches: tuple[Array, ...]


@dataclass(frozen=True)
class _Measure:
    """A measure in `unit` of the new version (`ours`) and the current version
    (`theirs`), logged as `figure`. `theirs` and `ratio` are None without a current
    version.
    """

    what: str
    figure: str
    unit: Literal["ms", "MB"]
    ours: float
    theirs: float | None = None
    ratio: float | None = None

    def text(self, against: str) -> str:
        compared = "" if self.ratio is None else f" ({self.ratio:.3g} times {against})"
        return f"{self.what} {self.ours:.3g} {self.unit}{compared}"

    def exceeds(self, max_ratio: float | None, ignore_below: float) -> bool:
        """Return True if the ratio is above the limit (None for no limit), and the
        growth is above `ignore_below`. NaN exceeds every limit.
        """
        if self.ratio is None or self.theirs is None or max_ratio is None:
            return False
        return not (self.ratio <= max_ratio or self.ours - self.theirs <= ignore_below)

    def figures(self) -> dict[str, float]:
        figures = {f"{self.figure}_candidate": self.ours}
        if self.theirs is not None and self.ratio is not None:
            figures[f"{self.figure}_current"] = self.theirs
            figures[f"{self.figure}_ratio"] = self.ratio
        return figures

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the report's table: the measure, both versions and the
        ratio.
        """
        ours = f"{self.ours:.3g} {self.unit}"
        if self.theirs is None or self.ratio is None:
            return self.what, ours, "", ""
        return self.what, ours, f"{self.theirs:.3g} {self.unit}", f"{self.ratio:.3g}"


def check_budget(
    candidate: MeasuredCost,
    current: MeasuredCost | None,
    policy: BudgetPolicy,
    against: str = "",
) -> CheckResult:
    """Check the candidate's cost. `current` is the cost of the current version, called
    `against`, or None.
    """
    row_p99 = _percentile_ms(candidate.rows, 99)
    current_rows = None if current is None else current.rows
    current_batches = None if current is None else current.batches
    batch = f"a batch of {policy.batch}"
    memory = _Measure("memory", "memory_mb", "MB", candidate.memory / _MB)
    if current is not None:
        theirs = current.memory / _MB
        memory = replace(memory, theirs=theirs, ratio=memory.ours / max(theirs, 1e-6))
    measures = [
        _compare_latency("a row", "row_p50_ms", candidate.rows, current_rows),
        _compare_latency(batch, "batch_p50_ms", candidate.batches, current_batches),
        memory,
    ]
    figures = {"row_p99_ms": row_p99, "batch_p99_ms": _percentile_ms(candidate.batches, 99)}
    failures = []
    for measure in measures:
        figures |= measure.figures()
        max_ratio = policy.max_memory_ratio
        ignore_below = policy.ignore_below_mb
        if measure.unit == "ms":
            max_ratio = policy.max_latency_ratio
            ignore_below = policy.ignore_below_ms
        if measure.exceeds(max_ratio, ignore_below):
            failures.append(
                f"{measure.text(against)}; the policy allows {max_ratio:g} times as much"
            )
    if policy.max_p99_ms is not None and row_p99 > policy.max_p99_ms:
        failures.append(
            f"the 99th percentile of a row is {row_p99:.2f} ms; the policy allows "
            f"{policy.max_p99_ms:g}"
        )
    if policy.max_memory_mb is not None and memory.ours > policy.max_memory_mb:
        failures.append(
            f"the loaded model takes {memory.ours:.0f} MB; the policy allows "
            f"{policy.max_memory_mb:g}"
        )
    return CheckResult(
        NAME,
        state_of(failures),
        "; ".join(failures) or ", ".join(measure.text(against) for measure in measures),
        figures,
        table=ReportTable(
            ("", "new", against, "ratio"),
            tuple(measure.cells() for measure in measures),
        ),
    )


def _percentile_ms(rounds: Sequence[Array], percent: float) -> float:
    return float(np.percentile(np.concatenate(rounds), percent)) * 1e3


def _compare_latency(
    what: str,
    figure: str,
    ours: Sequence[Array],
    theirs: Sequence[Array] | None,
) -> _Measure:
    """Compare the median latencies of two versions, from the seconds in each round.
    `theirs` is None without a current version.
    """
    measure = _Measure(what, figure, "ms", _percentile_ms(ours, 50))
    if theirs is None:
        return measure
    ratio = median_ratio(ours, theirs)
    return replace(measure, theirs=_percentile_ms(theirs, 50), ratio=ratio)


def measure_costs(
    folders: Sequence[Path],
    rows: Feeds,
    batch: int,
    rounds: int = ROUNDS,
) -> list[MeasuredCost]:
    """Measure the versions in alternating rounds. Raise InferenceError if a version
    cannot be measured.
    """
    sample = {name: array[:batch] for name, array in rows.items()}
    workers = [Worker(limit_growth, stderr=subprocess.DEVNULL) for _ in folders]
    try:
        # The versions load concurrently, because this step only measures the memory of
        # each process.
        with ThreadPoolExecutor(len(folders)) as threads:
            loading = [
                threads.submit(
                    _call, worker, _START_TIMEOUT_SECONDS, _load_measured, folder, sample, batch
                )
                for worker, folder in zip(workers, folders, strict=True)
            ]
        memory = [future.result() for future in loading]
        measured = []
        for _ in range(rounds):
            times = [_call(worker, _ROUND_TIMEOUT_SECONDS, _measure_round) for worker in workers]
            measured.append(times)
    finally:
        for worker in workers:
            worker.end()
    by_version = zip(memory, zip(*measured, strict=True), strict=True)
    return [MeasuredCost(growth, *zip(*times, strict=True)) for growth, times in by_version]


def median_ratio(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """Return the median over the rounds of the ratio of the median times."""
    ratios = [
        np.median(our_times) / np.median(their_times)
        for our_times, their_times in zip(ours, theirs, strict=True)
    ]
    return float(np.median(ratios))


def _call(
    worker: Worker,
    seconds: float,
    function: Callable[..., Any],
    *arguments: Any,
) -> Any:
    """Call the function in a worker. Raises InferenceError if it fails, or takes longer
    than `seconds`.
    """
    try:
        return worker.call(function, *arguments, seconds=seconds)
    except DeadlineExceeded:
        raise InferenceError(
            f"timeout of a measurement of the model after {seconds:.0f} s"
        ) from None
    except OnnxserveError as error:
        raise InferenceError(f"the model cannot be measured: {error.message[:300]}") from None


def _load_measured(folder: Path, rows: Feeds, batch: int) -> int:
    """Load a version in this process, predict a batch, and return the growth of the
    memory in bytes. Keep the model and its rows in `_loaded` for the rounds.
    """
    import psutil  # Only the measuring process needs psutil.

    from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime

    global _loaded
    total = len(next(iter(rows.values())))
    positions = np.resize(np.arange(total), batch)
    batch_feeds = {name: array[positions] for name, array in rows.items()}
    row_feeds = [slice_feeds(rows, slice(index, index + 1)) for index in range(total)]
    import_onnxruntime()  # Every server loads ONNX Runtime, so its memory is not counted.
    process = psutil.Process()
    before = process.memory_info().rss
    model = load_version(folder)
    model.predict(row_feeds[0])
    model.predict(batch_feeds)
    _loaded = model, row_feeds, batch_feeds
    return int(max(process.memory_info().rss - before, 0))


def _measure_round() -> tuple[Array, Array]:
    assert _loaded is not None
    model, row_feeds, batch_feeds = _loaded
    return _time_predictions(model, row_feeds), _time_predictions(model, [batch_feeds])


def _time_predictions(model: LoadedModel, inputs: list[Feeds]) -> Array:
    """Return the seconds of predictions for a round, which predicts the inputs in
    turn.
    """
    times: list[float] = []
    end = time.perf_counter() + _ROUND_SECONDS
    while len(times) < _MIN_TIMES or (len(times) < _MAX_TIMES and time.perf_counter() < end):
        start = time.perf_counter()
        model.predict(inputs[len(times) % len(inputs)])
        times.append(time.perf_counter() - start)
    return np.array(times)
