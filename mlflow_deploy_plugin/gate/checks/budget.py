"""Budget: time and memory beside what is served now, on this machine; in absolute terms where the policy says so.

Milliseconds of one machine say little about another, the ratio of two versions that were measured in turns says much.
A ratio alone makes much of little, though: three megabytes are twice as much as one and a half, and nobody minds. So
that one counts only where the growth itself is worth something.
"""

from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.gate.measure import MeasuredCost, median_ratio
from mlflow_deploy_plugin.gate.policy import BudgetPolicy
from mlflow_deploy_plugin.gate.verdict import CheckResult, ReportTable

NAME = "budget"
_MB = 1e6


@dataclass(frozen=True)
class _Line:
    """One measure: ours, and beside what is served now where that is there; `unit` is ms or MB."""

    what: str
    unit: str
    ours: float
    theirs: float | None = None
    ratio: float | None = None


def check_budget(candidate: MeasuredCost, current: MeasuredCost | None, policy: BudgetPolicy) -> CheckResult:
    """Judges measured costs; `current` is None where nothing is served."""
    p99 = float(np.percentile(np.concatenate(candidate.rows), 99)) * 1e3
    memory = candidate.memory / _MB
    lines = [
        _line("a row", "ms", candidate, current, "rows"),
        _line(f"a batch of {policy.batch}", "ms", candidate, current, "batches"),
        _Line("memory", "MB", memory)
        if current is None
        else _Line("memory", "MB", memory, current.memory / _MB, memory / max(current.memory / _MB, 1e-6)),
    ]
    failures = [failure for line in lines for failure in _too_much(line, policy)]
    if policy.max_p99_ms is not None and p99 > policy.max_p99_ms:
        failures.append(f"the 99th percentile of a row is {p99:.2f} ms; the policy allows {policy.max_p99_ms:g}")
    if policy.max_memory_mb is not None and memory > policy.max_memory_mb:
        failures.append(f"the loaded model takes {memory:.0f} MB; the policy allows {policy.max_memory_mb:g}")
    found = ", ".join(_sentence(line) for line in lines)
    table = ReportTable(("", "new", "served now", "ratio"), tuple(_cells(line) for line in lines))
    reason = "; ".join(failures) or found
    return CheckResult(NAME, "failed" if failures else "passed", reason, _figures(lines, p99, candidate), (), table)


def _line(what: str, unit: str, candidate: MeasuredCost, current: MeasuredCost | None, kind: str) -> _Line:
    ours = _median_ms(getattr(candidate, kind))
    if current is None:
        return _Line(what, unit, ours)
    theirs = getattr(current, kind)
    return _Line(what, unit, ours, _median_ms(theirs), median_ratio(getattr(candidate, kind), theirs))


def _median_ms(rounds: tuple["np.ndarray[tuple[int], np.dtype[np.float64]]", ...]) -> float:
    return float(np.median(np.concatenate(rounds))) * 1e3


def _too_much(line: _Line, policy: BudgetPolicy) -> list[str]:
    allowed, least = (
        (policy.max_latency_ratio, policy.ignore_below_ms)
        if line.unit == "ms"
        else (policy.max_memory_ratio, policy.ignore_below_mb)
    )
    if line.ratio is None or line.theirs is None or allowed is None:
        return []
    if line.ratio <= allowed or line.ours - line.theirs <= least:
        return []
    return [f"{_sentence(line)}; the policy allows {allowed:g} times as much"]


def _sentence(line: _Line) -> str:
    beside = "" if line.ratio is None else f" ({line.ratio:.3g} times what is served)"
    return f"{line.what} {line.ours:.3g} {line.unit}{beside}"


def _cells(line: _Line) -> tuple[str, ...]:
    theirs = "" if line.theirs is None else f"{line.theirs:.3g} {line.unit}"
    return line.what, f"{line.ours:.3g} {line.unit}", theirs, "" if line.ratio is None else f"{line.ratio:.3g}"


def _figures(lines: list[_Line], p99: float, candidate: MeasuredCost) -> dict[str, float]:
    figures = {"row_p99_ms": p99, "batch_p99_ms": float(np.percentile(np.concatenate(candidate.batches), 99)) * 1e3}
    for name, line in zip(("row_p50_ms", "batch_p50_ms", "memory_mb"), lines, strict=True):
        figures[f"{name}_candidate"] = line.ours
        if line.theirs is not None and line.ratio is not None:
            figures |= {f"{name}_current": line.theirs, f"{name}_ratio": line.ratio}
    return figures
