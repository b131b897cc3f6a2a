import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc import PythonModel, save_model
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array, Map, Object, Property
from scipy.sparse import coo_matrix, csr_matrix

from mlflow_deploy_plugin.core.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.serve.pyfunc.scorer import (
    NotRepresentable,
    count_values,
    load_scorer,
    to_feeds,
    to_outputs,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.feeds import object_array
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from tests.support.schemas import bare_artifact

JSON = "application/json"


def saved_scorer(folder, signature, predict):
    """Return the scorer of a model of Python that answers with `predict`."""

    class Model(PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return predict(model_input)

    save_model(folder, python_model=Model(), signature=signature, pip_requirements=[])
    return load_scorer(folder)


def invoke(scorer, document):
    return scorer.invoke(JSON, json.dumps(document).encode())


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (np.array([1, 2]), {"prediction": [1, 2]}),
        (pd.Series(["a", "b"], name="label"), {"prediction": ["a", "b"]}),
        (pd.Series([1, None], dtype="Int64"), {"prediction": [1.0, None]}),
        (pd.Series([True, False], dtype="boolean"), {"prediction": [True, False]}),
        (pd.Series(["a", "b"], dtype="category"), {"prediction": ["a", "b"]}),
        (pd.DataFrame({"a": [1], 2: ["x"]}), {"a": [1], "2": ["x"]}),
        (pd.DataFrame({"t": pd.to_datetime(["2013-07-01"])}), {"t": ["2013-07-01T00:00:00"]}),
        ({"a": [1, 2], "b": [[1], [2]]}, {"a": [1, 2], "b": [[1], [2]]}),
        ([[1, 2], [3, 4]], {"prediction": [[1, 2], [3, 4]]}),
        (3.5, {"prediction": [3.5]}),
        ("text", {"prediction": ["text"]}),
        (csr_matrix([[1, 0]]), {"prediction": [[1, 0]]}),
        (np.array([1, 2], dtype=object), {"prediction": [1, 2]}),
    ],
)
def test_predictions_become_named_outputs(prediction, expected):
    outputs = {name: array.tolist() for name, array in to_outputs(prediction).items()}
    assert {
        name: [None if value != value else value for value in values]
        for name, values in outputs.items()
    } == expected


@pytest.mark.parametrize(
    "prediction",
    [
        None,
        [{"a": 1}],
        [[1], [1, 2]],
        ["a", None],
        ["a", 1, object()],
        np.array([1j]),
        coo_matrix(([1.0], ([0], [0])), shape=(2**40, 2**40)),
        pd.DataFrame([[1, 2]], columns=["a", "a"]),
    ],
)
def test_predictions_without_an_array_are_refused(prediction):
    with pytest.raises(NotRepresentable):
        to_outputs(prediction)


@pytest.mark.parametrize(
    ("prediction", "count"),
    [
        (np.zeros((3, 4)), 12),
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), 4),
        (csr_matrix((1000, 1000)), 1_000_000),
        ({"a": np.zeros(3), "b": [1, 2]}, 5),
        ([{"n": 1, "tags": ["u", "v"]}] * 2, 6),
        (pd.DataFrame({"id": [1, 2], "embedding": [np.zeros(768), [0.0] * 768]}), 2 + 2 * 768),
        (pd.Series([[1, 2], [3]]), 3),
        (np.array([[1, 2], None], dtype=object), 3),
        ([1, [2, 3]], 3),
        ({"shape": [1, 2]}, 2),
        (SimpleNamespace(shape="round"), 1),
        ([], 0),
        ("a text", 1),
        (None, 1),
    ],
)
def test_values_of_an_answer_are_counted(prediction, count):
    assert count_values(prediction) == count


def test_numbered_columns_reach_the_model(tmp_path):
    """Check the signature of a DataFrame created from an array. MLflow rejects its
    strings.
    """

    rows = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]])
    signature = infer_signature(rows, rows[0])
    scorer = saved_scorer(tmp_path / "sum", signature, lambda rows: rows[0] + rows[1])
    answer = scorer.predict({"0": np.array([1.0, 3.0]), "1": np.array([2.0, 4.0])})
    assert answer.arrays["outputs"]["prediction"].tolist() == [3.0, 7.0]


def test_single_text_is_one_row(tmp_path):
    """Check an example like the input example of a language model."""
    signature = ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string")]))
    scorer = saved_scorer(tmp_path / "upper", signature, lambda rows: rows[0].str.upper())
    arrays = invoke(scorer, {"inputs": "good film"}).arrays
    assert {name: array.tolist() for name, array in arrays["feeds"].items()} == {"0": ["good film"]}


POINT = {"a": [3, 4], "o": {"h": 2, "n": 1, "parts": [{"z": [5]}]}, "m": {"k": 6}}
"""A row of whole numbers. The signature has a long for `n`, and doubles for all other
numbers.
"""


@pytest.fixture
def doubles(tmp_path):
    def texts(rows):
        answers = []
        for row in rows.itertuples():
            numbers = [*row.a, row.o["h"], row.o["n"], *row.o["parts"][0]["z"], row.m["k"]]
            answers.append(" ".join(str(number) for number in numbers))
        return answers

    double = DataType.double
    long = DataType.long
    part = Object([Property("z", Array(double))])
    whole = Object([Property("h", double), Property("n", long), Property("parts", Array(part))])
    columns = [ColSpec(Array(double), "a"), ColSpec(whole, "o"), ColSpec(Map(double), "m")]
    signature = ModelSignature(Schema(columns), Schema([ColSpec("string")]))
    return saved_scorer(tmp_path / "doubles", signature, texts)


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_records": [POINT]},
        {"dataframe_split": {"columns": list(POINT), "data": [list(POINT.values())]}},
        {"inputs": POINT},
        {"inputs": [POINT]},
    ],
    ids=["records", "split", "one row", "a list of rows"],
)
def test_whole_numbers_become_nested_doubles(doubles, document):
    (answer,) = json.loads(invoke(doubles, document).body)["predictions"]
    assert answer == "3.0 4.0 2.0 1 5.0 6.0"


def test_whole_numbers_of_files_become_doubles(doubles):
    table = pd.DataFrame([POINT | {"a": np.array([3, 4])}])
    assert doubles.outputs_of(table)["prediction"].tolist() == ["3.0 4.0 2.0 1 5.0 6.0"]


def test_number_is_refused_next_to_nested_columns(tmp_path):
    columns = [ColSpec(Array(DataType.long), "a"), ColSpec(DataType.string, "s")]
    scorer = saved_scorer(
        tmp_path / "texts", ModelSignature(Schema(columns)), lambda rows: list(rows["s"])
    )
    rows = [{"a": [3], "s": "x"}, {"a": [4, 5], "s": 5}]
    with pytest.raises(SchemaMismatch, match=r"column 's' \(string\), row 1: 5"):
        invoke(scorer, {"dataframe_records": rows})
    answer = invoke(scorer, {"dataframe_records": rows[:1]})
    assert json.loads(answer.body)["predictions"] == ["x"]


@pytest.mark.parametrize("value", [True, "3", [3]])
def test_other_nested_values_are_refused(doubles, value):
    document = {"dataframe_records": [POINT | {"m": {"k": value}}]}
    with pytest.raises(InvalidRequest):
        invoke(doubles, document)


@pytest.fixture
def dated(tmp_path):
    class At(PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return [repr(params["at"])] * len(model_input)

    default = np.datetime64("2020-01-01")
    signature = ModelSignature(
        Schema([ColSpec("long", "n")]),
        Schema([ColSpec("string")]),
        ParamSchema([ParamSpec("at", "datetime", default), ParamSpec("n", "long", 1)]),
    )
    save_model(tmp_path / "dated", python_model=At(), signature=signature, pip_requirements=[])
    return load_scorer(tmp_path / "dated")


@pytest.mark.parametrize(
    "value", ["now", "today", "NaT", "2024/01/02", "0001-01-01", "", 5, 1.5, True]
)
def test_invalid_datetime_param_is_refused(dated, value):
    params = {"at": value}
    message = r"param 'at' \(datetime\): .*is not an ISO 8601 date"
    with pytest.raises(SchemaMismatch, match=message):
        invoke(dated, {"dataframe_records": [{"n": 1}], "params": params})
    with pytest.raises(SchemaMismatch, match=message):
        dated.predict({"n": np.array([1])}, parameters=params)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"at": "2024-01-02"}, "datetime.date(2024, 1, 2)"),
        ({"at": "20240102"}, "datetime.datetime(2024, 1, 2, 0, 0)"),
        ({"at": "2024-01-02T03:04:05.5"}, "datetime.datetime(2024, 1, 2, 3, 4, 5, 500000)"),
        ({"at": "2024-01-02 03:04:05+02:00"}, "datetime.datetime(2024, 1, 2, 1, 4, 5)"),
        (
            {"at": "2024-01-02T03:04:05.123456789Z"},
            "datetime.datetime(2024, 1, 2, 3, 4, 5, 123456)",
        ),
        ({"at": None}, "None"),
        ({}, "datetime.date(2020, 1, 1)"),
    ],
)
def test_datetime_param_is_parsed(dated, params, expected):
    answer = invoke(dated, {"dataframe_records": [{"n": 1}], "params": params}).body
    assert json.loads(answer) == {"predictions": [expected]}


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame({"when": ["2013-07-01"], "name": ["a"]}),
        {"when": "2013-07-01", "name": "a"},
        [{"name": "a", "when": "2013-07-01"}],
    ],
    ids=["a table", "one row", "rows in another order"],
)
def test_rows_of_every_form_are_logged(pyfunc_folders, data):
    feeds = to_feeds(
        data, read_served_artifact(pyfunc_folders["days"]), {"when": "datetime", "name": "string"}
    )
    assert {name: array.tolist() for name, array in feeds.items()} == {
        "when": ["2013-07-01T00:00:00"],
        "name": ["a"],
    }


@pytest.mark.parametrize(
    ("tensors", "inputs"),
    [
        ({"title": str, "votes": "float32"}, {"title": ["a", "bcd"], "votes": [1, 2]}),
        ({"title": str}, {"title": ["a", "bcd"]}),
        ({None: str}, ["a", "bcd"]),
    ],
    ids=["several tensors", "one tensor", "a tensor without a name"],
)
def test_texts_of_tensors_are_objects(tensors, inputs, tmp_path):
    """Check strings in object arrays: the worker supports no other strings."""
    schema = Schema([TensorSpec(np.dtype(kind), (-1,), name) for name, kind in tensors.items()])
    signature = ModelSignature(schema, Schema([TensorSpec(np.dtype("float64"), (-1,))]))
    scorer = saved_scorer(tmp_path / "zeros", signature, lambda rows: np.zeros(2))
    answer = invoke(scorer, {"inputs": inputs})
    texts = next(iter(answer.arrays["feeds"].values()))
    assert texts.dtype == np.dtype(object)
    assert texts.tolist() == ["a", "bcd"]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # MLflow reads `instances` like this.
        ([np.array("a", object), np.array("b", object)], ["a", "b"]),
        (["a", None], ["a", None]),
        (["a", 2], None),
        ([{"a": 1}, ["b"]], None),
    ],
    ids=["arrays of one text", "a missing text", "a number", "objects"],
)
def test_only_texts_of_objects_are_logged(cells, expected):
    tensors = (Tensor("title", "str", (-1,)),)
    inputs = (Input("title", "str", (-1,)),)
    artifact = bare_artifact("python_function", tensors=tensors, inputs=inputs)
    data = {"title": object_array(cells)}
    if expected is None:
        with pytest.raises(NotRepresentable, match="is not a string"):
            to_feeds(data, artifact, {})
    else:
        assert json.loads(json.dumps(to_feeds(data, artifact, {})["title"].tolist())) == expected


@pytest.mark.parametrize(
    ("missing", "dtype"), [(None, np.float32), (np.nan, np.float32), (True, np.bool_)]
)
def test_missing_boolean_is_logged_as_missing(missing, dtype):
    artifact = bare_artifact("python_function", columns=(Column("late", "boolean", False),))
    column = to_feeds(pd.DataFrame({"late": [False, missing]}), artifact, {"late": "boolean"})[
        "late"
    ]
    assert column.dtype == dtype
    np.testing.assert_array_equal(column, np.array([False, missing], dtype=dtype))
