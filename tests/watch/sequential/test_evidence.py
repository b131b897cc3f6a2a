"""The evidence of a window in the store's form."""

import json
import math
from dataclasses import replace

import pytest

from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, Outcome, SeriesKey

EVIDENCE = Evidence(
    "bins",
    {SeriesKey("x", "level"): 2.5, SeriesKey("carrier=A/A/x", "spread"): 0.5},
    ("x", "carrier=AA/x"),
    {SeriesKey("x", "level"): "2013-07-01T00:00:00+00:00"},
    outcomes={
        "x": Outcome("distribution", "drift", 5.0, 3.0),
        "y": Outcome("distribution", "no drift"),
    },
    limits={"digest": 7.25},
)


def test_evidence_round_trips_without_unknown_levels():
    unknown = {SeriesKey("y", "spread"): math.nan, SeriesKey("z", "level"): math.inf}
    levels = {**EVIDENCE.levels, **unknown}
    outcomes = {**EVIDENCE.outcomes, "y": Outcome("distribution", "no drift", math.nan, math.inf)}
    stored = json.loads(json.dumps(replace(EVIDENCE, levels=levels, outcomes=outcomes).to_json()))

    assert stored["levels"] == {"x/level": 2.5, "carrier=A/A/x/spread": 0.5}
    assert Evidence.from_json(stored) == EVIDENCE
    assert Evidence.from_json(stored | {"of a later version": 1}) == EVIDENCE


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": {"x/level": "high"}},
        {"outcomes": {"x": ["distribution", "drift", "high", None]}},
        {"limits": {"digest": 10**400}},
    ],
)
def test_unreadable_evidence_is_empty(wrong):
    assert Evidence.from_json({}) == Evidence()
    assert Evidence.from_json(EVIDENCE.to_json() | wrong) == Evidence()
