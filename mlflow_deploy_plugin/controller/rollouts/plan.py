"""What a rollout is to do, decided once when it is asked for and never changed."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from mlflow_deploy_plugin.controller.rollouts.criteria import Criterion, parse_criteria
from mlflow_deploy_plugin.errors import InvalidConfig

PromotionKind = Literal["stage", "alias", "tag", "pinned"]

LEVEL = 0.05
MIN_REQUESTS = 100


@dataclass(frozen=True)
class RolloutPlan:
    """One rollout: from what, to what, in which steps, and what it is aborted on.

    Attributes:
        main: the variant that answers now, and is promoted in the end.
        candidate / shadow: the variants that the rollout adds; `shadow` is empty where nothing asks for it.
        to_uri / model / version: what the candidate serves; the version is the registry's number.
        before_uri / before_version: what `main` serves now, as the spec has it and as it was resolved.
        kind / selector: how `main` is moved: by its stage, its alias or its tag, or by changing its model.
        steps: shares of the traffic in percent, ascending; the last one is followed by the promotion.
        every: seconds that a step lasts at least.
        abort_on: the criteria, as they were written.
        level: the probability that a rollout of a version no worse than allowed is aborted.
        min_requests: a step is neither judged nor over before the candidate has answered so many.
        actor / why: who asked for it.
    """

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
        """Each step of each criterion may err by as much, so that all of them together keep to `level`."""
        return self.level / (len(self.steps) * len(self.criteria))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "steps": list(self.steps)}

    @staticmethod
    def from_json(document: dict[str, Any]) -> "RolloutPlan":
        return RolloutPlan(**{**document, "steps": tuple(document["steps"])})


def parse_steps(text: str) -> tuple[int, ...]:
    """`"1,10,50,100"`, in percent.

    Raises:
        InvalidConfig: not whole numbers from 1 to 100, or not ascending.
    """
    try:
        steps = tuple(int(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError:
        raise InvalidConfig(f"--steps {text}: whole percentages are expected, like 1,10,50,100") from None
    if steps[0] < 1 or steps[-1] > 100 or any(low >= high for low, high in pairwise(steps)):
        raise InvalidConfig(f"--steps {text}: they must rise, from at least 1 to at most 100")
    return steps
