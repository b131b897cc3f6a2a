import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from mlflow.models import Model
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier

from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.batch import Batch
from mlflow_deploy_plugin.wrap.convert.converted import BoundaryValues
from mlflow_deploy_plugin.wrap.convert.sklearn.conversion import forms
from mlflow_deploy_plugin.wrap.flavor.parity import (
    ParityReport,
    RowGroup,
    ask_original,
    parity_error,
    prove_parity,
    refusals_of,
)
from mlflow_deploy_plugin.wrap.flavor.saved_model import write_mlmodel
from tests.support.random_rows import normal_rows
from tests.support.refusals import mentions


@pytest.fixture(scope="module")
def table():
    return pd.DataFrame(normal_rows(50, 2), columns=["a", "b"])


def _saved(model, table, folder):
    converted = forms(model, table, "predict", {})[0]()
    signature = Batch(table).signature(model.predict(table))
    write_mlmodel(folder, Model(signature=signature), converted, "predict", {})
    return OnnxModel.load(folder), converted


def _proof(saved, *groups, original=None, at_least=1):
    model, converted = saved
    original = original or converted.original
    assert original is not None
    return prove_parity(model, converted, original, ask_original(original, groups), at_least)


def _example(table):
    return RowGroup("example", Batch(table), generated=False)


def _picky(saved, is_refused):
    """Return an original that refuses a batch with a refused row, and reads a missing
    value as 0.
    """

    def original(batch):
        if is_refused(batch).any():
            raise ValueError("refused")
        return saved[1].original(batch.fillna(0))

    return original


@pytest.fixture
def regressor(table, tmp_path):
    return _saved(LinearRegression().fit(table, table.a * 3), table, tmp_path)


@pytest.fixture
def classifier(table, tmp_path):
    return _saved(LogisticRegression().fit(table, table.a > 0), table, tmp_path)


def test_all_batch_sizes_are_proven(regressor, table):
    report = _proof(regressor, _example(table))

    assert report.state == "proven"
    assert report.batch_sizes == [1, 2, 50]
    assert report.rows == 50


_TWO_WAYS = """<ir_version: 10, opset_import: ["" : 21]>
two_ways (float[N,2] X) => (float[N,1] prediction) {
    rows = Shape<start = 0, end = 1>(X)
    first = Constant<value = int64[1] {0}>()
    a = Gather<axis = 1>(X, first)
    limit = Constant<value = int64[1] {10}>()
    are_many = GreaterOrEqual(rows, limit)
    prediction = If (are_many) <
        then_branch = many () => (float[N,1] y) \
{ factor = Constant<value = float[1] {MANY}>() y = Mul(a, factor) },
        else_branch = few () => (float[N,1] z) \
{ factor = Constant<value = float[1] {FEW}>() z = Mul(a, factor) }
    >
}"""


@pytest.mark.parametrize(
    ("few", "many", "state"), [(3, 3, "proven"), (3, 4, "warned"), (4, 3, "warned")]
)
@pytest.mark.parametrize("rows", [3, 50])
def test_both_branches_are_proven(rows, few, many, state, table, tmp_path):
    text = _TWO_WAYS.replace("FEW", f"{few}.0").replace("MANY", f"{many}.0")
    plain = forms(LinearRegression().fit(table, table[["a"]] * 3), table, "predict", {})[0]()
    converted = replace(plain, proto=onnx.parser.parse_model(text), many_rows=10)
    write_mlmodel(
        tmp_path,
        Model(signature=Batch(table).signature(table[["a"]].to_numpy())),
        converted,
        "predict",
        {},
    )

    report = _proof((OnnxModel.load(tmp_path), converted), RowGroup("drawn", Batch(table[:rows])))

    assert report.state == state
    assert report.problem == ""
    assert report.rows == rows


def test_wrong_rows_are_shown_worst_first(regressor, table):
    report = _proof(
        regressor,
        _example(table),
        original=lambda batch: {"prediction": np.asarray(batch["a"]) * 4},
    )

    errors = [abs(row["original"] - row["onnx"]) for row in report.worst_rows]
    assert report.state == "warned"
    assert report.outputs[0].beyond_tolerance > 40
    assert report.outputs[0].max_absolute_error == pytest.approx(table.a.abs().max(), rel=1e-3)
    assert len(errors) == 5
    assert set(report.worst_rows[0]["input"]) == {"a", "b"}

    lines = parity_error(report).message.splitlines()
    assert "prediction" in lines[0]
    assert lines[1].split() == ["source", "output", "original", "onnx", "input"]
    assert all(line.startswith("  example  prediction  ") and "a=" in line for line in lines[2:7])


def test_infinite_error_is_valid_json(regressor, table):
    report = _proof(
        regressor,
        _example(table),
        original=lambda batch: {"prediction": np.full(len(batch), np.nan)},
    )

    [output] = json.loads(json.dumps(report.as_dict(), allow_nan=False))["outputs"]
    assert report.outputs[0].max_absolute_error == np.inf
    assert output["max_absolute_error"] == "inf"


def test_label_without_margin_is_a_tie(classifier, table):
    model, converted = classifier

    def undecided(batch):
        count = len(batch)
        return {"label": np.zeros(count, bool), "probabilities": np.full((count, 2), 0.5)}

    sides = (
        replace(converted, margin=None),
        replace(converted, margin=lambda batch: np.ones(len(batch))),
    )
    reports = [_proof((model, side), _example(table), original=undecided) for side in sides]

    label, decided = (
        next(output for output in report.outputs if output.name == "label") for report in reports
    )
    assert label.ties > 0
    assert label.beyond_tolerance == 0
    assert decided.ties == 0  # The original's scores determine the label.
    assert decided.beyond_tolerance == label.ties


def test_another_shape_is_a_problem(regressor, table):
    report = _proof(
        regressor, _example(table), original=lambda batch: {"prediction": np.zeros((len(batch), 2))}
    )

    assert mentions(report.problem, "'prediction'", "(50,)", "(50, 2)")
    assert "(50, 2)" in parity_error(report).message


@pytest.mark.parametrize(
    ("options", "smallest", "refused", "most_calls"),
    [
        ({"block": 1}, 0.0, 64, 65),
        ({"block": 1}, 63.0, 1, 20),
        ({}, 63.0, 2, 20),
        ({"block": 4}, 63.0, 4, 20),
        ({"block": 1}, 200.0, 0, 1),
    ],
)
def test_refused_blocks_take_few_calls(regressor, table, options, smallest, refused, most_calls):
    calls = []

    def is_refused(batch):
        calls.append(len(batch))
        return batch.a >= smallest

    rows = table.head(1).loc[[table.index[0]] * 64].assign(a=np.arange(64.0))
    group = RowGroup("far", Batch(rows), **options)
    report = _proof(regressor, group, original=_picky(regressor, is_refused))

    assert report.refused_by_original == ({"far": refused} if refused else {})
    assert report.sources == ({"far": 64 - refused} if refused < 64 else {})
    assert len(calls) <= most_calls


def test_columns_that_refuse_gaps_are_reported(regressor, table):
    picky = _picky(regressor, lambda batch: batch.a.isna() | (batch.b.isna() & (batch.a > 0)))
    rows = [
        table.head(4).assign(a=np.nan),
        table.head(4).assign(b=np.nan),
        table.head(4).assign(a=-1.0, b=np.nan),
    ]
    group = RowGroup("missing", Batch(pd.concat(rows)), block=4, columns=("a", "b", "b"))
    report = replace(_proof(regressor, group, original=picky), problem="")

    assert report.refused_columns == {"missing": ["a"]}
    assert refusals_of(report, BoundaryValues()) == {"missing": ["a"]}


def test_columns_that_refuse_infinity_are_reported(regressor, table):
    def answers_zero(batch):
        if np.isinf(batch.a).any():
            raise ValueError("infinite")
        return {"prediction": np.zeros(len(batch))}

    rows = [table.head(2).assign(a=[np.inf, -np.inf]), table.head(2).assign(b=np.inf)]
    group = RowGroup(
        "infinite", Batch(pd.concat(rows)), block=2, columns=("a", "b"), compared=False
    )
    report = _proof(regressor, group, original=answers_zero)

    assert report.refused_columns == {"infinite": ["a"]}
    assert report.rows == 0
    assert report.beyond_tolerance == 0
    assert refusals_of(report, BoundaryValues()) == {"infinite": ["a"]}


def test_categories_need_complete_accepted_lists():
    learned: Any = {
        "c": ("x", None, "y"),
        "k": (1.0, 2.0, np.nan),
        "half": (0.5,),
        "many": tuple(range(1_000)),
        "d": ("z",),
    }
    names = [*learned, "e"]
    report = ParityReport("proven", refused_columns={"unseen": names, "categories": ["d"]})

    assert refusals_of(report, BoundaryValues(categories=learned)) == {
        "categories": {"c": ["x", "y"], "k": [1.0, 2.0]}
    }
    unclear = replace(report, refused_by_original={"observed": 3})
    assert refusals_of(unclear, BoundaryValues(categories=learned)) == {}


def test_small_outputs_have_their_own_spread(table, tmp_path):
    saved = _saved(LinearRegression().fit(table, np.c_[table.a * 1e6, table.b]), table, tmp_path)

    def another(batch):
        return {"prediction": saved[1].original(batch)["prediction"] * [1, 1.5]}

    many = RowGroup("ranges", Batch(pd.concat([table] * 4, ignore_index=True)))
    report = _proof(saved, many, original=another)

    assert _proof(saved, many).state == "proven"
    assert report.outputs[0].beyond_tolerance > 150


def test_small_scores_are_no_ties(classifier, table):
    model, converted = classifier
    scored = replace(
        converted, outputs=converted.outputs[:1], margin=lambda batch: batch["a"].to_numpy() * 1e-6
    )

    report = _proof(
        (model, scored),
        _example(table),
        original=lambda batch: {"label": np.asarray(batch["a"]) < 0},
    )

    assert report.outputs[0].beyond_tolerance > 40


def test_each_label_has_its_margin(table, tmp_path):
    both = np.c_[table.a > 0, table.b > 0].astype(np.int64)
    saved = _saved(MLPClassifier((3,), max_iter=5).fit(table, both), table, tmp_path)

    def sure_of_both(batch):
        answers = saved[1].original(batch)
        return {
            "label": 1 - answers["label"],
            "probabilities": np.ones_like(answers["probabilities"]),
        }

    assert _proof(saved, _example(table), original=sure_of_both).outputs[0].ties == 0


def test_too_few_accepted_rows_prove_nothing(regressor, table):
    groups = (_example(table), RowGroup("ranges", Batch(table.assign(a=200.0))))
    picky = _picky(regressor, lambda batch: batch.a > 100)
    report = _proof(regressor, *groups, original=picky, at_least=1000)

    assert report.state == "warned"
    assert mentions(parity_error(report).message, "50", "1000")
