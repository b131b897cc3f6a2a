"""The plan of a rollout, which is fixed when the rollout is requested, and the criteria
that abort the rollout.

A user writes the criteria as `error_rate>1%,p99>2x,disagreement>20%`. Each criterion
limits a share of the candidate's requests:

- `error_rate>1%`: more than 1 % of the candidate's requests fail, and a larger share
  than of the current version's.
- `p99>2x`: more than 1 % of the candidate's requests take longer than twice the current
  version's p99, and a larger share than of the current version's requests. `p50`, `p90`
  and `p95` are also supported, and absolute bounds such as `p99>250ms` and `p99>1s`.
- `disagreement>20%`: the candidate's shadow answers more than 20 % of the rows
  differently from the current version.
"""

import math
import re
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.processes.durable_work import read_plan
from mlflow_deploy_plugin.core.spec.monitors import parse_condition
from mlflow_deploy_plugin.core.store.store import Rollout
from mlflow_deploy_plugin.core.store.tables import Json

CriterionKind = Literal["error_rate", "latency", "disagreement"]
PromotionKind = Literal["stage", "alias", "tag", "pinned"]

LEVEL = 0.05
MIN_REQUESTS = 100
DEFAULT_CRITERIA = "error_rate>1%,p99>2x"
_FORMS = "error_rate>1%, p99>2x (or p50, p90, p95; or p99>250ms), disagreement>20%"
_SHARES: dict[str, CriterionKind] = {"error_rate": "error_rate", "disagreement": "disagreement"}
_LATENCIES = {"p50": 0.5, "p90": 0.1, "p95": 0.05, "p99": 0.01}
"""Latency quantile → the share of requests that are slower than this quantile."""


@dataclass(frozen=True)
class Criterion:
    """A criterion that aborts a rollout.

    Attributes:
        text: the criterion as the user wrote it, without blanks.
        share: the maximum share of requests (or rows) that may fail, be slow or
            disagree.
        factor: a request is slow above `factor` times the current version's latency
            quantile; None if `seconds` is set.
    """

    text: str
    kind: CriterionKind
    share: float
    factor: float | None = None
    seconds: float | None = None

    @property
    def is_of_shadow(self) -> bool:
        """True if the criterion counts the rows of a shadow instead of the candidate's
        requests.
        """
        return self.kind == "disagreement"


def parse_criteria(text: str) -> tuple[Criterion, ...]:
    """Return the criteria of a comma-separated text. Raise InvalidConfig if a criterion
    is unknown or repeated, or its limit is out of range.
    """
    parts = re.sub(r"\s+", "", text).split(",")
    criteria: list[Criterion] = []
    for part in filter(None, parts):
        condition = parse_condition(part)
        name = unit = ""
        if condition and condition.sign == ">" and not condition.argument and condition.number >= 0:
            name = condition.name
            unit = condition.unit
            number = condition.number
        if name in _SHARES and unit in ("", "%"):
            share = number / 100 if unit else number
            if not 0 < share < 1:
                raise InvalidConfig(
                    f"--abort-on: {part}: the share must be greater than 0% and less than 100%"
                )
            criteria.append(Criterion(part, _SHARES[name], share))
        elif name in _LATENCIES and unit == "x":
            if number < 1:
                raise InvalidConfig(
                    f"--abort-on: {part}: this limit requires a faster candidate; use at least 1x"
                )
            criteria.append(Criterion(part, "latency", _LATENCIES[name], factor=number))
        elif name in _LATENCIES and unit in ("ms", "s"):
            seconds = number / 1000 if unit == "ms" else number
            if seconds <= 0 or math.isinf(seconds):
                raise InvalidConfig(f"--abort-on: {part}: the time must be greater than 0")
            criteria.append(Criterion(part, "latency", _LATENCIES[name], seconds=seconds))
        else:
            raise InvalidConfig(
                f"--abort-on: {part!r} is not a criterion; valid criteria: {_FORMS}"
            )
    if not criteria:
        raise InvalidConfig(f"--abort-on contains no criterion; valid criteria: {_FORMS}")
    by_quantity: defaultdict[str, list[str]] = defaultdict(list)
    for criterion in criteria:
        by_quantity[criterion.text.partition(">")[0]].append(criterion.text)
    for names in by_quantity.values():
        if len(names) > 1:
            raise InvalidConfig(
                f"--abort-on: {' and '.join(names)} limit the same quantity; specify only one of "
                "them"
            )
    return tuple(criteria)


@dataclass(frozen=True)
class RolloutPlan:
    """The plan of a rollout.

    Attributes:
        main: the variant that answers now and serves the new version after the
            promotion.
        candidate: the variant that the rollout adds for the new version.
        shadow: the added variant that answers copies of the requests; empty if no
            criterion needs a shadow.
        to_uri: the model URI that the candidate serves.
        model: the registered model that the candidate serves.
        version: the version that the candidate serves.
        before_uri: the URI that `main` has in the spec.
        before_version: the version that `main` serves now.
        kind: the kind of the selector that the promotion moves; for `pinned`, the
            spec's model is changed.
        selector: the stage, alias or tag that the promotion moves.
        steps: shares of the traffic in percent, ascending. The promotion follows the
            last step.
        every: the minimum duration of a step in seconds.
        level: the maximum probability of aborting the rollout of a version that meets
            the criteria.
        min_requests: the number of the candidate's requests (or compared rows) that a
            step needs before it is judged.
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
        """Return the level of each test (one per step and criterion), so that all tests
        together keep to `level`.
        """
        return self.level / (len(self.steps) * len(self.criteria))

    def to_json(self) -> Json:
        return {**asdict(self), "steps": list(self.steps)}


_PLAN = TypeAdapter(RolloutPlan)


def plan_of(rollout: Rollout) -> RolloutPlan:
    """Return the rollout's plan. Raises InvalidConfig if its format is not valid."""
    return read_plan(_PLAN, rollout.spec, f"the plan of rollout {rollout.id}")


def parse_steps(text: str) -> tuple[int, ...]:
    """Return the percentages in a text like `"1,10,50,100"`. Raise InvalidConfig unless
    they ascend within 1 to 100.
    """
    try:
        steps = tuple(int(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError:
        raise InvalidConfig(
            f"--steps {text}: whole percentages are expected, like 1,10,50,100"
        ) from None
    if steps[0] < 1 or steps[-1] > 100 or any(low >= high for low, high in pairwise(steps)):
        raise InvalidConfig(f"--steps {text}: steps must ascend and be between 1 and 100")
    return steps
