import json

import numpy as np
import pytest
import yaml

from mlflow_deploy_plugin.core.errors import InvalidArtifact, SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Output, Tensor
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import pyfunc_schema
from tests.support.models import tensor_column, write_model

TENSOR = tensor_column("float32", -1, 2)


def read(folder, inputs=None, outputs=None, **more):
    document = {
        "flavors": {"python_function": {"loader_module": "mlflow.sklearn"}},
        **more,
    }
    signature = {"inputs": inputs, "outputs": outputs}
    document["signature"] = {
        side: json.dumps(fields) for side, fields in signature.items() if fields is not None
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return read_served_artifact(folder)


def listed(feeds):
    return {name: array.tolist() for name, array in feeds.items()}


def test_dates_and_bytes_are_fed_as_text(tmp_path):
    kinds = {"when": "datetime", "blob": "binary", "x": "double"}
    fields = [{"name": name, "type": kind} for name, kind in kinds.items()]
    artifact = read(tmp_path, fields, run_id="r", model_id="m")
    told = (artifact.flavor, artifact.run_id, artifact.model_id, artifact.framework)
    assert told == ("python_function", "r", "m", "sklearn")
    assert artifact.columns == (
        Column("when", "string", is_date=True),
        Column("blob", "string", is_binary=True),
        Column("x", "double"),
    )
    assert artifact.inputs[2] == Input("x", "float64", (-1,), ("x",))
    row = {"when": "2013-07-01", "blob": "AA==", "x": 1.0}
    feeds = pyfunc_schema(artifact).from_records([row])
    assert listed(feeds) == {name: [value] for name, value in row.items()}


def test_omitted_optional_column_has_no_feed(tmp_path):
    kinds = {"x": "double", "s": "string", "n": "long", "when": "datetime"}
    fields = [{"name": name, "type": kind, "required": name == "x"} for name, kind in kinds.items()]
    schema = pyfunc_schema(read(tmp_path, fields))
    for feeds in (
        schema.from_records([{"x": 1}]),
        schema.from_rows(["x"], [[1]]),
        schema.from_columns({"x": np.array([1.0])}),
    ):
        assert listed(feeds) == {"x": [1.0]}
    record = {"x": 1.0, "s": "a", "n": 2, "when": "2013-07-01"}
    everything = schema.from_array([list(record.values())])
    assert listed(everything) == {name: [value] for name, value in record.items()}
    with pytest.raises(SchemaMismatch, match="'x' is missing"):
        schema.from_records([{"s": "a"}])


@pytest.mark.parametrize("names", [[{}, {}], [{"name": 0}, {"name": 1}]], ids=["none", "numbers"])
def test_columns_without_names_are_numbered(tmp_path, names):
    schema = pyfunc_schema(read(tmp_path, [{"type": "double", **name} for name in names]))
    assert listed(schema.from_records([{"0": 1, "1": 2}])) == {"0": [1.0], "1": [2.0]}


def test_tensors_are_fed_by_name_or_as_input(tmp_path):
    artifact = read(tmp_path, [TENSOR])
    assert artifact.tensors == (Tensor("", "float32", (-1, 2)),)
    assert list(pyfunc_schema(artifact).from_array([[1, 2]])) == ["input"]
    named_artifact = read(tmp_path, [{**TENSOR, "name": "a"}, {**TENSOR, "name": "b"}])
    assert list(pyfunc_schema(named_artifact).from_columns({"a": [[1, 2]], "b": [[1, 2]]})) == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("inputs", "more", "said"),
    [
        (None, {}, "signature does not name its inputs"),
        (
            [{"name": "o", "type": "object", "properties": {}}],
            {},
            "the column 'o' has the type object",
        ),
        (
            [{"name": "t", **TENSOR, "tensor-spec": {"dtype": "complex64", "shape": [-1]}}],
            {},
            "'t' is complex64",
        ),
        ([{"type": "string"}], {"is_signature_from_type_hint": True}, "takes Python objects"),
    ],
)
def test_inputs_without_array_form_are_refused(tmp_path, inputs, more, said):
    artifact = read(tmp_path, inputs, **more)
    schema = pyfunc_schema(artifact)
    for ask in (
        lambda: schema.from_columns({"a": [1]}),
        lambda: schema.from_records([{"a": 1}]),
        lambda: schema.from_rows(["a"], [[1]]),
        lambda: schema.from_array([[1]]),
        lambda: schema.tensor_schema,
    ):
        with pytest.raises(SchemaMismatch, match=f"{said}.* /invocations"):
            ask()


def test_columns_without_array_form_are_logged(tmp_path):
    items = {"type": "array", "items": {"type": "any"}}
    # A ResponsesAgent has this signature.
    artifact = read(tmp_path, [{"name": "input", **items}, {"name": "text", "type": "any"}])
    assert [(column.name, column.type) for column in artifact.logged_columns] == [
        ("input", "string"),
        ("text", "string"),
    ]


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (None, []),
        ([TENSOR], [Output("prediction", "float32", (-1, 2))]),
        ([{"type": "string"}], [Output("prediction", "str", (-1,))]),
        (
            [{"type": "long", "name": "n"}, {"type": "datetime", "name": "d"}],
            [Output("n", "int64", (-1,)), Output("d", "str", (-1,))],
        ),
    ],
)
def test_outputs_follow_the_signature(tmp_path, outputs, expected):
    artifact = read(tmp_path, [TENSOR], outputs)
    assert list(artifact.outputs) == expected
    assert artifact.prediction == tuple(output.name for output in expected)


def test_onnx_flavor_is_preferred(tmp_path):
    folder = write_model(tmp_path / "onnx")
    document = yaml.safe_load((folder / "MLmodel").read_text())
    document["flavors"]["python_function"] = {"loader_module": "mlflow.onnx"}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    assert read_served_artifact(folder).flavor == "onnx"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "flavors: {python_function: 3}",
        "flavors: {keras: {}}",
        "flavors: {python_function: {}}\nsignature: 3",
    ],
)
def test_invalid_mlmodel_is_refused(tmp_path, text):
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(InvalidArtifact):
        read_served_artifact(tmp_path)


@pytest.mark.parametrize(
    ("loader", "section", "data", "runs"),
    [
        ("lightgbm", {"data": "a.lgb", "model_class": "lightgbm.basic.Booster"}, "a.lgb", False),
        ("catboost", {"data": "a.lgb", "model_type": "CatBoostClassifier"}, "a.lgb", False),
        ("lightgbm", {"data": "a.lgb", "model_class": "lightgbm.LGBMClassifier"}, "a.lgb", True),
        ("lightgbm", {"data": "a.lgb", "model_class": "lightgbm.basic.Booster"}, "sub", True),
        ("xgboost", {"data": "sub", "model_class": "xgboost.core.Booster"}, "sub", True),
        ("xgboost", {"data": "a.lgb", "model_class": "xgboost.core.Booster"}, "..", True),
        ("xgboost", {"data": "no", "model_class": "xgboost.core.Booster"}, "a.lgb", True),
        ("xgboost", {"data": ["a.lgb"], "model_class": "xgboost.core.Booster"}, "a.lgb", True),
    ],
)
def test_only_a_file_of_data_runs_no_code(tmp_path, loader, section, data, runs):
    # MLflow reads the MLmodel file of a folder that `data` names, with another class.
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "MLmodel").write_text("flavors: {}\n")
    (tmp_path / "a.lgb").write_text("tree")
    pyfunc = {"loader_module": f"mlflow.{loader}", "data": data}
    artifact = read(tmp_path, flavors={loader: section, "python_function": pyfunc})
    assert artifact.runs_code is runs
