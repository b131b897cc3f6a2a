"""Any valid ONNX graph is served as declared: ONNX's own node cases over V2, compared
with ONNX Runtime.

Each graph has one operator. Sizes are fixed, inputs have different sizes, and tensors
may be empty or scalars. Some graphs have no input. The graphs do not have rows.
"""

import json

import numpy as np
import pytest
import yaml

from mlflow_deploy_plugin.serve.protocols.v2_tensors import datatype_of
from tests.support.bodies import v2_tensor
from tests.support.handling import ask
from tests.support.onnx_nodes import node_cases
from tests.support.servers import variant

EVERY = 24
"""`make test` runs the cases of one out of this number of ONNX's modules."""


@pytest.mark.parametrize(
    ("every", "at_least"),
    [
        pytest.param(EVERY, 30, id="a sample"),
        pytest.param(1, 1_300, id="all", marks=pytest.mark.long),
    ],
)
def test_onnx_node_cases_equal_onnx_runtime(tmp_path, serve_here, every, at_least):
    cases = {f"n{place}": case for place, case in enumerate(node_cases(every))}
    folders = {name: saved(tmp_path / name, case) for name, case in cases.items()}
    server = serve_here({name: {"main": variant(folder)} for name, folder in folders.items()})

    reasons = {case.name: fault(server, name, case) for name, case in cases.items()}
    assert {name: reason for name, reason in reasons.items() if reason} == {}
    assert len(cases) >= at_least


def saved(folder, case):
    folder.mkdir()
    (folder / "model.onnx").write_bytes(case.graph)
    document = {"flavors": {"onnx": {"data": "model.onnx"}}, "mlflow_version": "3.17.2"}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


def fault(server, name, case):
    """Return the reason why the response is wrong; empty if it is correct."""
    inputs = [
        v2_tensor(key, datatype_of(numpy_name(array)), plain(array), list(array.shape))
        for key, array in case.inputs.items()
    ]
    response = ask(server, f"/v2/models/{name}/infer", body={"inputs": inputs})
    if response.status != 200:
        return response.body.decode()[:300]
    answers = {}
    for entry in json.loads(response.body)["outputs"]:
        values = [np.nan if value is None else value for value in entry["data"]]
        dtype = case.outputs[entry["name"]].dtype
        answers[entry["name"]] = np.array(values, dtype).reshape(entry["shape"])
    return difference(case.outputs, answers)


def numpy_name(array):
    if array.dtype.kind in "OU":
        return "str"
    return array.dtype.name


def plain(array):
    """Return the elements in row-major order. NaN becomes null; infinity becomes
    Python's text.
    """
    return [
        None if isinstance(value, float) and value != value else value
        for value in array.ravel().tolist()
    ]


def without_infinity(array):
    """JSON cannot represent infinity, which becomes null, as NaN does."""
    if array.dtype.kind != "f":
        return array
    return np.where(np.isfinite(array), array, np.nan).astype(array.dtype)


def difference(want, found):
    if want.keys() != found.keys():
        return f"the outputs {list(found)} are not {list(want)}"
    try:
        for name, array in want.items():
            expected = without_infinity(array)
            # The memory layout of an array determines the order of summation.
            if array.dtype.kind == "f":
                np.testing.assert_allclose(found[name], expected, 1e-5, 1e-6, strict=True)
            else:
                np.testing.assert_array_equal(found[name], expected, strict=True)
    except AssertionError as error:
        return f"{name!r}: {error}"
    return ""
