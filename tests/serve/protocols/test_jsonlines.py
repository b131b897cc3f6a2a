"""JSON Lines ↔ arrays."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.serve.protocols import jsonlines
from mlflow_deploy_plugin.serve.protocols.content import dump_json
from tests.support.schemas import columns_schema, tensor_schema

PAIR = columns_schema(c="string", x="double")
TENSOR = tensor_schema("float32", -1, -1, graph_name="t")
ROWS = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
)


@settings(max_examples=40)
@given(rows=ROWS, end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]), is_record=st.booleans())
def test_lines_are_decoded_exactly(rows, end, is_record):
    documents = [{"x": x, "c": c} if is_record else [c, x] for c, x in rows]
    body = end.join(json.dumps(document).encode() for document in documents)
    feeds = jsonlines.decode(body, PAIR)
    assert feeds["c"].ravel().tolist() == [c for c, _ in rows]
    assert feeds["x"].ravel().tolist() == [x for _, x in rows]


def test_bare_values_feed_the_only_column():
    body = b"\n".join(b"%d" % number for number in range(2500))
    assert jsonlines.decode(body, columns_schema(x="double"))["x"].ravel().tolist() == list(
        range(2500)
    )
    assert jsonlines.decode(b"[1, 2]\n[3, 4]", TENSOR)["t"].tolist() == [[1, 2], [3, 4]]


GOOD = b'{"c": "a", "x": 1}\n'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no rows"),
        (b"\n \n", "no rows"),
        (GOOD + b"{", r"line 2.*not valid JSON"),
        (GOOD + b'\n{"c": "a", "x": 1} {"c": "a", "x": 1}', r"line 3.*not valid JSON"),
        (GOOD + b'{"c": "a",\n"x": 1}', "line 2"),
        (GOOD * 1234 + b'{"c": "a", "x": "far"}', r"line 1235.*a number"),
        (GOOD + b'{"c": "a"}', r"line 2.*'x' is missing"),
        (GOOD + b'["a", 1]', r"line 2.*object"),
        (b'["a", 1]\n["a"]', r"line 2.*2 values"),
        (b'["a", 1]\n' + GOOD, r"line 2.*object"),
        (b"1\n2", "line 1"),
        (b"null", "line 1"),
        (b"\xff", r"line 1.*not valid JSON"),
        (b"[" * 5000, r"line 1.*not valid JSON"),
    ],
)
def test_error_names_its_line(body, words):
    with pytest.raises(InvalidRequest, match=words):
        jsonlines.decode(body, PAIR)


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"[1, 2]\n[3]", "lines 1 to"), (b"[1, 2]\n" * 1000 + b"[3]", "different shapes")],
)
def test_lines_of_different_shapes_are_refused(body, words):
    with pytest.raises(SchemaMismatch, match=words):
        jsonlines.decode(body, TENSOR)


LABELS = np.array(["a", "b"], object)


@pytest.mark.parametrize(
    ("prediction", "lines"),
    [
        (np.array([0.5, np.nan]), "0.5\nnull\n"),
        (np.array([[1, 2], [3, 4]]), "[1,2]\n[3,4]\n"),
        (np.array(["a\nb", "ü"], object), '"a\\nb"\n"ü"\n'),
        (
            {"label": LABELS, "p": np.eye(2)},
            '{"label":"a","p":[1.0,0.0]}\n{"label":"b","p":[0.0,1.0]}\n',
        ),
    ],
)
def test_prediction_is_one_line_per_row(prediction, lines):
    assert jsonlines.encode(prediction) == lines.encode()


@pytest.mark.parametrize("prediction", [{"a": np.ones(2), "b": np.ones(3)}, np.array(1.5)])
def test_prediction_without_rows_is_refused(prediction):
    with pytest.raises(SchemaMismatch, match="value per row"):
        jsonlines.encode(prediction)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint64", "bool", np.longlong, "U3", object]
)
def test_line_is_the_json_of_its_row(dtype):
    for shape in ((1,), (4,), (3, 2), (3, 1), (2, 3, 4), (0,), (0, 3), (3, 0), (2, 0, 5)):
        rows = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
        if rows.dtype.kind == "f" and rows.size:
            rows.flat[0] = np.nan
        assert jsonlines.encode(rows) == b"".join(dump_json(row) + b"\n" for row in rows), shape
