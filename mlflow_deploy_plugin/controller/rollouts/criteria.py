"""What a rollout is aborted on, as a person writes it: `error_rate>1%,p99>2x,disagreement>20%`.

Each criterion speaks of a share of the candidate's requests, and of how large it may be:

- `error_rate>1%`: more than 1 % are answered by an error, and more than of the current version's;
- `p99>2x`: more than 1 % take longer than twice the current version's p99, and more than of its own requests do; also
  `p50`, `p90`, `p95`, and in absolute terms `p99>250ms`, `p99>1s`;
- `disagreement>20%`: of more than 20 % of the rows that the current version has answered, the candidate, asked in its
  shadow, says something else.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, NoReturn

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import Condition, parse_condition

CriterionKind = Literal["error_rate", "latency", "disagreement"]

DEFAULT = "error_rate>1%,p99>2x"
_FORMS = "error_rate>1%, p99>2x (or p50, p90, p95; or p99>250ms), disagreement>20%"
_SHARES: dict[str, CriterionKind] = {"error_rate": "error_rate", "disagreement": "disagreement"}
_LATENCIES = {"p50": 0.5, "p90": 0.1, "p95": 0.05, "p99": 0.01}
"""By name the share of requests that is slower than this quantile."""


@dataclass(frozen=True)
class Criterion:
    """One of them.

    Attributes:
        text: as it was written, without blanks.
        share: the share of requests, or of rows, that may have the event.
        factor: for a latency, how many times the current version's quantile is slow; None: `seconds` says it.
    """

    text: str
    kind: CriterionKind
    share: float
    factor: float | None = None
    seconds: float | None = None

    @property
    def quantile(self) -> float:
        return 1 - self.share


def parse_criteria(text: str) -> tuple[Criterion, ...]:
    """The criteria of a comma-separated text.

    Raises:
        InvalidConfig: one is unknown, or stands twice; the message says how they are written.
    """
    parts = [part for part in (re.sub(r"\s+", "", part) for part in text.split(",")) if part]
    criteria = tuple(_parse(part) for part in parts)
    if not criteria:
        raise InvalidConfig(f"--abort-on names nothing to abort on; what there is: {_FORMS}")
    for one in criteria:
        names = [other.text for other in criteria if other.text.partition(">")[0] == one.text.partition(">")[0]]
        if len(names) > 1:
            raise InvalidConfig(f"--abort-on: {' and '.join(names)} speak of the same; say one of them")
    return criteria


def _parse(text: str) -> Criterion:
    condition = parse_condition(text)
    if condition is None or condition.sign != ">" or condition.of or condition.number < 0:
        return _unknown(text)
    if condition.name in _SHARES and condition.unit in ("", "%"):
        value = condition.number / (100 if condition.unit else 1)
        if not 0 < value < 1:
            raise InvalidConfig(f"--abort-on: {text}: the share must lie between 0% and 100%, both excluded")
        return Criterion(text, _SHARES[condition.name], value)
    if condition.name in _LATENCIES and condition.unit in ("x", "ms", "s"):
        return _latency(text, condition)
    return _unknown(text)


def _latency(text: str, condition: Condition) -> Criterion:
    slow = _LATENCIES[condition.name]
    if condition.unit == "x":
        if condition.number < 1:
            raise InvalidConfig(f"--abort-on: {text}: the candidate would have to be faster; say at least 1x")
        return Criterion(text, "latency", slow, factor=condition.number)
    seconds = condition.number / (1000 if condition.unit == "ms" else 1)
    if seconds <= 0 or math.isinf(seconds):
        raise InvalidConfig(f"--abort-on: {text}: say a time above 0")
    return Criterion(text, "latency", slow, seconds=seconds)


def _unknown(text: str) -> NoReturn:
    raise InvalidConfig(f"--abort-on: {text!r} is no criterion; what there is: {_FORMS}")
