"""The judge of benchmarks/coverage.py finds wrong models, and accepts the models that
we convert.
"""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeRegressor

import mlflow_deploy_plugin as onnxserve
from benchmarks import coverage
from benchmarks.covering.estimators import numbers, target
from benchmarks.covering.judge import Case, judge

pytestmark = pytest.mark.long

QUICK = (
    "text: counts with accents",
    "gaps: scaler, tree",
    "voting, soft",
    "grid: nearest neighbours",
)


@pytest.fixture
def case():
    rows = numbers(1)
    return Case(
        DecisionTreeRegressor(max_depth=4, random_state=0).fit(rows, target(rows)),
        rows,
        numbers(2, 60),
    )


def test_hostile_rows_find_nothing_where_the_proof_has_passed(capsys):
    assert coverage.main(["--only", *QUICK, "--processes", "1"]) == 0

    *_, header, all_, boosters, nets, rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["models", "equal", "pyfunc", "refused", "wrong", "crashed"]
    assert all_.split()[:6] == ["all", "4", "3", "(75.0%)", "1", "(25.0%)"]
    assert boosters.split()[:2] == ["boosters", "0"]
    assert nets.split()[:2] == ["nets", "0"]
    assert "rows through HTTP" in rows


def test_judge_reports_wrong_refused_and_crashed_models(case, monkeypatch):
    """Log models that differ from the judge's: one threshold is changed by a step, and
    one model has other sums.
    """
    off = DecisionTreeRegressor(max_depth=4, random_state=0).fit(case.example, target(case.example))
    off.tree_.threshold[0] = (
        np.nextafter(np.float32(off.tree_.threshold[0]), np.float32(np.inf)) + 1e-4
    )
    sums = LinearRegression().fit(case.example, target(case.example))
    other = LinearRegression().fit(case.example, target(case.example) * 1.01)
    cases = {
        "off": case,
        "sums": replace(case, model=sums),
        "refused": replace(case, example=case.example[:, :2]),
        "crashed": replace(case, model="fails"),
    }
    log = onnxserve.log_model

    def log_another(model, *arguments, **options):
        if model == "fails":
            raise ValueError("nobody caught it")
        swapped = (
            {id(case.model): off, id(sums): other} if options["input_example"].shape[1] > 2 else {}
        )
        return log(swapped.get(id(model), model), *arguments, **options)

    monkeypatch.setattr(onnxserve, "log_model", log_another)
    verdicts = {verdict.name: verdict for verdict in judge(cases)}

    assert {name: verdict.outcome for name, verdict in verdicts.items()} == {
        "off": "wrong",
        "sums": "wrong",
        "refused": "refused",
        "crashed": "crashed",
    }
    assert "edges" in verdicts["off"].wrong
    assert verdicts["crashed"].said.partition(": ")[0] == "ValueError"
