"""Our server parses the bytes of requests, and the client parses the bytes of
responses.
"""

from decimal import Decimal
from types import MappingProxyType

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlflow_deploy_plugin.serve.client.rows import (
    decode_predictions,
    decode_tensors,
    encode_json,
    encode_rows,
    encode_tensors,
)
from mlflow_deploy_plugin.serve.protocols import arrow
from mlflow_deploy_plugin.serve.protocols.mlflow import decode
from tests.support.schemas import columns_schema, tensor_schema

ARROW = arrow.STREAM
DTYPES = st.sampled_from([np.dtype(name) for name in ("f4", "f8", "i1", "i8", "u2", "u8", "?")])
ARRAYS = npst.arrays(DTYPES, npst.array_shapes(min_dims=1, max_dims=3, max_side=4))


@settings(max_examples=20)
@given(ARRAYS)
def test_outputs_round_trip(array):
    answer = arrow.encode(ARROW, {"y": array, "z": array[:, ...]})

    decoded = decode_predictions(ARROW, answer)

    assert decoded["y"].dtype == array.dtype
    # [N, 1] is a plain column.
    np.testing.assert_array_equal(decoded["y"].reshape(array.shape), array)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        ([[1, 2.0], [None, 0.5]], np.array([[1.0, 2.0], [np.nan, 0.5]])),
        ([True, None], np.array([True, None], object)),
        (
            [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
            {"a": np.array([1, 2]), "b": np.array(["x", "y"], object)},
        ),
        (
            {"label": ["x"], "p": [[0.5, 0.5]]},
            {"label": np.array(["x"], object), "p": np.array([[0.5, 0.5]])},
        ),
        ([[1], [1, 2]], np.array([[1], [1, 2]], object)),
    ],
)
def test_predictions_in_json_become_arrays(predictions, expected):
    decoded = decode_predictions("application/json", orjson.dumps({"predictions": predictions}))
    np.testing.assert_equal(decoded, expected)


def test_missing_value_of_a_frame_stays_missing():
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None]})
    feeds = arrow.decode(encode_rows(frame)[0], columns_schema("", a="double", b="string"), 10_000)

    np.testing.assert_equal(feeds["a"], np.array([[1.0], [np.nan]]))
    assert feeds["b"].tolist() == [["x"], [""]]
    assert orjson.loads(encode_json(frame))["dataframe_split"]["data"] == [[1.0, "x"], [None, None]]


FRAME = pd.DataFrame([[1.5, np.nan], [2.0, 3.0], [4.0, 5.0]], columns=["a", "b"])


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(FRAME, id="an array of rows"),
        pytest.param(pd.DataFrame({"a": FRAME["a"], "b": FRAME["b"]}), id="columns"),
        pytest.param(pd.concat([FRAME, FRAME]).iloc[[0, 4, 2]], id="chosen rows"),
        pytest.param(FRAME.set_index("a"), id="a column as index"),
        pytest.param(FRAME.astype({"a": "float32"}), id="two types"),
        pytest.param(FRAME.convert_dtypes(convert_integer=False), id="types of pandas"),
    ],
)
def test_frame_is_encoded_exactly(frame):
    body, content_type, _ = encode_rows(frame)

    assert content_type == ARROW
    feeds = arrow.decode(body, columns_schema("", a="double", b="double"), 2**20)
    np.testing.assert_array_equal(np.column_stack([feeds["a"], feeds["b"]]), FRAME)


@pytest.mark.parametrize("name", ["text", None, 0])
def test_series_is_the_only_column(name):
    schema = columns_schema("", text="string")
    series = pd.Series(["good day", None], index=[7, 3], name=name)

    body, content_type, _ = encode_rows(series)
    sent = (
        arrow.decode(body, schema, 10_000) if name == "text" else decode(content_type, body, schema)
    )
    as_json = decode("application/json", encode_json(series), schema)

    assert sent["text"].tolist() == as_json["text"].tolist() == [["good day"], [""]]


@pytest.mark.parametrize("encode", [encode_json, lambda rows: encode_rows(rows)[0]])
def test_decimal_is_a_number(encode):
    frame = pd.DataFrame({"a": [Decimal("1.5"), None]})

    assert orjson.loads(encode(frame))["dataframe_split"]["data"] == [[1.5], [None]]


@pytest.mark.parametrize("params", [None, {"alpha": 0.5}])
def test_body_may_be_any_mapping(params):
    body = {"inputs": [[1, 2]]}

    assert encode_json(MappingProxyType(body), params) == encode_json(body, params)
    assert body == {"inputs": [[1, 2]]}


def test_arrow_table_is_encoded_as_json():
    import pyarrow as pa

    document = orjson.loads(encode_json(pa.table({"a": [1, 2], "b": ["x", None]})))
    assert document == {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [2, None]]}}


@settings(max_examples=20)
@given(ARRAYS)
def test_array_is_the_only_tensor(array):
    body, content_type, _ = encode_rows(array)

    assert content_type == ARROW
    schema = tensor_schema(array.dtype.name, -1, *array.shape[1:])
    np.testing.assert_array_equal(arrow.decode(body, schema, 10_000)["x"], array)


@pytest.mark.parametrize("dtype", ["f2", "f4", "i2", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_array_has_columns_in_signature_order(dtype, order):
    body, content_type, _ = encode_rows(np.asarray(np.arange(6).reshape(3, 2), dtype, order=order))

    assert content_type == ARROW
    feeds = arrow.decode(body, columns_schema("", a="double", b="double"), 10_000)
    assert feeds["a"].tolist() == [[0], [2], [4]]
    assert feeds["b"].tolist() == [[1], [3], [5]]


@pytest.mark.parametrize("array", [np.ones((0, 2), ">f8"), np.ones((2, 0)), np.array(1.0)])
def test_array_without_arrow_form_is_json(array):
    body, content_type, _ = encode_rows(array)

    assert content_type == "application/json"
    assert orjson.loads(body) == {"inputs": array.tolist()}


@settings(max_examples=20)
@given(ARRAYS)
def test_v2_tensors_round_trip(array):
    head, tensors = encode_tensors({"x": array, "t": ["a", "ü"]}, ["y"])
    document = orjson.loads(head)
    answer = orjson.dumps({"outputs": document["inputs"]})

    decoded = decode_tensors(answer + tensors, len(answer))

    np.testing.assert_array_equal(decoded["x"], array, strict=True)
    assert decoded["t"].tolist() == ["a", "ü"]
    assert document["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]


def test_v2_outputs_may_be_json():
    answer = b'{"outputs": [{"name": "y", "shape": [2], "datatype": "FP32", "data": [1, 2]}]}'
    assert decode_tensors(answer, len(answer))["y"].tolist() == [1.0, 2.0]
