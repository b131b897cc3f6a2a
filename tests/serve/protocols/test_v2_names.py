"""The names of other servers, without a server."""

import json

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, SchemaMismatch
from mlflow_deploy_plugin.serve.protocols import v2
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Refusals, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support.schemas import bare_artifact


def test_own_v2_names_are_not_an_entry_point():
    assert v2.load_names("onnxserve") is v2.OWN


def test_unknown_v2_names_are_refused():
    with pytest.raises(InvalidConfig, match="mlserver"):
        v2.load_names("mlservr")


def test_answer_with_v2_names_omits_empty_version_and_parameters():
    outputs = [v2.V2Output("y", np.array([[1.5]]), {}), v2.V2Output("z", np.array([2]), {"a": "b"})]
    body = v2.encode("e", v2.V2Answer("q1", "", outputs, {}, {"Ce-Id": "q1"}))
    assert json.loads(body.body) == {
        "model_name": "e",
        "id": "q1",
        "parameters": {},
        "outputs": [
            {"name": "y", "shape": [1, 1], "datatype": "FP64", "data": [1.5]},
            {"name": "z", "shape": [1], "datatype": "INT64", "data": [2], "parameters": {"a": "b"}},
        ],
    }
    assert body.headers == {"Ce-Id": "q1"}


@pytest.mark.parametrize("name", ["", "X", "other"])
def test_values_that_the_original_refuses_are_refused_in_v2(name):
    refusals = Refusals(missing=frozenset({""}))
    schema = compile_schema(
        (), (Tensor("", "float64", (-1, 2)),), (Input("X", "float32", (-1, 2)),), refusals=refusals
    )
    body = {"inputs": [{"name": name, "shape": [1, 2], "datatype": "FP64", "data": [1, None]}]}
    with pytest.raises(SchemaMismatch, match="NaN"):
        v2.decode({}, json.dumps(body).encode(), bare_artifact("onnxserve"), schema, v2.OWN)
