"""Structs of Thrift's compact protocol, as pyarrow writes them, and invalid bytes."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mlflow_deploy_plugin.server.protocols.parquet_metadata import InvalidThrift, read_struct


def test_the_footer_of_a_parquet_file_is_read() -> None:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"a": [1.0, 2.0], "b": ["x", None]}), sink, row_group_size=1)
    body = bytes(sink.getvalue().to_pybytes())
    length = int.from_bytes(body[-8:-4], "little")
    footer, end = read_struct(memoryview(body)[-8 - length : -8], 0)
    assert end == length
    assert [element.get(4) for element in footer[2]] == [b"schema", b"a", b"b"]
    assert (footer[3], [group[3] for group in footer[4]]) == (2, [1, 1])
    assert [chunk[3][3] for chunk in footer[4][0][1]] == [[b"a"], [b"b"]]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_struct_or_torn(body: bytes) -> None:
    try:
        _, end = read_struct(memoryview(body), 0)
    except (InvalidThrift, IndexError):
        return
    assert end <= len(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x15",  # a number without its bytes
        b"\x15\x02\x05\x02\x02\x00",  # field 1 twice
        b"\x18\x7f\x00",  # a text longer than the body
        b"\x19\xf5\xff\xff\xff\xff\x0f",  # a list of four billion numbers
        b"\x1b\x00",  # a map
        b"\x1c" * 100,  # nested without an end
        b"\x19" * 5000,  # lists nested without an end
        b"\x16" + b"\xff" * 20,  # a number without an end
    ],
)
def test_what_is_torn_is_said(body: bytes) -> None:
    with pytest.raises((InvalidThrift, IndexError)):
        read_struct(memoryview(body), 0)
