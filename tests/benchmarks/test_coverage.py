"""The judge of benchmarks/coverage.py: it finds what is wrong, and what we convert passes it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeRegressor

import mlflow_deploy_plugin as onnxserve
from benchmarks import coverage
from benchmarks.covering.estimators import numbers, target
from benchmarks.covering.judge import Case, judge

QUICK = (
    *("text: counts with accents", "min-max, hist boosting", "gaps: scaler, tree", "scaler, neighbours"),
    *("mixed: target encoder", "voting, soft"),
)


@pytest.fixture
def case() -> Case:
    rows = numbers(1)
    return Case(DecisionTreeRegressor(max_depth=4, random_state=0).fit(rows, target(rows)), rows, numbers(2, 60))


def test_hostile_rows_find_nothing_where_the_proof_has_passed(capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main(["--only", *QUICK, "--processes", "1"]) == 0

    table = capsys.readouterr().out
    assert f"{len(QUICK)} models: {len(QUICK)} equal, 0 refused, 0 wrong, 0 crashed" in table


def test_a_threshold_that_is_one_step_off_is_found_from_outside(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    off = DecisionTreeRegressor(max_depth=4, random_state=0).fit(case.example, target(case.example))
    off.tree_.threshold[0] = np.nextafter(np.float32(off.tree_.threshold[0]), np.float32(np.inf)) + 1e-4
    saved = onnxserve.save_model
    monkeypatch.setattr(onnxserve, "save_model", lambda model, path, **rest: saved(off, path, **rest))

    verdict = judge("off", case)

    assert verdict.outcome == "wrong"
    assert "edges" in verdict.wrong


def test_a_traceback_of_logging_is_a_crash_and_a_reason_is_a_refusal(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = judge("refused", replace(case, example=case.example[:, :2]))

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("nobody caught it")

    monkeypatch.setattr(onnxserve, "save_model", fail)
    crashed = judge("crashed", case)

    assert (refused.outcome, crashed.outcome) == ("refused", "crashed")
    assert crashed.said == "ValueError: nobody caught it"


def test_rows_are_not_excused_where_a_sum_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = numbers(1)
    model = LinearRegression().fit(rows, target(rows))
    other = LinearRegression().fit(rows, target(rows) * 1.01)
    saved = onnxserve.save_model
    monkeypatch.setattr(onnxserve, "save_model", lambda model, path, **rest: saved(other, path, **rest))

    assert judge("other", Case(model, rows, numbers(2, 60))).outcome == "wrong"
