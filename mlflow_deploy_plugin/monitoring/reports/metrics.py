"""The metrics of a result: names that MLflow takes, and numbers."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlflow_deploy_plugin.monitoring.result import Finding, MonitorResult, State

_LONGEST_NAME = 200  # MLflow takes 250
_NO_PATH = "\0"
_CRITERION = ("criterion", "criterion_threshold", "criterion_state")
_STATES: Mapping[State, float] = {"kept": 0.0, "cannot tell": 0.5, "violated": 1.0}


def to_metrics(result: MonitorResult) -> dict[str, float]:
    """Return the figures, and of each finding what it was judged on. Anything that is no finite number is left out.

    Of a column `distribution_score/COLUMN`, `missing_score/COLUMN`, …; of a requirement `criterion/accuracy`,
    `criterion_threshold/accuracy` and `criterion_state/accuracy`: 0 kept, 0.5 cannot tell, 1 violated.
    """
    values: dict[str, float] = {}
    for name, value in _named(result):
        if value is not None and math.isfinite(value):
            values.setdefault(name, float(value))
    counts = Counter(metric_name(name) for name in values)
    return {_own_name(name, counts[metric_name(name)] > 1): value for name, value in values.items()}


def score_metric(finding: Finding, figures: Mapping[str, float]) -> str:
    """Return the metric, among those of a window, that a column's check was judged on; empty: the window has none."""
    return _found(f"{finding.check}_score/{_subject(finding)}", figures)


def drift_score_metric(finding: Finding, figures: Mapping[str, float]) -> str:
    """Return the same of the largest score that the finding's column has in any check (`drift/verdict.py`)."""
    segment = f"{finding.segment}/" if finding.segment else ""
    return _found(f"drift_score/{segment}{finding.subject}", figures)


@dataclass(frozen=True)
class CriterionMetrics:
    """The names of the metrics, among those of a window, that a criterion has; empty: the window has none."""

    value: str
    threshold: str
    state: str


def criterion_metrics(finding: Finding, figures: Mapping[str, float]) -> CriterionMetrics:
    """Return the names of a criterion's metrics, as `score_metric`."""
    name = _subject(finding)
    return CriterionMetrics(*(_found(f"{kind}/{name}", figures) for kind in _CRITERION))


def state_in(figures: Mapping[str, float], name: str) -> State | None:
    """Return the state of a criterion in a window, by the name of its metric; None: it has none, or its run was logged
    before states were among the metrics."""
    value = figures.get(name)
    return next((state for state, number in _STATES.items() if number == value), None)


def _found(name: str, figures: Mapping[str, float]) -> str:
    return next((one for one in (_own_name(name, True), metric_name(name)) if one in figures), "")


def _own_name(name: str, is_shared: bool) -> str:
    """Return the name as MLflow takes it. If MLflow's rules make several names the same, those that they change get a
    digest, so that the name does not depend on the order of a window's findings.
    """
    taken = metric_name(name)
    return f"{taken}-{hashlib.sha256(name.encode()).hexdigest()[:6]}" if is_shared and taken != name else taken


def metric_name(name: str) -> str:
    """Return the name as MLflow takes it: it refuses most punctuation, and what looks like a path."""
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    return "/".join(re.sub(r"^\.+|\.+$|\.\.+", "_", part).strip() or "_" for part in parts)[:_LONGEST_NAME]


def _named(result: MonitorResult) -> Iterator[tuple[str, float | None]]:
    yield "rows", result.rows
    yield "is_alarm", float(result.is_alarm)
    yield from result.figures.items()
    for finding in result.findings:
        name = _subject(finding)
        if finding.check == "criterion":
            values = finding.value, finding.threshold, _STATES.get(finding.state)
            yield from ((f"{kind}/{name}", value) for kind, value in zip(_CRITERION, values, strict=True))
        else:
            yield f"{finding.check}_score/{name}", finding.value


def _subject(finding: Finding) -> str:
    """Return the finding's part of a metric name. A column's name may hold what reads as a path: `metric_name` makes
    an underscore of it.
    """
    parts = [finding.subject, finding.segment] if finding.segment else [finding.subject]
    return "/".join(part.replace("/", _NO_PATH) for part in parts)
