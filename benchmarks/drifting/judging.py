"""Judges made windows, many at a time on both cores, and says how a measured rate stands to its target."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from mlflow_deploy_plugin.monitoring.references import Reference
from mlflow_deploy_plugin.monitoring.sketch import sketch_batches
from mlflow_deploy_plugin.monitoring.verdict import Verdict, judge
from mlflow_deploy_plugin.spec import MonitorSpec

RATE = 0.05
WORKERS = 2
Task = TypeVar("Task")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Line:
    """One figure of the table; `holds` is None where it has no target."""

    what: str
    figure: str
    target: str = ""
    holds: bool | None = None

    def __str__(self) -> str:
        held = "" if self.holds is None else "yes" if self.holds else "**no**"
        return f"| {self.what} | {self.figure} | {self.target} | {held} |"


class Judge:
    """Judges windows beside one reference, whose null distribution is worked out once."""

    def __init__(self, reference: Reference, rate: float = RATE, independent_rows: bool = False) -> None:
        self._reference = reference
        self._spec = MonitorSpec(min_rows=30, false_alarm_rate=rate, independent_rows=independent_rows)
        self._cache = Path(tempfile.mkdtemp(prefix="onnxserve-benchmark-"))

    def __call__(self, window: pa.Table, start_us: int) -> Verdict:
        profile = sketch_batches(self._reference.bins, [window])
        return judge(self._reference, profile, start_us, self._spec, self._cache)

    def close(self) -> None:
        shutil.rmtree(self._cache)


def on_all_cores(function: Callable[[Task], Answer], tasks: Sequence[Task]) -> list[Answer]:
    with ProcessPoolExecutor(WORKERS) as executor:
        return list(executor.map(function, tasks))


def rate_line(what: str, alarms: Iterable[bool | None], rate: float = RATE) -> Line:
    """The share of judged windows that were called drifted (None: not judged), beside [0.5, 1.5] of the rate."""
    flags = list(alarms)
    judged = [flag for flag in flags if flag is not None]
    if not judged:
        return Line(what, "none was judged", f"{rate * 0.5:.1%} to {rate * 1.5:.1%}", False)
    share = sum(judged) / len(judged)
    left_out = f", {len(flags) - len(judged)} not judged" if len(judged) < len(flags) else ""
    return Line(
        what,
        f"{share:.1%} of {len(judged)}{left_out}",
        f"{rate * 0.5:.1%} to {rate * 1.5:.1%}",
        rate * 0.5 <= share <= rate * 1.5,
    )


def is_alarm(verdict: Verdict) -> bool | None:
    return None if verdict.state == "not judged" else verdict.state == "drift"
