"""The parts of a spec for monitors and for the retraining that an alarm starts.

A monitor's `require` and a rollout's `--abort-on` share the syntax of conditions:
`accuracy>=0.8`, `missing(temp)<=10%`, `p99>250ms`, `p99>2x`. Each of these options has
its own names and units.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from operator import ge, gt, le, lt
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import did_you_mean
from mlflow_deploy_plugin.core.spec.types import (
    REFERENCE,
    SMALLEST_ROLLING_RATE,
    TIME_ZONE,
    Count,
    Duration,
    ListOf,
    NonEmpty,
    SpecPart,
    length_of,
    rolling_span,
    validate_crontab,
    validate_lag,
    validate_length,
    validate_reference,
    validate_season,
)

Sign = Literal[">=", "<=", ">", "<"]
Unit = Literal["", "%", "x", "ms", "s"]
Scale = Literal["share", "seconds", "number"]

_FORM = re.compile(
    r"^(?P<name>\w+)(\((?P<of>.+)\))?\s*(?P<sign>>=|<=|>|<)\s*(?P<number>-?\d+(\.\d+)?)\s*(?P<unit>%|x|ms|s|)$",
)
_COMPARE: Mapping[Sign, Callable[[float, float], bool]] = {
    ">=": ge,
    "<=": le,
    ">": gt,
    "<": lt,
}
_UNITS: Mapping[Scale, Mapping[str, float]] = {
    "share": {"": 1.0, "%": 0.01},
    "seconds": {"": 1.0, "s": 1.0, "ms": 0.001},
    "number": {"": 1.0},
}


@dataclass(frozen=True)
class Condition:
    """A parsed condition. `argument` is the text in brackets after the name."""

    name: str
    argument: str
    sign: Sign
    number: float
    unit: Unit


def parse_condition(text: str) -> Condition | None:
    """Return the condition of a text such as `p95<=200ms`; None for another text."""
    match = _FORM.match(text.strip())
    if match is None:
        return None
    return Condition(
        match["name"],
        (match["of"] or "").strip(),
        cast(Sign, match["sign"]),
        float(match["number"]),
        cast(Unit, match["unit"]),
    )


@dataclass(frozen=True)
class MonitorMetric:
    """A metric for requirements. `sign` is >= if higher is better. `argument` is the
    kind of name in brackets.
    """

    scale: Scale
    sign: Literal[">=", "<="]
    argument: str = ""


@dataclass(frozen=True)
class Requirement:
    """A condition that must hold in a window. `argument` is the column or variant in
    `metric(NAME)`, or empty for all.

    `value` is a share, a number of seconds, or a number in the unit of the metric.
    """

    text: str
    name: str
    argument: str
    sign: Sign
    value: float

    @classmethod
    def parse(
        cls,
        text: str,
        metrics: Mapping[str, MonitorMetric],
        subject: str,
    ) -> "Requirement":
        """Parse a requirement on one of the metrics, for example `accuracy>=0.8`.

        Args:
            text: the requirement as a user has written it.
            metrics: the metrics that the monitor can judge.
            subject: the object with these metrics, for messages.

        Raises:
            InvalidConfig: the text does not state a possible requirement.
        """
        condition = parse_condition(text)
        name, first = next(iter(metrics.items()))
        if condition is None:
            example = "0.8" if first.sign == ">=" else "0.1"
            raise InvalidConfig(
                f"require: {text!r} is not a requirement; e.g. {name}{first.sign}{example} is "
                "expected",
            )
        metric = metrics.get(condition.name)
        if metric is None:
            hint = did_you_mean(condition.name, metrics)
            raise InvalidConfig(
                f"require: {subject} has no metric {condition.name!r}; its metrics are "
                f"{', '.join(metrics)}{hint}",
            )
        if condition.argument and not metric.argument:
            raise InvalidConfig(f"require: {text}: {condition.name} does not accept brackets")
        units = _UNITS[metric.scale]
        if condition.unit not in units:
            allowed = ", ".join(unit or "a bare number" for unit in units)
            raise InvalidConfig(
                f"require: {text}: {condition.unit!r} is not a unit of {condition.name}; allowed: "
                f"{allowed}",
            )
        if condition.sign[0] != metric.sign[0]:
            better = f"{condition.name}{metric.sign}{condition.number:g}{condition.unit}"
            direction = "higher" if metric.sign == ">=" else "lower"
            raise InvalidConfig(
                f"require: {text} has the wrong direction; {condition.name} is better when "
                f"{direction}: {better}",
            )
        value = condition.number * units[condition.unit]
        if metric.scale == "share" and not 0 <= value <= 1:
            raise InvalidConfig(f"require: {text}: {condition.name} must be between 0 and 1")
        if metric.scale == "seconds" and value <= 0:
            raise InvalidConfig(f"require: {text}: a time above 0 is expected")
        return cls(text, condition.name, condition.argument, condition.sign, value)

    def holds(self, value: float) -> bool:
        """Return True if the value of the metric meets the requirement. NaN never meets
        a requirement.
        """
        return _COMPARE[self.sign](value, self.value)


def parse_requirements(
    texts: tuple[str, ...],
    metrics: Mapping[str, MonitorMetric],
    subject: str,
) -> tuple[Requirement, ...]:
    """Return the requirements of a monitor with the metrics of its kind. `subject`
    describes the kind in messages.

    Raises InvalidConfig if a requirement is malformed, for another kind, in the wrong
    direction or repeated.
    """
    requirements = tuple(
        Requirement.parse(text.strip(), metrics, subject) for text in texts if text.strip()
    )
    seen: dict[tuple[str, str, bool], str] = {}
    for requirement in requirements:
        key = requirement.name, requirement.argument, requirement.sign.startswith(">")
        if key in seen:
            raise InvalidConfig(
                f"require: {seen[key]} and {requirement.text} set the same limit; remove one of "
                "them",
            )
        seen[key] = requirement.text
    return requirements


MonitorKind = Literal[
    "drift",
    "performance",
    "shadow",
    "service_level",
]
Length = Annotated[Duration, AfterValidator(validate_length)]
Reference = Annotated[str, StringConstraints(pattern=REFERENCE), AfterValidator(validate_reference)]
Crontab = Annotated[str, AfterValidator(validate_crontab)]
TimeZone = Annotated[str, StringConstraints(pattern=TIME_ZONE)]

MONITOR_METRICS: Mapping[MonitorKind, Mapping[str, MonitorMetric]] = {
    "performance": {
        **dict.fromkeys(
            ("accuracy", "f1", "precision", "recall", "roc_auc"),
            MonitorMetric("share", ">="),
        ),
        **dict.fromkeys(
            ("log_loss", "brier", "mae", "rmse", "mape"),
            MonitorMetric("number", "<="),
        ),
        "r2": MonitorMetric("number", ">="),
    },
    "shadow": {"disagreement": MonitorMetric("share", "<=", argument="variant")},
    "service_level": {
        "error_rate": MonitorMetric("share", "<="),
        "flagged": MonitorMetric("share", "<="),
        **dict.fromkeys(
            ("p50", "p90", "p95", "p99"),
            MonitorMetric("seconds", "<="),
        ),
    },
    "drift": dict.fromkeys(
        ("missing", "unseen", "out_of_range"),
        MonitorMetric("share", "<=", argument="column"),
    ),
}
"""The metrics for the `require` of a monitor, by kind of monitor."""

_READ_BY: Mapping[str, MonitorKind] = {
    **dict.fromkeys(("reference", "columns", "season", "alert_on"), "drift"),
    **dict.fromkeys(("labels", "labels_within", "estimate"), "performance"),
}
"""The fields that only one kind of monitors uses. All other kinds of monitors refuse
the fields.
"""

_DEFAULT_RATE = 0.05
REGRESSION = ("mae", "rmse", "mape", "r2")
"""The metrics of regression models, which cannot be estimated without labels."""
MIN_LABELLED_WINDOWS = 3
"""The number of earlier labelled windows that are needed to determine the error of an
estimate.
"""


class SampleSpec(SpecPart):
    """The rows before the window that an incremental retraining uses, in addition to
    all rows of the window.
    """

    recent: Length
    """Maximum age of the rows at the end of the judged window, longer than `every`:
    30d.
    """
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the labelled rows before the window that is used. All rows of the window
    are used in any case.
    """
    stratify: str | None = None
    """Column with at most 200 values, or _label. The fraction is taken of the rows of
    each value, at least one row.
    """
    weight: Length | None = None
    """Half-life: 14d. Each such period between a row and the window halves the
    probability that the row is used.
    """


class RetrainSpec(SpecPart):
    """The retraining that an alarm of the monitor starts: an MLflow project run that
    creates a candidate version.
    """

    project: NonEmpty
    """Folder or URI of the MLflow project."""
    entry_point: NonEmpty = "train"
    """Entry point of the project."""
    mode: Literal["full", "incremental"] = "full"
    """full: train a new model on all labelled rows; incremental: train the served model
    further on the window's rows and those that `sample` selects.
    """
    sample: SampleSpec | None = None
    """Rows before the window for an incremental retraining."""
    parameters: dict[str, str | float] = Field(default_factory=dict)
    """Additional parameters of the run (-P)."""
    env_manager: Literal["virtualenv", "uv", "conda", "local"] = "virtualenv"
    """Environment manager of the run, as in `mlflow run --env-manager`."""
    schedule: Crontab | None = None
    """Additional times of retrainings in crontab syntax (0 3 * * 1), in the monitor's
    time zone.
    """
    cooldown: Duration = "1d"
    """Minimum time between two runs for a model."""
    max_runs: Count = 10
    """Maximum number of runs for a model in 30 days. Further retrainings need a user's
    request.
    """
    timeout: Duration = "6h"
    """Timeout of a run."""
    then: Literal["rollout", "propose", "leave"] = "propose"
    """Action for a candidate that passes its gate: roll it out, propose it, or do
    nothing.
    """
    steps: str = "10,50,100"
    """Steps of the rollout, in percent."""
    step_every: Duration = "5m"
    """Minimum duration of a step of the rollout."""
    min_requests: Count = 100
    """Minimum number of requests to the candidate in each step of the rollout."""


class MonitorSpec(SpecPart):
    """A monitor that judges the captured traffic in windows."""

    kind: MonitorKind = "drift"
    """Kind of the monitor."""
    every: Length = "1d"
    """Length of a window in event time: 30m, 1h, 1d, 1w."""
    schedule: Crontab | None = None
    """Times of the judgements in crontab syntax: 15 6 * * *. Default: at the end of a
    window and its grace period.
    """
    time_zone: TimeZone = "UTC"
    """Time zone of the schedule, e.g. Europe/Berlin."""
    grace: Length = "5m"
    """Time to wait for rows after the end of a window."""
    reference: Reference = "training"
    """Data to compare a window with: training; rolling:7d (the same window 7 days
    earlier); window:START/END; dataset:URI (Parquet or CSV).
    """
    min_rows: Count = 30
    """Minimum number of rows in a window. Of a smaller window, only the number of rows
    is judged.
    """
    false_alarm_rate: float | None = Field(default=None, gt=0, lt=1)
    """Share of windows without drift that may be reported as drifted, instead of the
    default budget of alarms. Default: the budget, or 0.05 if the reference is too short
    for a budget.
    """
    season: Length | None = None
    """Cycle of the rows, a multiple of `every`: 7d, 1d. It is removed before windows
    are compared. Default: 7d, if the reference has three weeks.
    """
    independent_rows: bool = False
    """true: rows do not depend on neighbouring rows in time, so that a reference with
    fewer than 8 windows is divided at random.
    """
    columns: ListOf[str] = ()
    """Columns to judge, including their parts (image.mean of image). Default: all
    columns.
    """
    segment_by: ListOf[str] = ()
    """Columns for segments. Each value of such a column is judged separately, in
    addition to all rows.
    """
    alert_on: Literal["harm", "change"] | None = None
    """drift: which drift is an alarm. harm: without a sign of harm, it is `changed`;
    change: every drift. Default: harm, and change for a monitor with `retrain`.
    """
    consecutive: int = Field(default=1, ge=1, le=100)
    """Number of consecutive windows for an alarm."""
    require: ListOf[str] = ()
    """Requirements: accuracy>=0.8, f1>=0.7, rmse<=3 (performance); disagreement<=0.05
    (shadow); p99<=0.2, error_rate<=0.01, flagged<=0.05 (service_level, in seconds and
    shares);
    missing<=0.1, missing(COLUMN)<=0.1, unseen, out_of_range (drift).
    """
    labels_within: Length | None = None
    """performance: time to wait for labels after the end of a window."""
    labels: Literal["sampled", "reported", "late"] | None = None
    """performance: which rows get labels. sampled: a random sample; reported: mostly
    one outcome, such as complaints; late: all. Default: the rows and answers decide.
    """
    estimate: Literal["informs", "decides"] = "informs"
    """performance: use of an estimate if labels are missing. informs: the estimate is
    only reported; decides: it may also raise an alarm.
    """
    alert: ListOf[str] = ()
    """Tags of the receivers in ONNXSERVE_ALERT_CONFIG. Default: all receivers."""
    retrain: RetrainSpec | None = None
    """Retraining that an alarm starts."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "MonitorSpec":
        """Raise ValueError if the kind of the monitor needs another field or does not
        accept a field, or if a field does not fit the length of the windows.
        """
        if not self.require and self.kind != "drift":
            raise ValueError(f"a monitor of kind {self.kind} needs requirements in `require`")
        for name, kind in _READ_BY.items():
            if self.kind != kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"a monitor of kind {self.kind} does not accept `{name}`, which is for kind "
                    f"{kind}",
                )
        if self.is_rolling:
            validate_lag(self.reference_value, self.every)
        if self.season is not None:
            validate_season(self.season, self.every)
        if self.sample is not None and length_of(recent := self.sample.recent) <= length_of(
            self.every,
        ):
            raise ValueError(
                f"retrain.sample.recent {recent}: more than the window of {self.every} is expected",
            )
        if self.retrain is not None and self.sample is not None and self.retrain.mode == "full":
            raise ValueError(
                "retrain.sample requires retrain.mode incremental: set the mode, or remove the "
                "sample",
            )
        if self.is_rolling and self.window_rate < SMALLEST_ROLLING_RATE:
            raise ValueError(
                f"false_alarm_rate {self.window_rate:g} with a rolling reference: at least "
                f"{SMALLEST_ROLLING_RATE:g} is expected",
            )
        try:
            _ = self.requirements
        except InvalidConfig as error:
            raise ValueError(error.message) from None
        return self

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        if not self.require:
            return ()
        return parse_requirements(
            self.require,
            MONITOR_METRICS[self.kind],
            f"a monitor of kind {self.kind}",
        )

    @property
    def sample(self) -> SampleSpec | None:
        if self.retrain is not None:
            return self.retrain.sample
        return None

    @property
    def reference_kind(self) -> str:
        """The kind of the reference: training, window, rolling or dataset."""
        return self.reference.partition(":")[0]

    @property
    def reference_value(self) -> str:
        """The window, the lag or the URI of the reference; empty for training."""
        return self.reference.partition(":")[2]

    @property
    def is_rolling(self) -> bool:
        """True if a window is compared with an earlier window at a fixed lag."""
        return self.kind == "drift" and self.reference_kind == "rolling"

    @property
    def history(self) -> timedelta:
        """The span of the log before a window that a rolling reference or an estimate
        needs.
        """
        every = length_of(self.every)
        if self.is_rolling:
            return rolling_span(
                length_of(self.reference_value),
                every,
                self.window_rate,
            )
        if self.kind == "performance" and any(
            requirement.name not in REGRESSION for requirement in self.requirements
        ):
            label_windows = ceil(length_of(self.labels_within or "0s") / every)
            return (max(label_windows - 1, 0) + MIN_LABELLED_WINDOWS) * every
        return timedelta()

    @property
    def window_rate(self) -> float:
        """The rate of false alarms of a window without a budget."""
        return self.false_alarm_rate or _DEFAULT_RATE

    @property
    def alerts_on_change(self) -> bool:
        """True if every drift is an alarm, with or without a sign of harm."""
        return (self.alert_on or ("change" if self.retrain else "harm")) == "change"

    @property
    def has_own_rate(self) -> bool:
        """True if the spec sets the rate of a window, or declares that single rows may
        be resampled, which judges windows by such a rate.
        """
        return self.false_alarm_rate is not None or self.independent_rows

    @property
    def windows_per_year(self) -> float:
        return timedelta(days=365.25) / length_of(self.every)

    @property
    def max_row_age(self) -> timedelta:
        """The age of the oldest rows that the monitor reads if a window is judged in
        time.
        """
        waited = length_of(self.grace) + length_of(self.labels_within or "0s")
        sampled = length_of(self.sample.recent) if self.sample is not None else timedelta()
        return max(self.history + length_of(self.every), sampled) + waited
