"""numpy's file format ↔ arrays."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.runtime import Column, Input, Tensor, compile_schema
from mlflow_deploy_plugin.server.protocols import npy

TABLE = compile_schema(
    (Column("a", "double"), Column("b", "double")), (), (Input("X", "float32", (-1, 2), ("a", "b")),)
)
ONE = compile_schema((Column("a", "long"),), (), (Input("x", "int64", (-1, 1), ("a",)),))
TENSOR = compile_schema((), (Tensor("", "float32", (-1, 2, 2)),), (Input("x", "float32", (-1, 2, 2)),))


def saved(array: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)
    return sink.getvalue()


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "|u1", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_matrix_is_the_columns_in_their_order(dtype: str, order: Any) -> None:
    array = np.asarray(np.arange(6).reshape(3, 2), dtype=dtype, order=order)
    assert npy.decode(saved(array), TABLE)["X"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_a_vector_is_the_only_column_and_a_tensor_is_itself() -> None:
    assert npy.decode(saved(np.arange(3)), ONE)["x"].tolist() == [[0], [1], [2]]
    assert npy.decode(saved(np.ones((2, 2, 2))), TENSOR)["x"].tolist() == np.ones((2, 2, 2)).tolist()


def test_a_prediction_is_one_array() -> None:
    assert np.load(io.BytesIO(npy.encode(np.array([[0.5], [np.nan]])))).shape == (2, 1)
    assert np.load(io.BytesIO(npy.encode(np.array(["yes", "ü"], object)))).tolist() == ["yes", "ü"]
    records = np.empty(1, object)
    records[0] = {"y": 1}
    for several in ({"a": np.ones(1), "b": np.ones(1)}, records):
        with pytest.raises(SchemaMismatch, match="application/json"):
            npy.encode(several)


WHOLE = saved(np.ones((3, 2)))


def headed(shape: str, descr: str = "'<f8'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x" * 100,
        WHOLE[:-1],
        WHOLE + b"x",
        headed("(1099511627776, 2)"),
        headed("(-1, 2)"),
        headed("(" + "1, " * 40 + ")") + bytes(8),
        headed("(" * 3000 + ")" * 3000),
        headed("(" + "1" * 900),  # no pattern may try every way to part these digits
        headed("(3, 2)", "'no dtype'"),
        headed("(3, 2)", "'<M8[s]'") + bytes(48),
        headed("(3, 2)", "[('a', '<f8')]") + bytes(48),
        saved(np.array([[{}, {}]], object)),
        saved(np.array([["a", "b"]])),
        saved(np.ones((2, 3))),
        saved(np.ones(2)),
        saved(np.ones((0, 2))),
        saved(np.float64(1)),
    ],
)
def test_what_is_no_such_array_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        npy.decode(body, TABLE)


@given(position=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_bent_array_is_read_or_refused(position: int, byte: int) -> None:
    body = bytearray(WHOLE)
    body[position] = byte
    try:
        npy.decode(bytes(body), TABLE)
    except InvalidRequest:
        return
