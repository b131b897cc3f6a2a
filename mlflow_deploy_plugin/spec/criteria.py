"""Conditions as a person writes them: `accuracy>=0.8`, `missing(temp)<=10%`, `p99>250ms`, `p99>2x`.

They are read here for both that take them, a monitor's `require` (what must hold) and a rollout's `--abort-on` (what
must not); which names there are, and what each may be compared with, is theirs to say.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.nearest import did_you_mean

Sign = Literal[">=", "<=", ">", "<"]
Unit = Literal["", "%", "x", "ms", "s"]
Scale = Literal["share", "seconds", "number"]

_FORM = re.compile(
    r"^(?P<name>\w+)(\((?P<of>.+)\))?\s*(?P<sign>>=|<=|>|<)\s*(?P<number>-?\d+(\.\d+)?)\s*(?P<unit>%|x|ms|s|)$"
)
_UNITS: Mapping[Scale, Mapping[str, float]] = {
    "share": {"": 1.0, "%": 0.01},
    "seconds": {"": 1.0, "s": 1.0, "ms": 0.001},
    "number": {"": 1.0},
}


@dataclass(frozen=True)
class Condition:
    """One of them, as it was written.

    Attributes:
        of: what stands in brackets behind the name; empty: nothing.
    """

    name: str
    of: str
    sign: Sign
    number: float
    unit: Unit


def parse_condition(text: str) -> Condition | None:
    """The condition that the text is; None: it is none."""
    found = _FORM.match(text.strip())
    if found is None:
        return None
    sign, unit = cast(Sign, found["sign"]), cast(Unit, found["unit"])
    return Condition(found["name"], (found["of"] or "").strip(), sign, float(found["number"]), unit)


@dataclass(frozen=True)
class MonitorMetric:
    """A figure that a monitor may require something of.

    Attributes:
        is_better: which way; a requirement of the other way is a slip of the pen.
        takes: what may stand in brackets behind it; empty: nothing.
    """

    scale: Scale
    is_better: Literal["higher", "lower"]
    takes: str = ""


@dataclass(frozen=True)
class Requirement:
    """What must hold in a window.

    Attributes:
        text: as it was written, without blanks at its ends.
        name / of: the figure, and the column or variant in brackets; empty: all.
        value: in shares, seconds, or the figure's own unit.
    """

    text: str
    name: str
    of: str
    sign: Sign
    value: float

    def holds(self, value: float) -> bool:
        """Whether it holds of a figure; of one that is no number, not."""
        return {
            ">=": value >= self.value,
            "<=": value <= self.value,
            ">": value > self.value,
            "<": value < self.value,
        }[self.sign]


def parse_requirements(
    texts: tuple[str, ...], figures: Mapping[str, MonitorMetric], whose: str
) -> tuple[Requirement, ...]:
    """The requirements of a monitor.

    Args:
        figures: those that there are, by name.
        whose: what the message calls them, as `a monitor of kind performance`.

    Raises:
        InvalidConfig: one cannot be read, is of another kind of monitor (the nearest name is said), asks for the wrong
            way, or stands twice.
    """
    requirements = tuple(_requirement(text.strip(), figures, whose) for text in texts if text.strip())
    seen: dict[tuple[str, str, bool], str] = {}
    for one in requirements:
        key = one.name, one.of, one.sign.startswith(">")
        if key in seen:
            raise InvalidConfig(f"require: {seen[key]} and {one.text} speak of the same; say one of them")
        seen[key] = one.text
    return requirements


def _requirement(text: str, figures: Mapping[str, MonitorMetric], whose: str) -> Requirement:
    condition = parse_condition(text)
    example = next(f"{name}{'>=0.8' if figure.is_better == 'higher' else '<=0.1'}" for name, figure in figures.items())
    if condition is None:
        raise InvalidConfig(f"require: {text!r} is no requirement; it is written like {example}")
    figure = figures.get(condition.name)
    if figure is None:
        hint = did_you_mean(condition.name, figures)
        raise InvalidConfig(f"require: {whose} has no figure {condition.name!r}; it has {', '.join(figures)}{hint}")
    if condition.of and not figure.takes:
        raise InvalidConfig(f"require: {text}: {condition.name} takes nothing in brackets")
    units = _UNITS[figure.scale]
    if condition.unit not in units:
        allowed = ", ".join(unit or "a bare number" for unit in units)
        raise InvalidConfig(f"require: {text}: {condition.name} is not said in {condition.unit!r}, but as {allowed}")
    if condition.sign.startswith(">") != (figure.is_better == "higher"):
        better = f"{condition.name}{'>=' if figure.is_better == 'higher' else '<='}{condition.number:g}{condition.unit}"
        raise InvalidConfig(
            f"require: {text} asks for the worse; {condition.name} is better when {figure.is_better}: {better}"
        )
    value = condition.number * units[condition.unit]
    if figure.scale == "share" and not 0 <= value <= 1:
        raise InvalidConfig(f"require: {text}: {condition.name} lies between 0 and 1")
    if figure.scale == "seconds" and value <= 0:
        raise InvalidConfig(f"require: {text}: say a time above 0")
    return Requirement(text, condition.name, condition.of, condition.sign, value)
