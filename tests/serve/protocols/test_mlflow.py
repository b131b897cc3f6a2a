"""MLflow's scoring protocol, field by field."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidRequest, SchemaMismatch, UnsupportedMediaType
from mlflow_deploy_plugin.core.tabular.csv_file import csv_records
from mlflow_deploy_plugin.serve.protocols.large_json import LARGE_BYTES
from mlflow_deploy_plugin.serve.protocols.mlflow import decode, encode
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema, compile_schema
from tests.support.refusals import refused
from tests.support.schemas import columns_schema, tensor_schema

MIXED = columns_schema("?", s="string", d="double", n="long", b="boolean")
TEXT = columns_schema("?", t="string")
TENSOR = tensor_schema("float32", -1, 2)


FED = {"s": [["a"], ["?"]], "d": [[1.5], [np.nan]], "n": [[2], [-3]], "b": [[True], [False]]}


def assert_fed(feeds, expected=FED):
    for name, values in expected.items():
        np.testing.assert_equal(feeds[name].tolist(), values)


def decoded(document, schema=MIXED, content_type="application/json"):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return {name: array.tolist() for name, array in decode(content_type, body, schema).items()}


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/jsonx", "application/json; charset=utf-16", ";", "a/b/c"],
)
def test_other_content_type_is_refused(content_type):
    with pytest.raises(UnsupportedMediaType):
        decode(content_type, b"{}", MIXED)


def test_bare_nan_is_a_missing_number():
    feeds = decode("application/json", b'{"instances": [[NaN, NaN, 1, true]]}', MIXED)
    assert_fed(feeds, {"s": [["?"]], "d": [[np.nan]]})


@pytest.mark.parametrize("missing", ["null", "NaN"])
def test_surrogate_with_nan_is_refused(missing):
    body = b'{"instances": [["\\ud800", MISSING, 1, true]]}'.replace(b"MISSING", missing.encode())
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        decoded(body)


@pytest.mark.parametrize("field", ["1_000", "x", "1,5", "0x10", "1e", "--1"])
def test_invalid_csv_number_is_named(field):
    with pytest.raises((SchemaMismatch, InvalidRequest), match="row 0"):
        decode("text/csv", f"s,d,n,b\na,{field},1,true\n".encode(), MIXED)


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        (np.array([[0.5], [0.25]], np.float32), [[0.5], [0.25]]),
        (np.array([np.nan, np.inf, -np.inf]), [None, None, None]),
        (np.array(["a", 'b"'], dtype=object), ["a", 'b"']),
        (np.arange(6, dtype=np.float64).reshape(2, 3).T, [[0, 3], [1, 4], [2, 5]]),
        (np.array([2**63], np.uint64), [2**63]),
        (np.array([{1: 0.5}], dtype=object), [{"1": 0.5}]),
        ({"a": np.array([1]), "b": np.array([[2.5]])}, {"a": [1], "b": [[2.5]]}),
    ],
)
def test_prediction_is_valid_json(prediction, answer):
    def no_constant(name):
        raise AssertionError(name)

    assert json.loads(encode(prediction), parse_constant=no_constant) == {"predictions": answer}


@given(
    st.binary(max_size=200) | st.text(max_size=200).map(str.encode),
    st.sampled_from(["application/json", "text/csv"]),
)
@settings(max_examples=100)
def test_random_bytes_are_read_or_refused(body, content_type):
    for schema in (MIXED, TENSOR):
        try:
            feeds = decode(content_type, body, schema)
        except InvalidRequest:
            continue
        assert feeds


def test_bare_list_is_refused_with_the_fields():
    """SageMaker's containers accept CSV in this form."""
    with pytest.raises(InvalidRequest, match=r"dataframe_split, .*inputs"):
        decode("application/json", b"[[1, 2, 3]]", TENSOR)


@pytest.mark.parametrize(
    ("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")]
)
@pytest.mark.parametrize(
    "text", ["s,d,n,b\nx,1 5,2,true\n", '\ufeff"s","d","n","b"\r\n"x",1 5,2,true\r\n', "s,d,n,b\n"]
)
def test_other_csv_separator_is_named(mark, name, text):
    # As in some countries, 1,5 is a number.
    body = text.replace(",", mark).replace(" ", ",").encode()
    with refused(SchemaMismatch, name, "commas"):
        decode("text/csv", body, MIXED)


def test_column_name_may_have_a_semicolon():
    schema = compile_schema(
        (Column("a;b", "double"),), (), (Input("x", "float64", (-1, 1), ("a;b",)),)
    )
    assert decoded(b"a;b\n1\n", schema, "text/csv") == {"x": [[1.0]]}


@pytest.mark.parametrize(
    "parameter", ["header=absent", "HEADER=absent; charset=utf-8", 'header="absent"']
)
def test_csv_without_header_has_signature_order(parameter):
    assert_fed(decode(f"text/csv; {parameter}", b"a,1.5,2,true\n,,-3,false\n", MIXED))
    assert decoded(b"1,2\n3,4\n", TENSOR, f"text/csv; {parameter}") == {"x": [[1, 2], [3, 4]]}


@pytest.mark.parametrize("body", [b"5.1,3.5\n6,3\n", b"0,0\n7,9\n", b"2,1\n", b"-1,0\n1,2\n"])
def test_row_in_place_of_the_header_is_refused(body):
    """SageMaker's CSVSerializer omits the header, and does not declare that."""
    with pytest.raises(SchemaMismatch, match=r"CSV.*text/csv; header=absent.*0, 1"):
        decode("text/csv", body, TENSOR)
    with pytest.raises(SchemaMismatch, match=r"CSV.*text/csv; header=absent"):
        decode("text/csv", b"1,2,3,1\n4,5,6,0\n", MIXED)


@pytest.mark.parametrize("header", [b"0,1", b"1,2", b"p,1", b"p1,p2"])
def test_counting_numbers_are_a_header(header):
    assert decode("text/csv", header + b"\n3,4\n", TENSOR)["x"].tolist() == [[3, 4]]


def test_column_names_may_be_numbers():
    numbered = Schema(
        (Column("10", "double"), Column("20", "double")),
        (),
        (Input("x", "float32", (-1, 2), ("10", "20")),),
    )
    assert decode("text/csv", b"20,10\n3,4\n", numbered)["x"].tolist() == [[4, 3]]


@pytest.mark.parametrize("rows", [1, LARGE_BYTES // 4], ids=["small", "large"])
@pytest.mark.parametrize("has_header", [True, False])
@pytest.mark.parametrize(
    ("line", "values"),
    [
        ('" "', [" "]),
        ('"\t"', ["\t"]),
        ('"\xa0"', ["\xa0"]),
        ('"\u3000"', ["\u3000"]),
        ('" \n "', [" \n "]),
        ('""', ["?"]),
        ("\xa0", ["\xa0"]),
        ("", []),
        (" ", []),
        ("\t", []),
    ],
)
def test_quoted_blank_line_is_a_row(line, values, has_header, rows):
    body = ("t\n" * has_header + f"a\n{line}\nb\n" * rows).encode()
    content_type = "text/csv" if has_header else "text/csv; header=absent"
    assert decode(content_type, body, TEXT)["t"].ravel().tolist() == ["a", *values, "b"] * rows
    assert len(list(csv_records(io.BytesIO(body)))) == has_header + (2 + len(values)) * rows


def test_quoted_blank_is_not_a_number():
    number = compile_schema((Column("d", "double"),), (), (Input("d", "double", (-1, 1), ("d",)),))
    with pytest.raises(SchemaMismatch, match=r"'d'.*row 1"):
        decode("text/csv", b'd\n1\n" "\n2\n', number)


def test_header_parameter_is_checked():
    with pytest.raises(UnsupportedMediaType, match="present or absent"):
        decode("text/csv; header=1", b"1", MIXED)
    with pytest.raises(UnsupportedMediaType, match="'header'"):
        decode("application/json; header=absent", b"{}", MIXED)
    with pytest.raises(SchemaMismatch, match=r"row 1.*1 fields.*4"):
        decode("text/csv; header=absent", b"a,1,2,true\na\n", MIXED)
