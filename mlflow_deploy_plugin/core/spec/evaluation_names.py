"""The names of metrics and disturbances, and the allowed strengths. This module has no
heavy imports.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.extensions import find_entry, registered_in

MetricName = Literal["accuracy", "f1", "roc_auc", "log_loss", "rmse", "mae"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
REFERENCE = "reference"
"""The dataset name for the model's own reference."""

_MAX_STRENGTHS = 20
_MAX_STRENGTH = 1e6


@dataclass(frozen=True)
class Disturbance:
    """A disturbance of rows.

    Attributes:
        unit: the meaning of the strength.
        strengths: the default strengths.
        is_share: True if a strength is between 0 and 1.
        by_default: True if it is measured unless strengths are requested.
        disturber: for an entry point, a function that takes a `DisturbedVersion` of
            wrap.evaluation.disturbances, and returns a `Disturber` or a Refused.
    """

    unit: str
    strengths: tuple[float, ...]
    is_share: bool = True
    by_default: bool = True
    disturber: Any = None


_GROUP = "onnxserve.disturbances"
_SHARES = (0.05, 0.1, 0.2, 0.5)
DISTURBANCES: Mapping[str, Disturbance] = {
    "noise": Disturbance(
        "standard deviations of the column",
        (0.05, 0.1, 0.2, 0.5, 1.0),
        is_share=False,
    ),
    "missing": Disturbance("share of missing values", _SHARES),
    "swap": Disturbance("share of a column's values that are swapped", _SHARES),
    "scale": Disturbance(
        "factor on one column (the worst is reported)",
        (0.1, 0.5, 2.0, 10.0),
        is_share=False,
    ),
    "unseen": Disturbance("share of texts replaced by an unseen text", _SHARES),
    "typos": Disturbance("share of mistyped characters", (0.02, 0.05, 0.1, 0.2)),
    "brightness": Disturbance(
        "share of the range, brighter or darker (the worse is reported)",
        _SHARES,
    ),
    "occlusion": Disturbance("covered share of the image", _SHARES),
}


def disturbance_names() -> tuple[str, ...]:
    """Return the names of our disturbances, then those of entry points."""
    return tuple(dict.fromkeys([*DISTURBANCES, *registered_in(_GROUP)]))


def find_disturbance(name: str) -> Disturbance:
    """Return one of `disturbance_names`. Raises InvalidConfig for another name, and
    OnnxserveError if an entry point cannot be loaded.
    """
    if name in DISTURBANCES:
        return DISTURBANCES[name]
    found: Disturbance = find_entry(_GROUP, name, "disturbance", DISTURBANCES, Disturbance)
    return found


def check_metric(metric: str | None) -> None:
    """Raise InvalidConfig if the metric does not exist; None is the default metric."""
    if metric is not None and metric not in METRICS:
        raise InvalidConfig(f"there is no metric {metric!r}; the metrics are {', '.join(METRICS)}")


def check_strengths(requested: Mapping[str, object]) -> dict[str, tuple[float, ...]]:
    """Return the strengths per disturbance, ascending; an empty sequence selects the
    defaults. Raises InvalidConfig, and OnnxserveError like `find_disturbance`.
    """
    found = {name: find_disturbance(name) for name in requested}
    checked: dict[str, tuple[float, ...]] = {}
    for name in dict.fromkeys([*DISTURBANCES, *sorted(found)]):
        if name not in found:
            continue
        disturbance = found[name]
        value = requested[name]
        strengths: list[object] = [value]
        if isinstance(value, Iterable) and not isinstance(value, str):
            strengths = list(value)
        strengths = strengths or list(disturbance.strengths)
        if len(strengths) > _MAX_STRENGTHS:
            raise InvalidConfig(
                f"{name} has {len(strengths)} strengths; at most {_MAX_STRENGTHS} are measured",
            )
        numbers: set[float] = set()
        most = 1.0 if disturbance.is_share else _MAX_STRENGTH
        kind = "share" if disturbance.is_share else "number"
        for strength in strengths:
            number = math.nan
            if not isinstance(strength, bool) and isinstance(strength, Real):
                number = float(strength)
            if not 0 < number <= most:
                raise InvalidConfig(
                    f"{name} cannot have the strength {strength}; a {kind} above 0, up to "
                    f"{most:g}, is expected",
                )
            numbers.add(number)
        checked[name] = tuple(sorted(numbers))
    return checked


def parse_strengths(entries: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Parse `noise=0.1,0.5`, or `noise` for the default strengths; raise InvalidConfig
    for another form.
    """
    parsed: dict[str, tuple[float, ...]] = {}
    for entry in entries:
        name, equals, values = entry.partition("=")
        if name in parsed:
            raise InvalidConfig(f"--strengths names {name!r} twice")
        try:
            parsed[name] = tuple(float(value) for value in values.split(",")) if equals else ()
        except ValueError:
            raise InvalidConfig(
                f"--strengths {entry!r} is not NAME=STRENGTH,STRENGTH,… with numbers, such as "
                "noise=0.1,0.5",
            ) from None
    return parsed
