import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import Model
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier

from mlflow_deploy_plugin.flavor.convert.sklearn import forms
from mlflow_deploy_plugin.flavor.mlmodel import write_mlmodel
from mlflow_deploy_plugin.flavor.parity import RowGroup, prove_parity
from mlflow_deploy_plugin.flavor.parity_report import parity_error
from mlflow_deploy_plugin.flavor.signature import signature_of
from mlflow_deploy_plugin.runtime import OnnxModel


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(0).normal(size=(50, 2)), columns=["a", "b"])


def _saved(model: Any, table: Any, folder: Any) -> tuple[Any, ...]:
    converted = forms(model, table, "predict")[0]()
    signature = signature_of(table, model.predict(table))
    write_mlmodel(folder, Model(signature=signature), converted, "predict", {})
    return OnnxModel.load(folder), converted


@pytest.fixture
def regressor(table: pd.DataFrame, tmp_path: Path) -> tuple[OnnxModel, Any]:
    return _saved(LinearRegression().fit(table, table.a * 3), table, tmp_path)


@pytest.fixture
def classifier(table: pd.DataFrame, tmp_path: Path) -> tuple[OnnxModel, Any]:
    return _saved(LogisticRegression().fit(table, table.a > 0), table, tmp_path)


def test_faithful_model_is_proven_in_batches_of_one_two_and_many(
    regressor: tuple[OnnxModel, Any], table: pd.DataFrame
) -> None:
    report = prove_parity(*regressor, [RowGroup("example", table, generated=False)])

    assert report.state == "proven"
    assert report.batch_sizes == [1, 2, 50]
    assert report.rows == 50


def test_wrong_rows_are_counted_and_shown_worst_first(regressor: tuple[OnnxModel, Any], table: pd.DataFrame) -> None:
    model, converted = regressor
    wrong = replace(converted, original=lambda batch: {"prediction": batch.a.to_numpy() * 4})

    report = prove_parity(model, wrong, [RowGroup("example", table, generated=False)])

    errors = [abs(row["original"] - row["onnx"]) for row in report.worst_rows]
    assert report.state == "warned"
    assert report.outputs[0].beyond_tolerance > 40
    assert report.outputs[0].max_absolute_error == pytest.approx(table.a.abs().max(), rel=1e-3)
    assert len(errors) == 5
    assert set(report.worst_rows[0]["input"]) == {"a", "b"}
    json.dumps(report.as_dict(), allow_nan=False)


def test_label_without_a_margin_is_a_tie(classifier: tuple[OnnxModel, Any], table: pd.DataFrame) -> None:
    model, converted = classifier

    def undecided(batch: Any) -> dict[str, Any]:
        count = len(batch)
        return {"label": np.zeros(count, bool), "probabilities": np.full((count, 2), 0.5)}

    tied = replace(converted, original=undecided, margin=None)
    scored = replace(converted, original=undecided, margin=lambda batch: np.ones(len(batch)))
    reports = [prove_parity(model, each, [RowGroup("example", table, generated=False)]) for each in (tied, scored)]

    label, decided = (next(output for output in report.outputs if output.name == "label") for report in reports)
    assert label.ties > 0
    assert label.beyond_tolerance == 0
    assert (decided.ties, decided.beyond_tolerance) == (0, label.ties)  # by its scores the original knows which


def test_another_shape_is_a_problem_that_names_both(regressor: tuple[OnnxModel, Any], table: pd.DataFrame) -> None:
    model, converted = regressor
    wide = replace(converted, original=lambda batch: {"prediction": np.zeros((len(batch), 2))})

    report = prove_parity(model, wide, [RowGroup("example", table, generated=False)])

    assert report.problem == "output 'prediction' has the shape (50,) for 50 rows; the original's is (50, 2)"
    assert "(50, 2)" in parity_error(report).message


def test_blocks_that_the_original_refuses_are_found_and_dropped(
    regressor: tuple[OnnxModel, Any], table: pd.DataFrame
) -> None:
    model, converted = regressor

    def picky(batch: Any) -> Any:
        if (batch.a > 100).any():
            raise ValueError("too much")
        return converted.original(batch)

    rows = pd.concat([table.head(4), table.head(4).assign(a=200.0), table.tail(4)])
    report = prove_parity(model, replace(converted, original=picky), [RowGroup("unseen", rows, block=4)])

    assert report.refused_by_original == {"unseen": 4}
    assert report.sources == {"unseen": 8}


def test_small_values_beside_large_ones_are_measured_on_their_own_spread(table: pd.DataFrame, tmp_path: Path) -> None:
    model, converted = _saved(LinearRegression().fit(table, np.c_[table.a * 1e6, table.b]), table, tmp_path)

    def another(batch: Any) -> dict[str, Any]:
        return {"prediction": converted.original(batch)["prediction"] * [1, 1.5]}

    many = pd.concat([table] * 4, ignore_index=True)
    report = prove_parity(model, replace(converted, original=another), [RowGroup("ranges", many)])

    assert prove_parity(model, converted, [RowGroup("ranges", many)]).state == "proven"
    assert report.outputs[0].beyond_tolerance > 150


def test_scores_that_are_all_small_are_no_ties(classifier: tuple[OnnxModel, Any], table: pd.DataFrame) -> None:
    model, converted = classifier
    scored = replace(
        converted,
        outputs=converted.outputs[:1],
        original=lambda batch: {"label": (batch.a < 0).to_numpy()},
        margin=lambda batch: batch.a.to_numpy() * 1e-6,
    )

    report = prove_parity(model, scored, [RowGroup("example", table, generated=False)])

    assert report.outputs[0].beyond_tolerance > 40


def test_of_several_labels_a_row_each_has_a_margin_of_its_own(table: pd.DataFrame, tmp_path: Path) -> None:
    both = np.c_[table.a > 0, table.b > 0].astype(np.int64)
    model, converted = _saved(MLPClassifier((3,), max_iter=5).fit(table, both), table, tmp_path)

    def sure_of_both(batch: Any) -> dict[str, Any]:
        answers = converted.original(batch)
        return {"label": 1 - answers["label"], "probabilities": np.ones_like(answers["probabilities"])}

    report = prove_parity(
        model, replace(converted, original=sure_of_both), [RowGroup("example", table, generated=False)]
    )

    assert report.outputs[0].ties == 0


def test_too_few_rows_prove_nothing(regressor: tuple[OnnxModel, Any], table: pd.DataFrame) -> None:
    model, converted = regressor

    def never_many(batch: Any) -> Any:
        if len(batch) > 100:
            raise ValueError("too many rows")
        return converted.original(batch)

    report = prove_parity(
        model,
        replace(converted, original=never_many),
        [RowGroup("example", table), RowGroup("ranges", pd.concat([table] * 3))],
        1000,
    )

    assert report.state == "warned"
    assert "only 50 rows" in parity_error(report).message
