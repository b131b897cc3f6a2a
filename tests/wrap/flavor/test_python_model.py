"""Networks without an ONNX form that MLflow's flavors do not serve: several inputs or
outputs, and programs.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.refusals import mentions

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

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.serve.pyfunc.scorer import Scorer
from mlflow_deploy_plugin.wrap.flavor.python_model import net_options, typed_columns_options
from tests.support.random_rows import normal_rows
from tests.support.servers import gunicorn, one_endpoint

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = normal_rows(6, 3).astype(np.float32)


class Longest(torch.nn.Module):
    """A module with a loop whose number of iterations depends on the data."""

    def forward(self, left: Any, right: Any = 1) -> Any:
        for _ in range(int(torch.as_tensor(left).abs().max()) % 3 + 1):
            left = left * 2
        return {"product": left * right, "sum": left.sum(1)}


def _served(model, example):
    """Return the answers of the logged version,
    and the reason why it has no ONNX form.
    """
    info = onnxserve.log_model(model, name="model", input_example=example)
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri))
    scorer = Scorer.load(folder)
    assert scorer.warm_up() or (folder / "data" / "keras_module.txt").exists()
    tags = mlflow.get_logged_model(info.model_id).tags
    return mlflow.pyfunc.load_model(str(folder)).predict(example), tags["onnxserve.fallback"]


@pytest.mark.long
@pytest.mark.parametrize("form", ["two inputs", "two outputs"])
def test_a_module_answers_named_arrays(form, tracking):
    example = {"left": ROWS, "right": ROWS * 3} if form == "two inputs" else ROWS

    answer, reason = _served(Longest(), example)

    times = 2.0 ** (int(np.abs(ROWS).max()) % 3 + 1)
    np.testing.assert_allclose(
        answer["product"], ROWS * times * (ROWS * 3 if form == "two inputs" else 1), rtol=1e-5
    )
    np.testing.assert_allclose(answer["sum"], (ROWS * times).sum(1), rtol=1e-4)
    assert "branches on tensor values" in reason


def test_the_nodes_and_edges_of_a_graph_are_no_rows(tracking):
    class Neighbours(torch.nn.Module):
        def forward(self, nodes: Any, edges: Any) -> Any:
            return torch.zeros_like(nodes).index_add(0, edges[1], nodes[edges[0]])

    answer, reason = _served(Neighbours(), {"nodes": ROWS, "edges": np.array([[5, 0], [1, 1]])})

    np.testing.assert_allclose(answer[1], ROWS[5] + ROWS[0])
    assert mentions(reason, "first dimension", "'nodes' [6, 3]", "'edges' [2, 2]")


@pytest.mark.long
def test_a_tensor_as_example_keeps_signature_and_example(tracking):
    class Repeated(Longest):
        def forward(self, left: Any) -> Any:  # type: ignore[override]
            return super().forward(left)["product"]

    info = onnxserve.log_model(
        Repeated(), name="model", input_example=torch.from_numpy(ROWS).requires_grad_()
    )

    assert info.signature.inputs.to_dict()[0]["tensor-spec"] == {
        "dtype": "float32",
        "shape": (-1, 3),
    }
    assert info.saved_input_example_info is not None


class Cache:
    pass


class Decoder(torch.nn.Module):
    """A module that returns a cache next to its tensor, like in transformers."""

    def forward(self, *, tokens: Any) -> Any:
        return {"logits": tokens * 2.0, "past": Cache()}


@pytest.mark.parametrize("example", [ROWS, {"tokens": ROWS}], ids=["array", "named"])
def test_outputs_other_than_tensors_are_left_out_of_the_answer(example, tracking):
    answer, reason = _served(Decoder(), example)

    np.testing.assert_allclose(answer, ROWS * 2)
    assert reason.startswith("the module's forward returns a Cache, which is not a tensor")


def test_sizes_that_differ_between_the_data_are_free(tracking):
    example = {"tokens": ROWS}
    longer = {"tokens": np.tile(ROWS, 3)}

    info = onnxserve.log_model(Decoder(), name="model", input_example=example, parity_data=longer)

    answer = mlflow.pyfunc.load_model(info.model_uri).predict({"tokens": np.tile(ROWS, 2)})
    np.testing.assert_allclose(answer, np.tile(ROWS, 2) * 2)
    assert [spec.shape for spec in (*info.signature.inputs, *info.signature.outputs)] == [
        (-1, -1),
        (-1, -1),
    ]


def test_answers_with_another_number_of_dimensions_have_no_signature(tracking):
    class Squeezed(Decoder):
        def forward(self, *, tokens: Any) -> Any:
            return {
                "logits": tokens[:, None].repeat(1, len(tokens) % 2 + 1, 1).squeeze(1),
                "past": Cache(),
            }

    message = (
        r"the model's predictions for parity_data, reference_data: logits has the shape \[4, 3\]; "
        r"the example has \[5, 2, 3\]"
    )
    with pytest.raises(InvalidConfig, match=message):
        onnxserve.log_model(
            Squeezed(),
            name="model",
            input_example={"tokens": ROWS},
            parity_data={"tokens": ROWS[:4]},
        )


@pytest.mark.long
def test_a_program_for_one_size_of_batches_is_served_as_it_is(tracking):
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.from_numpy(ROWS[:4]),))

    answer, reason = _served(program, ROWS[:4])

    np.testing.assert_allclose(
        answer, program.module()(torch.from_numpy(ROWS[:4])).detach().numpy(), rtol=1e-5
    )
    assert mentions(reason, "[4, 3]")


class Sorted(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.linalg.svdvals(x.unsqueeze(1)), x.sum(1)


def test_a_scripted_module_is_packed_by_torch(tracking):
    answer, reason = _served(torch.jit.script(Sorted()), ROWS)

    np.testing.assert_allclose(answer["output_0"][:, 0], np.linalg.norm(ROWS, axis=1), rtol=1e-4)
    assert "linalg_svd" in reason


@pytest.mark.long
@pytest.mark.parametrize("form", ["array", "table", "two outputs"])
def test_a_keras_model_is_logged_with_its_signature(form, tracking):
    """Check Keras: MLflow's flavor cannot save an input example, supports no tables,
    and returns one array.
    """
    keras: Any = pytest.importorskip("keras")
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


def test_all_else_is_left_to_the_flavor_of_its_library():
    assert net_options("pytorch", torch.nn.Linear(3, 2), ROWS) is None
    assert net_options("sentence_transformers", torch.nn.Linear(3, 2), ["texts"]) is None
    assert net_options("prophet", pd.Series([1]), ROWS) is None


def test_a_model_that_answers_no_table_of_categories_is_left_to_its_own_flavor():
    table = pd.DataFrame({"a": pd.Categorical(["x", "y"])})

    assert typed_columns_options(torch.nn.Linear(1, 1), "predict", table) is None
    assert typed_columns_options(torch.nn.Linear(1, 1), "predict", ROWS) is None


def _plans(kind):
    """Return a table whose text column is missing in its first five rows, and has
    missing values below.
    """
    full = ["gold"] * 5 + ["silver", "gold", "gold"] * 5
    late = [None] * 5 + ["gold", None, "silver"] * 5
    columns = {
        "texts": pd.Series(late),
        "objects": pd.Series(late, dtype=object),
        "objects with NaN": pd.Series(late, dtype=object).fillna(np.nan),
        "categories": pd.Series(late).astype("category"),
        "categories of objects": pd.Series(late, dtype=object).astype("category"),
        "categories without gaps": pd.Series(full).astype("category"),
    }
    return pd.DataFrame({"plan": columns[kind], "visits": np.arange(20)})


KINDS = (
    "texts",
    "objects",
    "objects with NaN",
    "categories",
    "categories of objects",
    "categories without gaps",
)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_column_keeps_its_type_if_its_first_rows_are_missing(kind, tracking):
    table = _plans(kind)
    encode = make_pipeline(FunctionTransformer(lambda rows: rows[["plan"]].copy()), OneHotEncoder())
    model = make_pipeline(encode, LogisticRegression(C=100)).fit(
        table, table.plan.isna() | (table.plan == "silver")
    )

    info = onnxserve.log_model(model, name="model", input_example=table)

    assert info.signature.inputs.to_dict() == [
        {"type": "string", "name": "plan", "required": True},
        {"type": "long", "name": "visits", "required": True},
    ]
    scorer = Scorer.load(Path(mlflow.artifacts.download_artifacts(info.model_uri)))
    records = (
        table.astype({"plan": object}).astype(object).where(table.notna(), None).to_dict("records")
    )
    expected = model.predict(table).tolist()
    assert set(expected) == {False, True}
    assert _predictions(scorer, "application/json", {"dataframe_records": records}) == expected
    for record, answer in zip(records, expected, strict=True):
        assert _predictions(scorer, "application/json", {"dataframe_records": [record]}) == [answer]
        assert _predictions(scorer, "text/csv", pd.DataFrame([record]).to_csv(index=False)) == [
            answer
        ]


def _predictions(scorer: Scorer, content_type: str, body: Any) -> list[Any]:
    sent = body if isinstance(body, str) else json.dumps(body)
    predictions: list[Any] = json.loads(scorer.invoke(content_type, sent.encode()).body)[
        "predictions"
    ]
    return predictions


class HourOfDay:
    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        return rows["when"].dt.hour.to_numpy()


@pytest.mark.parametrize(
    ("zone", "hours"),
    [
        ("Europe/Berlin", [8, 8, 14, 1, 3, 2, 2, 10]),
        ("Europe/London", [7, 7, 13, 0, 2, 1, 1, 9]),  # Its winter has the hours of UTC.
    ],
)
def test_dates_are_answered_in_the_zone_of_the_example(zone, hours, tracking):
    when = pd.date_range("2024-01-01", periods=20, freq="7h", tz=zone)
    info = onnxserve.log_model(
        HourOfDay(), name="model", input_example=pd.DataFrame({"when": when})
    )
    scorer = Scorer.load(Path(mlflow.artifacts.download_artifacts(info.model_uri)))

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
    body = {"dataframe_records": [{"when": date} for date in dates]}
    assert _predictions(scorer, "application/json", body) == hours


@pytest.mark.long
def test_a_server_answers_a_null_in_the_same_way_next_to_other_rows(tracking, tmp_path):
    table = _plans("texts")[["plan"]]
    copied = FunctionTransformer(lambda rows: rows.copy())
    model = make_pipeline(copied, OneHotEncoder(handle_unknown="ignore"), LogisticRegression(C=100))
    model.fit(table, table.plan.isna().astype(int))
    info = onnxserve.log_model(model, name="model", input_example=table)
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri))

    with gunicorn(tmp_path, one_endpoint(folder)) as server:
        alone = server.post(json={"dataframe_records": [{"plan": None}]})
        together = server.post(json={"dataframe_records": [{"plan": None}, {"plan": "gold"}]})
        csv = server.post(data='plan\ngold\n""\n', headers={"Content-Type": "text/csv"})

    assert alone.json()["predictions"] == [1]
    assert together.json()["predictions"] == [1, 0]
    assert csv.json()["predictions"] == [0, 1]


class RefusesFiveRows:
    """A model of an unknown library that cannot predict the example
    that MLflow saves.
    """

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        if len(rows) == 5:
            raise ValueError("five rows")
        return np.zeros(len(rows))


@pytest.mark.long
def test_columns_that_a_signature_cannot_describe_and_a_model_without_a_signature_are_reported(
    tracking, caplog
):
    columns = {"plan": [1, "gold"] * 10, "late": [True, None] * 10, "photo": [b"png", None] * 10}
    table = pd.DataFrame(
        {name: pd.Series(values, dtype=object) for name, values in columns.items()}
    )
    model = make_pipeline(
        FunctionTransformer(lambda rows: rows.astype(str)), OneHotEncoder(), LogisticRegression()
    )
    model.fit(table, [0, 1] * 10)

    info = onnxserve.log_model(model, name="model", input_example=table)
    unsigned = onnxserve.log_model(
        RefusesFiveRows(), name="model", input_example=pd.DataFrame({"a": range(9)})
    )

    assert "has no type for the columns ['plan'], which mix types" in caplog.text
    assert (
        "The boolean or binary columns ['late', 'photo'] have missing values, which are refused"
        in caplog.text
    )
    assert info.signature.inputs.to_dict() == [
        {"type": "any", "name": "plan", "required": True},
        {"type": "boolean", "name": "late", "required": True},
        {"type": "binary", "name": "photo", "required": True},
    ]
    assert unsigned.signature is None
    assert "The model is logged without a signature" in caplog.text


class CountsGaps:
    """A model of an unknown library."""

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        return rows.isna().sum(axis=1).to_numpy()


@pytest.mark.long
def test_a_whole_number_of_an_object_column_with_gaps_may_be_missing(tracking):
    table = pd.DataFrame({"a": pd.Series([1, None, 2], dtype=object)})

    info = onnxserve.log_model(CountsGaps(), name="model", input_example=table)

    scorer = Scorer.load(Path(mlflow.artifacts.download_artifacts(info.model_uri)))
    body = {"dataframe_records": [{"a": 1}, {"a": None}]}
    assert _predictions(scorer, "application/json", body) == [0, 1]
    assert info.signature.inputs.to_dict() == [{"type": "double", "name": "a", "required": True}]


class AnswersNothing(BaseEstimator):  # type: ignore[misc]
    """An estimator that needs categories if the table has a column `kind`."""

    def fit(self, rows: pd.DataFrame) -> "AnswersNothing":
        self.columns_ = list(rows)
        return self

    def predict(self, rows: pd.DataFrame) -> None:
        if "kind" in rows:
            rows.kind.cat.codes.sum()


@pytest.mark.long
@pytest.mark.parametrize("column", [{"a": [1.0, 2.0]}, {"kind": pd.Categorical(["x", "y"])}])
def test_a_model_whose_predict_returns_none_is_logged(column, tracking, caplog):
    table = pd.DataFrame(column)
    info = onnxserve.log_model(AnswersNothing().fit(table), name="model", input_example=table)

    assert info.signature.inputs.input_names() == list(table)
    assert "is served as pyfunc" in caplog.text


class ReadsCategories:
    """A model of an unknown library that needs categories and counts the rows of each
    call.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        self.sizes.append(len(rows))
        return rows.kind.cat.codes.to_numpy()


@pytest.mark.long
def test_a_model_of_categories_is_asked_and_reported_once(tracking, caplog):
    table = pd.DataFrame(
        {"kind": pd.Categorical(["x", "y"] * 10), "plan": pd.Series([1, "gold"] * 10, dtype=object)}
    )
    model = ReadsCategories()

    onnxserve.log_model(model, name="model", input_example=table)

    assert caplog.text.count("has no type for the columns ['plan']") == 1
    # The search for a flavor asks with one row; then categories, texts, and an unknown
    # category are tried.
    assert model.sizes == [1, 20, 20, 5]


@pytest.mark.long
def test_probabilities_without_an_onnx_form_are_served_as_pyfunc(tracking):
    rows = normal_rows(40, 2)
    table = pd.DataFrame(rows, columns=["a", "b"])
    several = RandomForestClassifier(3, random_state=0).fit(table, (rows > 0).astype(int))
    mixture = GaussianMixture(2, random_state=0).fit(table)
    records = {"dataframe_records": table.head(3).to_dict("records")}

    for model in (mixture, several):
        info = onnxserve.log_model(
            model, name="model", input_example=table, pyfunc_predict_fn="predict_proba"
        )
        scorer = Scorer.load(Path(mlflow.artifacts.download_artifacts(info.model_uri)))
        probabilities = _predictions(scorer, "application/json", records)
        np.testing.assert_allclose(probabilities, model.predict_proba(table.head(3)))
        with pytest.raises(
            ConversionError, match="only the probabilities of a classifier with a single target"
        ):
            onnxserve.log_model(
                model,
                name="model",
                input_example=table,
                pyfunc_predict_fn="predict_proba",
                fallback="error",
            )
