"""A rollout plan, and the state of an endpoint during the rollout."""

import math

from mlflow_deploy_plugin.core.spec.parts import VariantSpec
from mlflow_deploy_plugin.promote.rollouts.plan import RolloutPlan
from mlflow_deploy_plugin.ship.deployments.server_metrics import VersionCounters

PLAN = RolloutPlan(
    endpoint="flights",
    main="champion",
    candidate="candidate",
    shadow="candidate-shadow",
    to_uri="models:/X/7",
    model="X",
    version="7",
    before_uri="models:/X/Production",
    before_version="6",
    kind="stage",
    selector="Production",
    steps=(10, 100),
    every=60.0,
    abort_on="error_rate>1%,disagreement>20%",
    min_requests=50,
    actor="ada@laptop",
)


def counted(requests, errors=0, slow=0, same=0, different=0):
    """Return requests of which `slow` took between 0.1 and 1 s and the other requests
    less than 10 ms.
    """
    timed = {0.01: requests - slow, 0.1: requests - slow, 1.0: requests, math.inf: requests}
    return VersionCounters(requests, errors, timed, same, different)


def numbers(
    current,
    candidate=None,
    shadow=None,
):
    """Return the counters of the only server."""
    return {"flights": versions_counted(current, candidate, shadow)}


def versions_counted(
    current,
    candidate=None,
    shadow=None,
):
    return {
        ("champion", "6"): current,
        ("candidate", "7"): candidate or VersionCounters(),
        ("candidate-shadow", "7"): shadow or VersionCounters(),
    }


def variants(share):
    """Return the deployments while the candidate has this share; None: before it is
    deployed.
    """
    champion = VariantSpec(model="models:/X/Production", weight=100 - (share or 0))
    if share is None:
        return {"champion": champion}
    return {
        "champion": champion,
        "candidate": VariantSpec(model="models:/X/7", weight=share),
        "candidate-shadow": VariantSpec(model="models:/X/7", weight=0, shadow=True),
    }
