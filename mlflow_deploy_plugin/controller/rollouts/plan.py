"""The plan of a rollout, made once when it is asked for and never changed; and the criteria that it is aborted on.

A person writes the criteria as `error_rate>1%,p99>2x,disagreement>20%`. Each criterion limits a share of the
candidate's requests:

- `error_rate>1%`: more than 1 % of its requests fail, and more than of the current version's.
- `p99>2x`: more than 1 % take longer than twice the current version's p99, and more than of its own requests do. Also
  `p50`, `p90`, `p95`, and in absolute terms `p99>250ms`, `p99>1s`.
- `disagreement>20%`: in its shadow the candidate answers more than 20 % of the rows otherwise than the current version.
"""

import math
import re
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from mlflow_deploy_plugin.controller.work import read_plan
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec.monitors import parse_condition
from mlflow_deploy_plugin.store import Json, Rollout

CriterionKind = Literal["error_rate", "latency", "disagreement"]
PromotionKind = Literal["stage", "alias", "tag", "pinned"]

LEVEL = 0.05
MIN_REQUESTS = 100
DEFAULT_CRITERIA = "error_rate>1%,p99>2x"
_FORMS = "error_rate>1%, p99>2x (or p50, p90, p95; or p99>250ms), disagreement>20%"
_SHARES: dict[str, CriterionKind] = {"error_rate": "error_rate", "disagreement": "disagreement"}
_LATENCIES = {"p50": 0.5, "p90": 0.1, "p95": 0.05, "p99": 0.01}
"""The share of requests that is slower than each quantile."""


@dataclass(frozen=True)
class Criterion:
    """One criterion.

    Attributes:
        text: as it was written, without blanks.
        share: the share of requests, or of rows, that may have the event.
        factor: of the current version's latency quantile, from which a request is slow; None: `seconds` is the bound.
    """

    text: str
    kind: CriterionKind
    share: float
    factor: float | None = None
    seconds: float | None = None

    @property
    def is_of_shadow(self) -> bool:
        """True if the rows of a shadow have the event, not the requests to the candidate."""
        return self.kind == "disagreement"


def parse_criteria(text: str) -> tuple[Criterion, ...]:
    """Return the criteria of a comma-separated text; raise InvalidConfig if one is unknown or repeated."""
    parts = [part for part in (re.sub(r"\s+", "", part) for part in text.split(",")) if part]
    criteria = tuple(_parse(part) for part in parts)
    if not criteria:
        raise InvalidConfig(f"--abort-on names nothing to abort on; what there is: {_FORMS}")
    for one in criteria:
        names = [other.text for other in criteria if other.text.partition(">")[0] == one.text.partition(">")[0]]
        if len(names) > 1:
            raise InvalidConfig(f"--abort-on: {' and '.join(names)} speak of the same; say one of them")
    return criteria


@dataclass(frozen=True)
class RolloutPlan:
    """The plan of one rollout.

    Attributes:
        main: the variant that answers now, and is promoted in the end.
        candidate / shadow: the variants that the rollout adds; `shadow` is empty if no criterion needs it.
        to_uri / model / version: the model that the candidate serves; the version is the registry's number.
        before_uri / before_version: the model that `main` serves now, as in the spec and as resolved.
        kind / selector: `main` is moved by its stage, alias or tag, or by changing its model.
        steps: shares of the traffic in percent, ascending; the promotion follows the last.
        every: the least seconds of a step.
        level: the probability of aborting a version that is no worse than the criteria allow.
        min_requests: the candidate's requests (for disagreement, compared rows) before a step is judged or ends.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    endpoint: str
    main: str
    candidate: str
    shadow: str
    to_uri: str
    model: str
    version: str
    before_uri: str
    before_version: str
    kind: PromotionKind
    selector: str
    steps: tuple[int, ...]
    every: float
    abort_on: str
    level: float = LEVEL
    min_requests: int = MIN_REQUESTS
    actor: str = ""
    why: str = ""

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        return parse_criteria(self.abort_on)

    @property
    def level_of_a_test(self) -> float:
        """Return the level of one step's test of one criterion, so that all tests together keep to `level`."""
        return self.level / (len(self.steps) * len(self.criteria))

    def to_json(self) -> Json:
        return {**asdict(self), "steps": list(self.steps)}


_PLAN = TypeAdapter(RolloutPlan)


def plan_of(rollout: Rollout) -> RolloutPlan:
    """Return the rollout's plan. Raises as `read_plan`."""
    return read_plan(_PLAN, rollout.spec, f"the plan of rollout {rollout.id}")


def parse_steps(text: str) -> tuple[int, ...]:
    """Return the steps of a text like `"1,10,50,100"`, in percent; raise InvalidConfig unless they ascend to 100."""
    try:
        steps = tuple(int(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError:
        raise InvalidConfig(f"--steps {text}: whole percentages are expected, like 1,10,50,100") from None
    if steps[0] < 1 or steps[-1] > 100 or any(low >= high for low, high in pairwise(steps)):
        raise InvalidConfig(f"--steps {text}: they must rise, from at least 1 to at most 100")
    return steps


def _parse(text: str) -> Criterion:
    unknown = InvalidConfig(f"--abort-on: {text!r} is no criterion; what there is: {_FORMS}")
    condition = parse_condition(text)
    if condition is None or condition.sign != ">" or condition.argument or condition.number < 0:
        raise unknown
    number = condition.number
    if condition.name in _SHARES and condition.unit in ("", "%"):
        share = number / 100 if condition.unit else number
        if not 0 < share < 1:
            raise InvalidConfig(f"--abort-on: {text}: the share must lie between 0% and 100%, both excluded")
        return Criterion(text, _SHARES[condition.name], share)
    if condition.name not in _LATENCIES:
        raise unknown
    quantile = _LATENCIES[condition.name]
    if condition.unit == "x":
        if number < 1:
            raise InvalidConfig(f"--abort-on: {text}: the candidate would have to be faster; say at least 1x")
        return Criterion(text, "latency", quantile, factor=number)
    if condition.unit in ("ms", "s"):
        seconds = number / 1000 if condition.unit == "ms" else number
        if seconds <= 0 or math.isinf(seconds):
            raise InvalidConfig(f"--abort-on: {text}: say a time above 0")
        return Criterion(text, "latency", quantile, seconds=seconds)
    raise unknown
