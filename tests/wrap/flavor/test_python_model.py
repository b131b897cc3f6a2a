"""Networks without an ONNX form that MLflow's flavors do not serve: several inputs or
outputs, and programs.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.refusals import mentions, refused

os.environ.setdefault("KERAS_BACKEND", "torch")

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.serve.pyfunc.scorer import Scorer
from mlflow_deploy_plugin.wrap.flavor.python_model import net_options, typed_columns_options
from tests.support.random_rows import normal_rows
from tests.wrap.conftest import cases, log

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = normal_rows(6, 3).astype(np.float32)


class Longest(torch.nn.Module):
    """A module with a loop whose number of iterations depends on the data."""

    def forward(self, left, right=1):
        for _ in range(int(torch.as_tensor(left).abs().max()) % 3 + 1):
            left = left * 2
        return {"product": left * right, "sum": left.sum(1)}


def _loaded(model, example):
    """Return the info and the scorer of the logged version."""
    info = log(model, example)
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri))
    return info, Scorer.load(folder), folder


def _served(model, example):
    """Return the answers of the logged version,
    and the reason why it has no ONNX form.
    """
    info, scorer, folder = _loaded(model, example)
    assert scorer.warm_up() or (folder / "data" / "keras_module.txt").exists()
    tags = mlflow.get_logged_model(info.model_id).tags
    return mlflow.pyfunc.load_model(str(folder)).predict(example), tags["onnxserve.fallback"]


@pytest.mark.long
@pytest.mark.parametrize("form", ["two inputs", "two outputs"])
def test_module_answers_named_arrays(form, tracking):
    example = {"left": ROWS, "right": ROWS * 3} if form == "two inputs" else ROWS

    answer, reason = _served(Longest(), example)

    times = 2.0 ** (int(np.abs(ROWS).max()) % 3 + 1)
    np.testing.assert_allclose(
        answer["product"], ROWS * times * (ROWS * 3 if form == "two inputs" else 1), rtol=1e-5
    )
    np.testing.assert_allclose(answer["sum"], (ROWS * times).sum(1), rtol=1e-4)
    assert "branches on tensor values" in reason


def test_nodes_and_edges_are_no_rows(tracking):
    class Neighbours(torch.nn.Module):
        def forward(self, nodes, edges):
            return torch.zeros_like(nodes).index_add(0, edges[1], nodes[edges[0]])

    answer, reason = _served(Neighbours(), {"nodes": ROWS, "edges": np.array([[5, 0], [1, 1]])})

    np.testing.assert_allclose(answer[1], ROWS[5] + ROWS[0])
    assert mentions(reason, "first dimension", "'nodes' [6, 3]", "'edges' [2, 2]")


@pytest.mark.long
def test_tensor_example_has_a_signature(tracking):
    class Repeated(Longest):
        def forward(self, left):  # type: ignore[override]
            return super().forward(left)["product"]

    info = log(Repeated(), torch.from_numpy(ROWS).requires_grad_())

    assert info.signature.inputs.to_dict()[0]["tensor-spec"] == {
        "dtype": "float32",
        "shape": (-1, 3),
    }
    assert info.saved_input_example_info is not None


class Cache:
    pass


class Decoder(torch.nn.Module):
    """A module that returns a cache next to its tensor, like in transformers."""

    def forward(self, *, tokens):
        return {"logits": tokens * 2.0, "past": Cache()}


@pytest.mark.parametrize("example", [ROWS, {"tokens": ROWS}], ids=["array", "named"])
def test_other_outputs_are_left_out(example, tracking):
    answer, reason = _served(Decoder(), example)

    np.testing.assert_allclose(answer, ROWS * 2)
    assert reason.startswith("the module's forward returns a Cache, which is not a tensor")


def test_sizes_that_differ_are_free(tracking):
    example = {"tokens": ROWS}
    longer = {"tokens": np.tile(ROWS, 3)}

    info = log(Decoder(), example, parity_data=longer)

    answer = mlflow.pyfunc.load_model(info.model_uri).predict({"tokens": np.tile(ROWS, 2)})
    np.testing.assert_allclose(answer, np.tile(ROWS, 2) * 2)
    assert [spec.shape for spec in (*info.signature.inputs, *info.signature.outputs)] == [
        (-1, -1),
        (-1, -1),
    ]


def test_answers_of_other_dimensions_are_refused(tracking):
    class Squeezed(Decoder):
        def forward(self, *, tokens):
            repeated = tokens[:, None].repeat(1, len(tokens) % 2 + 1, 1)
            return {"logits": repeated.squeeze(1), "past": Cache()}

    with refused(InvalidConfig, "parity_data", "logits", "[4, 3]", "[5, 2, 3]"):
        log(Squeezed(), {"tokens": ROWS}, parity_data={"tokens": ROWS[:4]})


@pytest.mark.long
def test_program_of_fixed_batches_is_served(tracking):
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.from_numpy(ROWS[:4]),))

    answer, reason = _served(program, ROWS[:4])

    np.testing.assert_allclose(
        answer, program.module()(torch.from_numpy(ROWS[:4])).detach().numpy(), rtol=1e-5
    )
    assert mentions(reason, "[4, 3]")


class Sorted(torch.nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x.unsqueeze(1)), x.sum(1)


def test_scripted_module_is_packed_by_torch(tracking):
    answer, reason = _served(torch.jit.script(Sorted()), ROWS)

    np.testing.assert_allclose(answer["output_0"][:, 0], np.linalg.norm(ROWS, axis=1), rtol=1e-4)
    assert "linalg_svd" in reason


@pytest.mark.long
@pytest.mark.parametrize("form", ["array", "table", "two outputs"])
def test_keras_model_has_a_signature(form, tracking):
    """Check Keras: MLflow's flavor cannot save an input example, supports no tables,
    and returns one array.
    """
    keras = pytest.importorskip("keras")
    inputs = keras.Input((3,))
    sizes = keras.ops.svd(keras.ops.expand_dims(inputs, 1), compute_uv=False)
    outputs = (
        [sizes, keras.layers.Dense(2, name="scores")(inputs)] if form == "two outputs" else sizes
    )

    answer, reason = _served(
        keras.Model(inputs, outputs),
        pd.DataFrame(ROWS, columns=list("abc")) if form == "table" else ROWS,
    )

    size = next(iter(answer.values())) if form == "two outputs" else answer
    np.testing.assert_allclose(np.asarray(size)[:, 0], np.linalg.norm(ROWS, axis=1), rtol=1e-4)
    assert "svd" in reason


def test_other_models_have_no_options():
    table = pd.DataFrame({"a": pd.Categorical(["x", "y"])})
    layer = torch.nn.Linear(3, 2)

    assert net_options("pytorch", layer, ROWS) is None
    assert net_options("sentence_transformers", layer, ["texts"]) is None
    assert net_options("prophet", pd.Series([1]), ROWS) is None
    assert typed_columns_options(layer, "predict", table) is None
    assert typed_columns_options(layer, "predict", ROWS) is None


LATE = [None] * 5 + ["gold", None, "silver"] * 5
PLANS = {
    "texts": pd.Series(LATE),
    "objects": pd.Series(LATE, dtype=object),
    "objects with NaN": pd.Series(LATE, dtype=object).fillna(np.nan),
    "categories": pd.Series(LATE).astype("category"),
    "categories of objects": pd.Series(LATE, dtype=object).astype("category"),
    "categories without gaps": pd.Series(["gold"] * 5 + ["silver", "gold", "gold"] * 5).astype(
        "category"
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("plan", cases(PLANS))
def test_missing_first_texts_keep_the_type(plan, tracking):
    table = pd.DataFrame({"plan": plan, "visits": np.arange(20)})
    encode = make_pipeline(FunctionTransformer(lambda rows: rows[["plan"]].copy()), OneHotEncoder())
    model = make_pipeline(encode, LogisticRegression(C=100)).fit(
        table, table.plan.isna() | (table.plan == "silver")
    )

    info, scorer, _ = _loaded(model, table)

    assert info.signature.inputs.to_dict() == [
        {"type": "string", "name": "plan", "required": True},
        {"type": "long", "name": "visits", "required": True},
    ]
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    expected = model.predict(table).tolist()
    assert set(expected) == {False, True}
    assert _predictions(scorer, records) == expected
    for record, answer in zip(records, expected, strict=True):
        csv = pd.DataFrame([record]).to_csv(index=False)
        assert _predictions(scorer, [record]) == [answer]
        assert _predictions(scorer, csv) == [answer]


def _predictions(scorer, rows):
    """Return the predictions for records or for CSV."""
    if isinstance(rows, str):
        answer = scorer.invoke("text/csv", rows.encode())
    else:
        sent = json.dumps({"dataframe_records": rows})
        answer = scorer.invoke("application/json", sent.encode())
    return json.loads(answer.body)["predictions"]


class HourOfDay:
    def predict(self, rows):
        return rows["when"].dt.hour.to_numpy()


@pytest.mark.parametrize(
    ("zone", "hours"),
    [
        ("Europe/Berlin", [8, 8, 14, 1, 3, 2, 2, 10]),
        ("Europe/London", [7, 7, 13, 0, 2, 1, 1, 9]),  # Its winter has the hours of UTC.
    ],
)
def test_dates_have_the_example_zone(zone, hours, tracking):
    when = pd.date_range("2024-01-01", periods=20, freq="7h", tz=zone)
    _, scorer, _ = _loaded(HourOfDay(), pd.DataFrame({"when": when}))

    dates = [
        "2024-07-01T08:00:00+02:00",
        "2024-07-01T06:00:00Z",
        "2024-07-01T08:00:00-04:00",
        "2024-03-31T01:59:59+01:00",  # The clocks change one second later.
        "2024-03-31T03:00:00+02:00",
        "2024-10-27T02:30:00+02:00",  # This local time occurs twice.
        "2024-10-27T02:30:00+01:00",
        "2024-07-01T08:00:00",  # A date without an offset is in UTC.
    ]
    assert _predictions(scorer, [{"when": date} for date in dates]) == hours


class RefusesFiveRows:
    """A model of an unknown library that cannot predict the example
    that MLflow saves.
    """

    def predict(self, rows):
        if len(rows) == 5:
            raise ValueError("five rows")
        return np.zeros(len(rows))


@pytest.mark.long
def test_missing_types_and_signatures_are_reported(tracking, caplog):
    columns = {"plan": [1, "gold"] * 10, "late": [True, None] * 10, "photo": [b"png", None] * 10}
    table = pd.DataFrame(columns, dtype=object)
    model = make_pipeline(
        FunctionTransformer(lambda rows: rows.astype(str)), OneHotEncoder(), LogisticRegression()
    )
    model.fit(table, [0, 1] * 10)

    info = log(model, table)
    unsigned = log(RefusesFiveRows(), pd.DataFrame({"a": range(9)}))

    assert mentions(caplog.text, "['plan']", "mix types", "['late', 'photo']", "missing values")
    assert info.signature.inputs.to_dict() == [
        {"type": "any", "name": "plan", "required": True},
        {"type": "boolean", "name": "late", "required": True},
        {"type": "binary", "name": "photo", "required": True},
    ]
    assert unsigned.signature is None
    assert mentions(caplog.text, "without a signature")


class CountsGaps:
    """A model of an unknown library."""

    def predict(self, rows):
        return rows.isna().sum(axis=1).to_numpy()


@pytest.mark.long
def test_integers_of_objects_may_be_missing(tracking):
    table = pd.DataFrame({"a": pd.Series([1, None, 2], dtype=object)})

    info, scorer, _ = _loaded(CountsGaps(), table)

    assert _predictions(scorer, [{"a": 1}, {"a": None}]) == [0, 1]
    assert info.signature.inputs.to_dict() == [{"type": "double", "name": "a", "required": True}]


class AnswersNothing(BaseEstimator):  # type: ignore[misc]
    """An estimator that needs categories if the table has a column `kind`."""

    def fit(self, rows):
        self.columns_ = list(rows)
        return self

    def predict(self, rows):
        if "kind" in rows:
            rows.kind.cat.codes.sum()


@pytest.mark.long
@pytest.mark.parametrize("column", [{"a": [1.0, 2.0]}, {"kind": pd.Categorical(["x", "y"])}])
def test_model_that_predicts_none_is_logged(column, tracking, caplog):
    table = pd.DataFrame(column)
    info = log(AnswersNothing().fit(table), table)

    assert info.signature.inputs.input_names() == list(table)
    assert "is served as pyfunc" in caplog.text


@pytest.mark.long
@pytest.mark.parametrize(
    "model", [GaussianMixture(2, random_state=0), RandomForestClassifier(3, random_state=0)]
)
def test_unsupported_probabilities_are_served_as_pyfunc(model, tracking):
    rows = normal_rows(40, 2)
    table = pd.DataFrame(rows, columns=["a", "b"])
    model.fit(table, (rows > 0).astype(int))

    info = log(model, table, pyfunc_predict_fn="predict_proba")

    scorer = Scorer.load(Path(mlflow.artifacts.download_artifacts(info.model_uri)))
    probabilities = _predictions(scorer, table.head(3).to_dict("records"))
    np.testing.assert_allclose(probabilities, model.predict_proba(table.head(3)))
    with refused(ConversionError, "probabilities", "single target"):
        log(model, table, pyfunc_predict_fn="predict_proba", fallback="error")
