"""The parts of a spec that describe monitors, and the retraining that an alarm starts.

A monitor's `require` and a rollout's `--abort-on` share the syntax of conditions: `accuracy>=0.8`,
`missing(temp)<=10%`, `p99>250ms`, `p99>2x`. Each defines its own names and units.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from operator import ge, gt, le, lt
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.messages import did_you_mean
from mlflow_deploy_plugin.spec.types import (
    REFERENCE,
    SMALLEST_ROLLING_RATE,
    TIME_ZONE,
    Duration,
    SpecPart,
    length_of,
    rolling_span,
    split_list,
    validate_crontab,
    validate_lag,
    validate_length,
    validate_reference,
)

Sign = Literal[">=", "<=", ">", "<"]
Unit = Literal["", "%", "x", "ms", "s"]
Scale = Literal["share", "seconds", "number"]

_FORM = re.compile(
    r"^(?P<name>\w+)(\((?P<of>.+)\))?\s*(?P<sign>>=|<=|>|<)\s*(?P<number>-?\d+(\.\d+)?)\s*(?P<unit>%|x|ms|s|)$"
)
_COMPARE: Mapping[Sign, Callable[[float, float], bool]] = {">=": ge, "<=": le, ">": gt, "<": lt}
_UNITS: Mapping[Scale, Mapping[str, float]] = {
    "share": {"": 1.0, "%": 0.01},
    "seconds": {"": 1.0, "s": 1.0, "ms": 0.001},
    "number": {"": 1.0},
}


@dataclass(frozen=True)
class Condition:
    """A condition as it was written; `argument` is the text in brackets behind the name."""

    name: str
    argument: str
    sign: Sign
    number: float
    unit: Unit


def parse_condition(text: str) -> Condition | None:
    found = _FORM.match(text.strip())
    if found is None:
        return None
    sign, unit = cast(Sign, found["sign"]), cast(Unit, found["unit"])
    return Condition(found["name"], (found["of"] or "").strip(), sign, float(found["number"]), unit)


@dataclass(frozen=True)
class MonitorMetric:
    """A metric of a monitor's requirements: >= if higher is better. `argument` is the kind of name in brackets."""

    scale: Scale
    sign: Literal[">=", "<="]
    argument: str = ""


@dataclass(frozen=True)
class Requirement:
    """A condition that must hold in a window. `argument` is the column or variant in brackets; empty for all of them.

    `value` is a share, seconds, or in the metric's own unit.
    """

    text: str
    name: str
    argument: str
    sign: Sign
    value: float

    @classmethod
    def parse(cls, text: str, metrics: Mapping[str, MonitorMetric], subject: str) -> "Requirement":
        condition = parse_condition(text)
        name, first = next(iter(metrics.items()))
        if condition is None:
            example = "0.8" if first.sign == ">=" else "0.1"
            raise InvalidConfig(f"require: {text!r} is no requirement; it is written like {name}{first.sign}{example}")
        metric = metrics.get(condition.name)
        if metric is None:
            hint = did_you_mean(condition.name, metrics)
            raise InvalidConfig(
                f"require: {subject} has no metric {condition.name!r}; it has {', '.join(metrics)}{hint}"
            )
        if condition.argument and not metric.argument:
            raise InvalidConfig(f"require: {text}: {condition.name} takes nothing in brackets")
        units = _UNITS[metric.scale]
        if condition.unit not in units:
            allowed = ", ".join(unit or "a bare number" for unit in units)
            raise InvalidConfig(
                f"require: {text}: {condition.name} is not said in {condition.unit!r}, but as {allowed}"
            )
        if condition.sign[0] != metric.sign[0]:
            better = f"{condition.name}{metric.sign}{condition.number:g}{condition.unit}"
            direction = "higher" if metric.sign == ">=" else "lower"
            raise InvalidConfig(
                f"require: {text} asks for the worse; {condition.name} is better when {direction}: {better}"
            )
        value = condition.number * units[condition.unit]
        if metric.scale == "share" and not 0 <= value <= 1:
            raise InvalidConfig(f"require: {text}: {condition.name} lies between 0 and 1")
        if metric.scale == "seconds" and value <= 0:
            raise InvalidConfig(f"require: {text}: say a time above 0")
        return cls(text, condition.name, condition.argument, condition.sign, value)

    def holds(self, value: float) -> bool:
        """Return True if the value of the metric meets the requirement. NaN does not."""
        return _COMPARE[self.sign](value, self.value)


def parse_requirements(
    texts: tuple[str, ...], metrics: Mapping[str, MonitorMetric], subject: str
) -> tuple[Requirement, ...]:
    """Return the requirements of a monitor by the metrics of its kind; `subject` is the kind in messages.

    Raises InvalidConfig if a requirement is malformed, of another kind, in the wrong direction, or given twice.
    """
    requirements = tuple(Requirement.parse(text.strip(), metrics, subject) for text in texts if text.strip())
    seen: dict[tuple[str, str, bool], str] = {}
    for one in requirements:
        key = one.name, one.argument, one.sign.startswith(">")
        if key in seen:
            raise InvalidConfig(f"require: {seen[key]} and {one.text} speak of the same; say one of them")
        seen[key] = one.text
    return requirements


MonitorKind = Literal["drift", "prediction_drift", "data_quality", "performance", "shadow", "service_level"]
Length = Annotated[Duration, AfterValidator(validate_length)]
Reference = Annotated[str, StringConstraints(pattern=REFERENCE), AfterValidator(validate_reference)]
Crontab = Annotated[str, AfterValidator(validate_crontab)]
TimeZone = Annotated[str, StringConstraints(pattern=TIME_ZONE)]
TextList = Annotated[tuple[str, ...], BeforeValidator(split_list)]

MONITOR_METRICS: Mapping[MonitorKind, Mapping[str, MonitorMetric]] = {
    "performance": {
        **dict.fromkeys(("accuracy", "f1", "precision", "recall", "roc_auc"), MonitorMetric("share", ">=")),
        **dict.fromkeys(("log_loss", "brier", "mae", "rmse", "mape"), MonitorMetric("number", "<=")),
        "r2": MonitorMetric("number", ">="),
    },
    "shadow": {"disagreement": MonitorMetric("share", "<=", argument="variant")},
    "service_level": {
        "error_rate": MonitorMetric("share", "<="),
        **dict.fromkeys(("p50", "p90", "p95", "p99"), MonitorMetric("seconds", "<=")),
    },
    "data_quality": dict.fromkeys(
        ("missing", "unseen", "out_of_range"), MonitorMetric("share", "<=", argument="column")
    ),
}
"""The metrics that the `require` of a monitor may name, by its kind."""

KINDS_WITH_REFERENCE: tuple[MonitorKind, ...] = ("drift", "prediction_drift", "data_quality")
"""The kinds that compare a window with a reference, by sketches of both."""
_READ_BY: Mapping[str, tuple[MonitorKind, ...]] = {
    "reference": KINDS_WITH_REFERENCE,
    "columns": KINDS_WITH_REFERENCE,
    "labels_within": ("performance",),
    "estimate": ("performance",),
}
"""The fields that only some kinds read. They are refused for the others, where they would have no effect."""

REGRESSION = ("mae", "rmse", "mape", "r2")
"""The metrics of regression models; none of them can be estimated without labels."""
MIN_LABELLED_WINDOWS = 3
"""The earlier windows with labels that an estimate needs: with fewer nobody knows its error."""


class RetrainSpec(SpecPart):
    """The retraining that an alarm of the monitor starts: a run of an MLflow project that makes a candidate version."""

    project: str = Field(min_length=1)
    """Folder or URI of the MLflow project."""
    entry_point: str = Field(default="train", min_length=1)
    """Entry point of the project."""
    mode: Literal["full", "incremental"] = "full"
    """full: trained from the start on all labelled rows; incremental: what is served learns the window's too."""
    parameters: dict[str, str | float] = Field(default_factory=dict)
    """Further parameters of the run (-P)."""
    env_manager: Literal["virtualenv", "uv", "conda", "local"] = "virtualenv"
    """As `mlflow run --env-manager`."""
    schedule: Crontab | None = None
    """Trains at these times too, as crontab says them (0 3 * * 1), in the monitor's zone."""
    cooldown: Duration = "1d"
    """At least so long between two runs for one model."""
    max_runs: int = Field(default=10, ge=1)
    """Runs for one model in 30 days; beyond it a person is asked."""
    timeout: Duration = "6h"
    """A run that takes longer is ended."""
    then: Literal["rollout", "propose", "leave"] = "propose"
    """With a candidate that passes its gate: bring it by a rollout, propose it, or leave it."""
    steps: str = "10,50,100"
    """Steps of that rollout, in percent."""
    step_every: Duration = "5m"
    """Length of a step of that rollout."""
    min_requests: int = Field(default=100, ge=1)
    """Requests that it has to answer in each of these steps."""


class MonitorSpec(SpecPart):
    """A monitor: it judges the captured traffic, window by window."""

    kind: MonitorKind = "drift"
    """What is judged."""
    every: Length = "1d"
    """Length of a window in event time: 30m, 1h, 1d."""
    schedule: Crontab | None = None
    """When it is judged, as crontab says it: 15 6 * * *. Default: as soon as a window and its grace are over."""
    time_zone: TimeZone = "UTC"
    """Of the schedule, as Europe/Berlin."""
    grace: Length = "5m"
    """How long after a window's end its rows are waited for."""
    reference: Reference = "training"
    """What the window is compared with: training; rolling:7d (the same window so long ago); window:START/END;
    dataset:URI (Parquet or CSV)."""
    min_rows: int = Field(default=200, ge=1)
    """Fewer rows in a window are not judged."""
    false_alarm_rate: float = Field(default=0.05, gt=0, lt=1)
    """Share of windows like the reference that may be called drifted."""
    independent_rows: bool = False
    """Says that rows do not depend on their neighbours in time, so that single rows may be resampled."""
    columns: TextList = ()
    """Only these columns are judged, with their parts (image.mean of image). Default: all."""
    segment_by: TextList = ()
    """Columns each of whose values is judged by itself, beside all rows."""
    consecutive: int = Field(default=1, ge=1, le=100)
    """So many windows in a row make an alarm."""
    require: TextList = ()
    """What must hold: accuracy>=0.8, f1>=0.7, rmse<=3 (performance); disagreement<=0.05 (shadow); p99<=0.2,
    error_rate<=0.01 (service_level, in seconds and shares); missing<=0.1 (data_quality)."""
    labels_within: Length | None = None
    """performance: how long after a window's end its labels are waited for."""
    estimate: Literal["informs", "decides"] = "informs"
    """performance: what an estimate does where labels are not in: it informs and decides nothing; or it decides, and
    may raise an alarm."""
    alert: TextList = ()
    """Tags of those in ONNXSERVE_ALERT_CONFIG who are told. Default: all."""
    retrain: RetrainSpec | None = None
    """What an alarm starts."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "MonitorSpec":
        if not self.require and self.kind in MONITOR_METRICS and self.kind not in KINDS_WITH_REFERENCE:
            raise ValueError(f"a monitor of kind {self.kind} needs `require`: what must hold")
        if self.require and self.kind not in MONITOR_METRICS:
            why = "its reference says what is normal" if self.kind in KINDS_WITH_REFERENCE else "it has no metrics"
            raise ValueError(f"a monitor of kind {self.kind} takes no `require`: {why}")
        for name, kinds in _READ_BY.items():
            if self.kind not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                takers = f"kind{'s' if len(kinds) > 1 else ''} {', '.join(kinds)}"
                raise ValueError(f"a monitor of kind {self.kind} takes no `{name}`: it is for monitors of {takers}")
        if self.is_rolling:
            validate_lag(self.reference.partition(":")[2], self.every)
        tells_by_pairs = self.is_rolling and self.kind != "data_quality" and not self.independent_rows
        rate, least = self.false_alarm_rate, SMALLEST_ROLLING_RATE
        if tells_by_pairs and rate < least:
            raise ValueError(f"false_alarm_rate {rate:g} with a rolling reference: at least {least:g} is expected")
        try:
            _ = self.requirements
        except InvalidConfig as error:
            raise ValueError(error.message) from None
        return self

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        if not self.require:
            return ()
        return parse_requirements(self.require, MONITOR_METRICS[self.kind], f"a monitor of kind {self.kind}")

    @property
    def is_rolling(self) -> bool:
        """True if a window is compared with an earlier one, at a fixed lag."""
        return self.kind in KINDS_WITH_REFERENCE and self.reference.startswith("rolling:")

    @property
    def history(self) -> timedelta:
        """The span of the log before a window that is also read: by a rolling reference, or for an estimate's error."""
        every = length_of(self.every)
        if self.is_rolling:
            return rolling_span(length_of(self.reference.partition(":")[2]), every, self.false_alarm_rate)
        if self.kind == "performance" and any(one.name not in REGRESSION for one in self.requirements):
            return (max(ceil(length_of(self.labels_within or "0s") / every) - 1, 0) + MIN_LABELLED_WINDOWS) * every
        return timedelta()

    @property
    def max_row_age(self) -> timedelta:
        """The age of the oldest rows that the monitor reads when a window is judged in time."""
        waited = length_of(self.grace) + length_of(self.labels_within or "0s")
        return self.history + length_of(self.every) + waited
