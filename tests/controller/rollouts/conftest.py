"""A plan, and an endpoint as it is seen under it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mlflow_deploy_plugin.controller.rollouts.plan import RolloutPlan
from mlflow_deploy_plugin.controller.snapshot import EndpointSnapshot
from tests.support.rollouts import PLAN, counted, numbers, variants


@pytest.fixture
def plan() -> RolloutPlan:
    return PLAN


@pytest.fixture
def seen() -> Callable[..., EndpointSnapshot]:
    """The endpoint with the candidate loaded at a share of the traffic; fields can be said otherwise."""

    def build(share: int | None = 0, **fields: Any) -> EndpointSnapshot:
        versions = {"champion": "6"} if share is None else dict.fromkeys(variants(share), "7") | {"champion": "6"}
        return replace(
            EndpointSnapshot(variants(share), "running", "", versions, counters=numbers(counted(1000))), **fields
        )

    return build
