"""The names of metrics and disturbances, and the strengths that a disturbance may have. Imports nothing heavy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.messages import did_you_mean

MetricName = Literal["accuracy", "f1", "roc_auc", "log_loss", "rmse", "mae"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
REFERENCE = "reference"
"""The name of the dataset that is the reference of the model itself."""

_MAX_STRENGTHS = 20
_MAX_STRENGTH = 1e6


@dataclass(frozen=True)
class Disturbance:
    """A disturbance of rows. `unit` is the meaning of its strength, which is from 0 to 1 if `is_share`."""

    unit: str
    strengths: tuple[float, ...]
    is_share: bool = True
    by_default: bool = True


_SHARES = (0.05, 0.1, 0.2, 0.5)
_ATTACK = "largest change, in standard deviations of a column, of a picture as a share of the range"
DISTURBANCES: Mapping[str, Disturbance] = {
    "noise": Disturbance("standard deviations of the column", (0.05, 0.1, 0.2, 0.5, 1.0), is_share=False),
    "missing": Disturbance("share of the values that are missing", _SHARES),
    "swap": Disturbance("share of a column's values that change places", _SHARES),
    "scale": Disturbance("factor on one column, the worst one", (0.1, 0.5, 2.0, 10.0), is_share=False),
    "unseen": Disturbance("share of the texts that were never seen", _SHARES),
    "typos": Disturbance("share of the characters that are mistyped", (0.02, 0.05, 0.1, 0.2)),
    "brightness": Disturbance("share of the range, brighter or darker, the worse one", _SHARES),
    "occlusion": Disturbance("share of the picture that is covered", _SHARES),
    "fgsm": Disturbance(_ATTACK, (0.01, 0.03, 0.1, 0.3), is_share=False),
    "pgd": Disturbance(_ATTACK, (0.01, 0.03, 0.1, 0.3), is_share=False),
    "spsa": Disturbance(_ATTACK, (0.01, 0.03, 0.1, 0.3), is_share=False, by_default=False),
}


def check_strengths(given: Mapping[str, object]) -> dict[str, tuple[float, ...]]:
    """Return the strengths in ascending order; an empty sequence selects the default ones. Raises InvalidConfig."""
    if unknown := [name for name in given if name not in DISTURBANCES]:
        listed = f"there are {', '.join(DISTURBANCES)}"
        raise InvalidConfig(f"there is no disturbance {unknown[0]!r}{did_you_mean(unknown[0], DISTURBANCES, listed)}")
    checked: dict[str, tuple[float, ...]] = {}
    for name, disturbance in DISTURBANCES.items():
        if name not in given:
            continue
        one = given[name]
        strengths: list[object] = list(one) if isinstance(one, Iterable) and not isinstance(one, str) else [one]
        strengths = strengths or list(disturbance.strengths)
        if len(strengths) > _MAX_STRENGTHS:
            raise InvalidConfig(f"{name} has {len(strengths)} strengths; at most {_MAX_STRENGTHS} are measured")
        most = 1.0 if disturbance.is_share else _MAX_STRENGTH
        numbers = set()
        for strength in strengths:
            number = float(strength) if not isinstance(strength, bool) and isinstance(strength, Real) else math.nan
            if not 0 < number <= most:
                expected = "a share above 0, up to 1," if disturbance.is_share else f"a number above 0, up to {most:g},"
                raise InvalidConfig(f"{name} cannot have the strength {strength}; {expected} is expected")
            numbers.add(number)
        checked[name] = tuple(sorted(numbers))
    return checked


def parse_strengths(entries: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Parse `noise=0.1,0.5`, or `noise` for its default strengths; raise InvalidConfig for any other form."""
    found: dict[str, tuple[float, ...]] = {}
    for entry in entries:
        name, equals, values = entry.partition("=")
        if name in found:
            raise InvalidConfig(f"--strengths names {name!r} twice")
        try:
            found[name] = tuple(float(value) for value in values.split(",")) if equals else ()
        except ValueError:
            raise InvalidConfig(
                f"--strengths {entry!r} is not NAME=STRENGTH,STRENGTH,… with numbers, such as noise=0.1,0.5"
            ) from None
    return found
