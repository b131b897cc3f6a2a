"""Arrow bodies ↔ arrays: every type in both directions,
and the cost of hostile bodies.
"""

import datetime as dt
import gc
import time
import weakref
from collections.abc import Callable
from decimal import Decimal
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    InvalidRequest,
    OnnxserveError,
    SchemaMismatch,
)
from mlflow_deploy_plugin.serve.protocols import arrow
from mlflow_deploy_plugin.serve.protocols.arrow_columns import check_type
from mlflow_deploy_plugin.serve.runtime.artifact import Column, ColumnType, Input
from mlflow_deploy_plugin.serve.runtime.feeds import sent_arrays
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import FrameSchema
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from tests.support.bodies import arrow_file, arrow_stream
from tests.support.schemas import columns_schema, stacked_schema, tensor_schema

LIMIT = 4_000_000


WRITERS: dict[str, Callable[[pa.Table], bytes]] = {
    arrow.STREAM: arrow_stream,
    arrow.FILE: arrow_file,
}


def read(columns, schema, media=arrow.STREAM, limit=LIMIT):
    """Return what the schema is fed from a table of these columns."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    return arrow.decode(WRITERS[media](table), schema, limit)


def stacked(width):
    return stacked_schema("float32", *(f"f{number}" for number in range(width)))


MIXED = columns_schema(carrier="string", distance="double", hour="long", late="boolean")
ROWS = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.floats(),
        st.integers(-(2**63), 2**63 - 1),
        st.booleans(),
    ),
    min_size=1,
    max_size=20,
)


@pytest.mark.parametrize("media", arrow.MEDIA_TYPES)
@settings(max_examples=40)
@given(rows=ROWS, is_dictionary=st.booleans(), chunk=st.integers(1, 20))
def test_table_is_decoded_exactly(media, rows, is_dictionary, chunk):
    columns = [list(values) for values in zip(*rows, strict=True)]
    texts = pa.array(columns[0], pa.large_string())
    arrays = [texts.dictionary_encode() if is_dictionary else texts, *columns[1:]]
    whole = pa.table(arrays, names=MIXED.names)
    pieces = [whole.slice(start, chunk) for start in range(0, len(rows), chunk)]
    feeds = read(pa.concat_tables(pieces).unify_dictionaries(), MIXED, media)
    for name, values in zip(MIXED.names, columns, strict=True):
        np.testing.assert_equal(feeds[name].ravel().tolist(), values)


MOMENTS = [dt.datetime(2013, 7, 1, 12, 30, 5), None]


DATES = FrameSchema((Column("x", "string"),), (), (Input("x", "str", (-1,), ("x",)),))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (pa.date32(), "2013-07-01"),
        (pa.date64(), "2013-07-01T00:00:00.000"),
        (pa.timestamp("s"), "2013-07-01T12:30:05"),
        (pa.timestamp("us"), "2013-07-01T12:30:05.000000"),
        (pa.timestamp("ns"), "2013-07-01T12:30:05.000000000"),
        (pa.timestamp("ms", "Europe/Zurich"), "2013-07-01T12:30:05.000Z"),
    ],
    ids=str,
)
@pytest.mark.parametrize("media", [arrow.STREAM, arrow.FILE])
def test_dates_are_texts_as_in_json(kind, text, media):
    """A model whose columns are dates accepts texts; pandas writes times."""
    table = pa.table({"x": pa.array([*MOMENTS, MOMENTS[0]], kind)}).slice(1)
    assert read(table, DATES, media)["x"].tolist() == [None, text]


def test_not_a_time_is_null():
    """numpy's NaT is a number in Arrow's data; pandas writes null."""
    none = pa.array(np.array(["NaT"], "M8[us]").view(np.int64))
    assert read({"x": none.cast(pa.timestamp("us"))}, DATES)["x"].tolist() == [None]


@pytest.mark.parametrize("number", [2**63 - 1, 1 - 2**63, 2**62])
@pytest.mark.parametrize("unit", ["s", "ns"])
def test_time_beyond_all_years_is_decoded(number, unit):
    column = pa.array([number]).cast(pa.timestamp(unit))
    assert len(read({"x": column}, columns_schema(x="string"))["x"]) == 1


KINDS = [
    *(getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(pa.float16(), pa.float32(), pa.float64()),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_numbers_become_doubles_and_null_nan(kind):
    feeds = read({"x": pa.array([1, None, 3], kind)}, columns_schema(x="double"))
    np.testing.assert_array_equal(feeds["x"].ravel(), [1.0, np.nan, 3.0])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("fed", ["float32", "float64"])
def test_one_batch_equals_several_batches(kind, fed):
    """One batch may be read as a matrix, several batches never are."""
    largest = 3.4e38 if kind in (pa.float32(), pa.float64()) else 100

    def outcome(given, schema):
        try:
            feeds = read(given, schema)
        except SchemaMismatch as error:
            return error.message
        arrays = [*feeds.items(), *sent_arrays(feeds).items()]
        return [(name, array.dtype, repr(array.tolist())) for name, array in arrays]

    kinds: tuple[Any, ...] = ("double", "float", "long")
    for wanted, last in product(kinds, (5, None)):
        values = {"a": [1, largest, 3], "b": [4, last, 0]}
        table = pa.table({name: pa.array(values[name], kind) for name in "ab"})
        columns = tuple(Column(name, wanted) for name in "ab")
        schema = compile_schema(columns, (), (Input("X", fed, (-1, 2), ("a", "b")),))
        parts = pa.concat_tables([table[:1], table[1:]])
        assert outcome(table, schema) == outcome(parts, schema), (wanted, last)


@pytest.mark.parametrize(
    ("kind", "scale", "values"),
    [
        ("double", 1, ["678.4", None, "-0.1", "99999999999999999.9"]),
        ("long", 0, [str(2**53 + 1), "7"]),
    ],
)
def test_decimal_is_the_nearest_number(kind, scale, values):
    decimals = [value and Decimal(value) for value in values]
    feeds = read({"x": pa.array(decimals, pa.decimal128(38, scale))}, columns_schema(x=kind))
    exact = [float(value or "nan") if scale else int(value) for value in values]
    np.testing.assert_array_equal(feeds["x"].ravel(), exact)


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_columns_are_stacked_by_name(compression):
    values = np.random.default_rng(0).normal(size=(1000, 30))
    columns = {f"f{place}": values[:, place] for place in reversed(range(30))}
    table = pa.table({**columns, "more": ["x"] * 1000})
    feeds = arrow.decode(arrow_stream(table, compression), stacked(30), LIMIT)
    np.testing.assert_array_equal(feeds["X"], values.astype(np.float32), strict=True)


def test_null_columns_and_strings_have_defaults():
    columns = {"c": pa.array(["a", None]).dictionary_encode(), "x": pa.nulls(2)}
    feeds = read(columns, columns_schema("?", c="string", x="double"))
    assert feeds["c"].ravel().tolist() == ["a", "?"]
    assert np.isnan(feeds["x"]).all()


def test_string_views_are_read():
    texts = ["a", "a text that does not fit into a view", "ü"]
    views = pa.array(texts, pa.string_view())
    for column in (views, pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.uint32()), views)):
        assert read({"c": column}, columns_schema(c="string"))["c"].ravel().tolist() == texts


def test_shared_string_views_are_limited():
    """The text is not UTF-8, which would be the error if it were read."""
    data = b"\xff" * 1000
    views = np.zeros((LIMIT // 1000 + 2, 4), "<i4")
    views[:, 0] = len(data)
    views[:, 1] = -1
    views[0, 0] = -LIMIT
    buffers = [None, pa.py_buffer(views), pa.py_buffer(data)]
    column = pa.Array.from_buffers(pa.string_view(), len(views), buffers)
    with pytest.raises(BodyTooLarge, match="strings of"):
        read({"c": column}, columns_schema(c="string"))


@pytest.mark.parametrize(("offsets", "data"), [([0, 4, 2, 4], b"abcd"), ([0, 2, 4], b"ab\xffd")])
def test_contradictory_string_buffers_are_refused(offsets, data):
    buffers = [None, pa.py_buffer(np.array(offsets, "<i4")), pa.py_buffer(data)]
    column = pa.Array.from_buffers(pa.string(), len(offsets) - 1, buffers)
    with pytest.raises(InvalidRequest, match="not valid"):
        arrow.table_feeds(pa.table({"c": column}), columns_schema(c="string"), LIMIT)


def test_lists_of_nulls_are_limited():
    column = pa.FixedSizeListArray.from_arrays(pa.nulls(LIMIT + 2), LIMIT // 2 + 1)
    with pytest.raises(InvalidRequest, match=f"{LIMIT + 2} values.* {LIMIT}"):
        read({"x": column}, tensor_schema("float32", -1, -1))


REFUSED: dict[str, tuple[pa.Array, ColumnType, str]] = {
    "null in integers": (pa.array([1, None]), "long", "row 1: null"),
    "null in booleans": (pa.array([True, None]), "boolean", "null in row 1"),
    "null in a dictionary": (pa.array(["a", None]).dictionary_encode(), "string", "row 1: null"),
    "null in a dictionary of booleans": (
        pa.DictionaryArray.from_arrays(pa.array([0, None]), pa.array([True])),
        "boolean",
        "null in row 1",
    ),
    "nothing but nulls": (pa.nulls(2), "long", "row 0: null"),
    "strings for numbers": (pa.array(["1", "2"]), "double", "'x'.*numbers"),
    "numbers for strings": (pa.array([1, 2]), "string", "'x'.*string"),
    "fractions for integers": (pa.array([1.0, 2.5]), "long", "'x'.*integer"),
    "too large for an integer": (pa.array([1, 2**40]), "integer", f"row 1.*{2**40}"),
    "decimals as strings": (pa.array([1]).cast(pa.decimal128(25, 2)), "string", "decimal128"),
    "half a decimal": (pa.array(["0.5"]).cast(pa.decimal128(5, 1)), "long", "'x'.*0.5"),
    "times": (pa.array([1, 2], pa.timestamp("ns")), "long", "'x'.*timestamp"),
    "bytes": (pa.array([b"a", b"b"]), "string", "'x'.*binary"),
    "lists": (pa.array([[1.0], [2.0]]), "double", "'x'.*lists"),
    "structs": (pa.array([{"a": 1}, {"a": 2}]), "double", "'x'.*struct"),
    "no rows": (pa.array([], pa.float64()), "double", "no rows"),
}


@pytest.mark.parametrize(("array", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_mismatched_column_is_named(array, kind, words):
    with pytest.raises(SchemaMismatch, match=words):
        read({"x": array}, columns_schema(x=kind))


@pytest.mark.parametrize(
    ("names", "words"),
    [(["y", "z"], "'x' is missing; 'y'"), (["x", "x"], "'x' is duplicated")],
)
def test_missing_and_doubled_columns_are_named(names, words):
    with pytest.raises(SchemaMismatch, match=words):
        read(pa.table([[1.0], [2.0]], names=names), columns_schema(x="double"))


VALUES = np.arange(12, dtype=np.float32)
FLAT = pa.FixedSizeListArray.from_arrays(pa.array(VALUES), 4)


@pytest.mark.parametrize("media", [arrow.STREAM, arrow.FILE])
@pytest.mark.parametrize(
    ("columns", "shape"),
    [
        ({"x": FLAT}, (3, 2, 2)),
        ({"any": VALUES.reshape(3, 4).tolist()}, (3, 2, 2)),
        ({"x": VALUES.reshape(3, 2, 2).tolist()}, (3, 2, 2)),
        ({"x": FLAT}, (3, 4)),
        ({"any": VALUES.reshape(3, 4).tolist()}, (3, 4)),
        ({str(place): VALUES[place::4] for place in range(4)}, (3, 4)),
    ],
)
def test_tensor_is_a_list_column_or_all_columns(media, columns, shape):
    feeds = read(columns, tensor_schema("float32", -1, *shape[1:]), media)
    np.testing.assert_array_equal(feeds["x"], VALUES.reshape(shape))


@pytest.mark.parametrize(
    ("kind", "lists"), [("double", [[1.0, 2.0], [4.0, 5.0]]), ("string", [["a", "b"]])]
)
def test_unnamed_column_holds_rows_in_signature_order(kind, lists):
    feeds = read({"": lists}, columns_schema(y=kind, x=kind))
    assert np.column_stack([feeds["y"], feeds["x"]]).tolist() == lists


@pytest.mark.parametrize(
    "column", [[1.0, 2.0], [[1.0], [2.0]], [[1.0] * 3], [[[1.0, 2.0]]], [["a", "b"]], [None]]
)
def test_unfitting_unnamed_column_is_refused(column):
    with pytest.raises(SchemaMismatch):
        read({"": column}, columns_schema(y="double", x="double"))


@pytest.mark.parametrize(
    "column", [[[1.0], [1.0, 2.0]], [[1.0] * 3] * 2, [None, [1.0, 2.0]], [["a", "b"]]]
)
def test_lists_without_tensor_form_are_refused(column):
    with pytest.raises(SchemaMismatch):
        read({"x": column}, tensor_schema("float32", -1, 2))


def test_null_in_a_list_is_nan():
    feeds = read({"x": [[1.0, None], [1.0, 2.0]]}, tensor_schema("float32", -1, 2))
    np.testing.assert_array_equal(feeds["x"], [[1.0, np.nan], [1.0, 2.0]])


READERS: dict[str, Callable[[bytes], pa.Table]] = {
    arrow.STREAM: lambda body: pa.ipc.open_stream(body).read_all(),
    arrow.FILE: lambda body: pa.ipc.open_file(body).read_all(),
}


def objects(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.mark.parametrize("media", arrow.MEDIA_TYPES)
@pytest.mark.parametrize(
    ("outputs", "columns"),
    [
        ({"y": np.array([[0.5], [2.0]], np.float32)}, {"y": [0.5, 2.0]}),
        ({"p": np.arange(4.0).reshape(2, 2)}, {"p": [[0.0, 1.0], [2.0, 3.0]]}),
        ({"z": np.arange(4).reshape(1, 2, 2)}, {"z": [[[0, 1], [2, 3]]]}),
        (
            {"label": objects("yes", "", "ü"), "late": np.array([True, False, True])},
            {"label": ["yes", "", "ü"], "late": [True, False, True]},
        ),
        (np.array([1, 2]), {"prediction": [1, 2]}),
        (objects({"y": 1.5, "n": 2}, {"y": 2.5, "n": 3}), {"y": [1.5, 2.5], "n": [2, 3]}),
        ({"maps": objects({0: 0.25, 1: 0.75})}, {"maps": ['{"0":0.25,"1":0.75}']}),
    ],
    ids=["column", "lists", "nested lists", "two", "one output", "records", "maps"],
)
def test_prediction_is_encoded_as_table(media, outputs, columns):
    assert READERS[media](arrow.encode(media, outputs)).to_pydict() == columns


def test_outputs_of_different_lengths_are_refused():
    with pytest.raises(SchemaMismatch, match="value per row"):
        arrow.encode(arrow.STREAM, {"a": np.ones(2), "b": np.array(1.0)})


WIDE = pa.table({"f0": np.zeros(100_000), "f1": np.zeros(100_000)})


@pytest.mark.parametrize("media", arrow.MEDIA_TYPES)
@given(data=st.data())
def test_damaged_body_is_read_or_refused(media, data):
    table = pa.table(
        {
            "carrier": pa.array(["a", "b", None]).dictionary_encode(),
            "distance": [1.0, None, 2.0],
            "hour": [1, 2, 3],
            "late": [True, False, True],
        }
    )
    whole = arrow_stream(table, "zstd") if media == arrow.STREAM else WRITERS[media](table)
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    fault: OnnxserveError = InvalidRequest("")
    try:
        arrow.decode(bytes(body[: len(body) - data.draw(st.integers(0, 30))]), MIXED, LIMIT)
    except OnnxserveError as error:
        fault = error
    assert fault.http_status in (400, 413)
    assert "\n" not in fault.message


@pytest.mark.parametrize("media", arrow.MEDIA_TYPES)
@pytest.mark.parametrize(
    "body", [b"", b"x", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", bytes(1000)]
)
def test_invalid_table_is_refused(media, body):
    with pytest.raises(InvalidRequest):
        arrow.decode(body, MIXED, LIMIT)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_decompressed_table_is_limited(compression):
    body = arrow_stream(WIDE, compression)
    assert len(body) < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(BodyTooLarge):
        arrow.decode(body, stacked(2), 150_000)
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert arrow.decode(body, stacked(2), 2_000_000)["X"].shape == (100_000, 2)


def test_rows_of_nulls_are_limited():
    """A column of nulls does not need memory in the body, regardless of the number of
    rows.
    """
    nulls = pa.nulls(LIMIT // 2 + 1)
    with pytest.raises(BodyTooLarge, match=r"2000001 rows.*4000000 values"):
        read({"f0": nulls, "f1": nulls}, stacked(2))


@pytest.mark.parametrize("media", [arrow.STREAM, arrow.FILE])
def test_dictionary_word_counts_in_every_row(media):
    word = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(10_000, np.int32)), pa.array(["x" * 10_000])
    )
    with pytest.raises(OnnxserveError, match="limit"):
        read({"c": word}, columns_schema(c="string"), media)


def test_large_dictionary_is_read_once():
    words = pa.array([f"word {number}" for number in range(50_000)])
    column = pa.DictionaryArray.from_arrays(pa.array(np.arange(3000, dtype=np.int32)), words)
    batches = [pa.record_batch({"c": column.slice(start, 1)}) for start in range(3000)]
    began = time.process_time()
    feeds = read(pa.Table.from_batches(batches), columns_schema(c="string"))
    assert feeds["c"][-1] == ["word 2999"]
    assert time.process_time() - began < 10  # Reading it 3,000 times would take a minute.


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view()], ids=str)
def test_batches_may_have_their_own_dictionaries(kind):
    texts = [[f"batch {number}", "x" * (number % 7)] for number in range(50)]
    places = pa.array([1, 0], pa.int32())
    batches = [
        pa.record_batch({"c": pa.DictionaryArray.from_arrays(places, pa.array(pair, kind))})
        for pair in texts
    ]
    feeds = read(pa.Table.from_batches(batches), columns_schema(c="string"))
    assert feeds["c"].reshape(-1, 2)[:, ::-1].tolist() == texts


def test_too_many_batches_are_refused():
    table = pa.Table.from_batches([pa.record_batch({"x": [1.0]})] * 10_001)
    with pytest.raises(BodyTooLarge, match="batches"):
        read(table, columns_schema(x="double"))


def test_dictionary_deltas_are_refused():
    sink = pa.BufferOutputStream()
    pieces = [
        pa.record_batch({"c": pa.array(texts).dictionary_encode()}) for texts in (["a"], ["a", "b"])
    ]
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, pieces[0].schema, options=options) as writer:
        for piece in pieces:
            writer.write_batch(piece)
    with pytest.raises(InvalidRequest, match="deltas"):
        arrow.decode(sink.getvalue().to_pybytes(), columns_schema(c="string"), LIMIT)


@pytest.mark.parametrize("media", [arrow.STREAM, arrow.FILE])
def test_texts_feed_a_text_tensor(media):
    words = pa.array(["a", "b"] * 500).dictionary_encode()
    for column in (words, pa.array([["a"], ["b"]] * 500)):
        feeds = read({"y": column}, tensor_schema("str", -1, 1), media)
        assert feeds["x"].ravel().tolist() == ["a", "b"] * 500


@pytest.mark.long
def test_too_many_columns_are_refused():
    columns = {str(number): [1.0] for number in range(100_001)}
    with pytest.raises(BodyTooLarge, match="100001 columns"):
        read(columns, columns_schema(x="double"), limit=100_000_000)


def test_column_types_are_released():
    kind = pa.list_(pa.field("a name as long as a body", pa.float32()))
    check_type(kind, "float32", takes_lists=True)
    held = weakref.ref(kind)
    del kind
    gc.collect()
    assert held() is None
