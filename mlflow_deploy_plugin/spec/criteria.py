"""Conditions as a person writes them: `accuracy>=0.8`, `missing(temp)<=10%`, `p99>250ms`, `p99>2x`.

A monitor's `require` and a rollout's `--abort-on` share this syntax. Each defines its own names, and the units in which
they may be given.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Literal, cast

from mlflow_deploy_plugin.errors import InvalidConfig, did_you_mean

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
    """A condition as it was written.

    Attributes:
        argument: the text in brackets behind the name, or an empty text.
    """

    name: str
    argument: str
    sign: Sign
    number: float
    unit: Unit


def parse_condition(text: str) -> Condition | None:
    """Return the condition that a text states, or None if it cannot be parsed."""
    found = _FORM.match(text.strip())
    if found is None:
        return None
    sign, unit = cast(Sign, found["sign"]), cast(Unit, found["unit"])
    return Condition(found["name"], (found["of"] or "").strip(), sign, float(found["number"]), unit)


@dataclass(frozen=True)
class MonitorMetric:
    """A metric that a monitor may put a requirement on.

    Attributes:
        is_better: the good direction. A requirement in the other direction is taken for a mistake.
        argument: the kind of name that may stand in brackets behind it, or an empty text.
    """

    scale: Scale
    is_better: Literal["higher", "lower"]
    argument: str = ""


@dataclass(frozen=True)
class Requirement:
    """A condition that must hold in a window.

    Attributes:
        text: the condition as it was written, stripped.
        name / argument: the metric, and the column or variant in brackets; empty for all of them.
        value: a share, seconds, or the metric's own unit.
    """

    text: str
    name: str
    argument: str
    sign: Sign
    value: float

    @classmethod
    def parse(cls, text: str, metrics: Mapping[str, MonitorMetric], subject: str) -> "Requirement":
        """Return the requirement that a text states; arguments and errors as of `parse_requirements`."""
        condition = parse_condition(text)
        example = next(
            f"{name}{'>=0.8' if metric.is_better == 'higher' else '<=0.1'}" for name, metric in metrics.items()
        )
        if condition is None:
            raise InvalidConfig(f"require: {text!r} is no requirement; it is written like {example}")
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
        if condition.sign.startswith(">") != (metric.is_better == "higher"):
            better = (
                f"{condition.name}{'>=' if metric.is_better == 'higher' else '<='}{condition.number:g}{condition.unit}"
            )
            raise InvalidConfig(
                f"require: {text} asks for the worse; {condition.name} is better when {metric.is_better}: {better}"
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
    """Return the requirements of a monitor.

    Args:
        metrics: the metrics of its kind, by name.
        subject: the subject of the message, as `a monitor of kind performance`.

    Raises:
        InvalidConfig: one cannot be parsed, names a metric of another kind (the message suggests the nearest name),
            asks for the wrong direction, or stands twice.
    """
    requirements = tuple(Requirement.parse(text.strip(), metrics, subject) for text in texts if text.strip())
    seen: dict[tuple[str, str, bool], str] = {}
    for one in requirements:
        key = one.name, one.argument, one.sign.startswith(">")
        if key in seen:
            raise InvalidConfig(f"require: {seen[key]} and {one.text} speak of the same; say one of them")
        seen[key] = one.text
    return requirements
