"""Budget: time and memory compared with the current version on this machine, and absolute bounds where given.

Milliseconds of one machine say little about another; the ratio of two versions that were measured in turns says much.
But a ratio makes much of little: three megabytes are twice as much as one and a half, and nobody minds. So a ratio
counts only if the growth itself is large enough to matter.
"""

from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.gate.measure import MeasuredCost, median_ratio
from mlflow_deploy_plugin.gate.policy import BudgetPolicy
from mlflow_deploy_plugin.gate.verdict import CheckResult, ReportTable

NAME = "budget"
_MB = 1e6


@dataclass(frozen=True)
class _Measure:
    """One measure of the new version and, if there is one, of the current version.

    Attributes:
        figure: its name among the figures.
        unit: ms or MB.
    """

    what: str
    figure: str
    unit: str
    ours: float
    theirs: float | None = None
    ratio: float | None = None

    def __str__(self) -> str:
        compared = "" if self.ratio is None else f" ({self.ratio:.3g} times what is served)"
        return f"{self.what} {self.ours:.3g} {self.unit}{compared}"

    def exceeds(self, max_ratio: float | None, ignore_below: float) -> bool:
        if self.ratio is None or self.theirs is None or max_ratio is None:
            return False
        return not (self.ratio <= max_ratio or self.ours - self.theirs <= ignore_below)


def check_budget(candidate: MeasuredCost, current: MeasuredCost | None, policy: BudgetPolicy) -> CheckResult:
    """Check measured costs; `current` is None if nothing is served."""
    row_p99, batch_p99 = (
        float(np.percentile(np.concatenate(t), 99)) * 1e3 for t in (candidate.rows, candidate.batches)
    )
    memory = candidate.memory / _MB
    measures = [
        _latency("a row", "row_p50_ms", candidate, current, "rows"),
        _latency(f"a batch of {policy.batch}", "batch_p50_ms", candidate, current, "batches"),
        _Measure("memory", "memory_mb", "MB", memory)
        if current is None
        else _Measure(
            "memory", "memory_mb", "MB", memory, current.memory / _MB, memory / max(current.memory / _MB, 1e-6)
        ),
    ]
    failures = []
    figures = {"row_p99_ms": row_p99, "batch_p99_ms": batch_p99}
    lines = []
    for one in measures:
        max_ratio, ignore_below = (
            (policy.max_latency_ratio, policy.ignore_below_ms)
            if one.unit == "ms"
            else (policy.max_memory_ratio, policy.ignore_below_mb)
        )
        if one.exceeds(max_ratio, ignore_below):
            failures.append(f"{one}; the policy allows {max_ratio:g} times as much")
        figures[f"{one.figure}_candidate"] = one.ours
        theirs = ratio = ""
        if one.theirs is not None and one.ratio is not None:
            figures |= {f"{one.figure}_current": one.theirs, f"{one.figure}_ratio": one.ratio}
            theirs, ratio = f"{one.theirs:.3g} {one.unit}", f"{one.ratio:.3g}"
        lines.append((one.what, f"{one.ours:.3g} {one.unit}", theirs, ratio))
    if policy.max_p99_ms is not None and row_p99 > policy.max_p99_ms:
        failures.append(f"the 99th percentile of a row is {row_p99:.2f} ms; the policy allows {policy.max_p99_ms:g}")
    if policy.max_memory_mb is not None and memory > policy.max_memory_mb:
        failures.append(f"the loaded model takes {memory:.0f} MB; the policy allows {policy.max_memory_mb:g}")
    reason = "; ".join(failures) or ", ".join(map(str, measures))
    table = ReportTable(("", "new", "served now", "ratio"), tuple(lines))
    return CheckResult(NAME, "failed" if failures else "passed", reason, figures, (), table)


def _latency(what: str, figure: str, candidate: MeasuredCost, current: MeasuredCost | None, kind: str) -> _Measure:
    def median_ms(cost: MeasuredCost) -> float:
        return float(np.median(np.concatenate(getattr(cost, kind)))) * 1e3

    if current is None:
        return _Measure(what, figure, "ms", median_ms(candidate))
    ratio = median_ratio(getattr(candidate, kind), getattr(current, kind))
    return _Measure(what, figure, "ms", median_ms(candidate), median_ms(current), ratio)
