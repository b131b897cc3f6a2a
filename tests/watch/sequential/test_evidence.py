"""The evidence of a window in the store's form."""

import json
import math
from typing import Any

import pytest

from mlflow_deploy_plugin.watch.sequential.evidence import Evidence

EVIDENCE = Evidence("bins", {"x/level": 2.5}, ("x", "carrier=AA/x"), {"x/level": "2013-07-01T00:00:00+00:00"})


def test_it_is_read_as_it_was_stored_without_unknown_levels() -> None:
    levels = {**EVIDENCE.levels, "y/spread": math.nan, "z/level": math.inf}
    stored = json.loads(json.dumps(Evidence("bins", levels, EVIDENCE.alarms, EVIDENCE.shifts).to_json()))

    assert Evidence.from_json(stored) == EVIDENCE
    assert Evidence.from_json(stored | {"of a later version": 1}) == EVIDENCE


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": {"x/level": "high"}},
        {"levels": {"x/level": None}},
        {"levels": [1.0]},
        {"alarms": 1},
        {"shifts": {"x/level": "last week"}},
    ],
)
def test_content_that_cannot_be_read_is_empty(wrong: dict[str, Any]) -> None:
    assert Evidence.from_json({}) == Evidence()
    assert Evidence.from_json(EVIDENCE.to_json() | wrong) == Evidence()
