"""Labels as a table of the log, and reading them back."""

import sys
import tempfile
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.errors import NotInstalled, OnnxserveError
from mlflow_deploy_plugin.serve.inference_log import labels as module
from mlflow_deploy_plugin.serve.inference_log.labels import (
    SCHEMA,
    Label,
    as_number,
    canonical_key,
    labels_table,
    read_labels,
    write_labels,
)
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, view_tables
from mlflow_deploy_plugin.serve.inference_log.stats import LabelCounts, log_stats
from mlflow_deploy_plugin.serve.inference_log.windows import microseconds, parse_window
from tests.support.inference_log import rows_of

RECEIVED = 1_372_636_800_000_000


def test_key_has_one_canonical_form():
    assert canonical_key({"b": 1.0, "a": np.float32(0.1)}) == canonical_key({"a": "0.1", "b": 1})
    assert canonical_key({"a": float("nan")}) == canonical_key({"a": None}) == '{"a":null}'


@pytest.mark.parametrize(
    ("label", "number"),
    [
        (1, 1.0),
        ("1.5", 1.5),
        (True, 1.0),
        ("false", 0.0),
        ("late", None),
        (None, None),
        ("inf", None),
        ([1], None),
    ],
)
def test_number_of_a_label(label, number):
    assert as_number(label) == number


def test_labels_table_holds_ids_and_keys():
    table = labels_table(
        [
            Label("p", 3, None, True, RECEIVED, "s", 7),
            Label(None, None, '{"flight": 7, "day": "mon"}', None, RECEIVED),
        ]
    )
    assert table.schema == SCHEMA
    read = ["_prediction_id", "_row", "_key", "_label", "_label_number", "_received_time"]
    moment = datetime(2013, 7, 1, tzinfo=UTC)
    assert [list(row.values()) for row in table.select(read).to_pylist()] == [
        ["p", 3, None, "true", 1.0, moment],
        [None, None, '{"day":"mon","flight":"7"}', None, None, moment],
    ]


def test_labels_written_directly_are_read_back(log):
    table = labels_table([Label("p", None, None, 1, RECEIVED)])
    write_labels(log.location, "flights", "2013-07-01", table)
    assert pa.concat_tables(read_labels(log.location, "flights", {})).equals(table)


DAY = datetime(2013, 7, 1, tzinfo=UTC)
WINDOW = parse_window("2013-07-01/1d")
NEXT = microseconds(DAY) + 86_400_000_000


def request(count, **columns):
    """Return a request of some rows with the X-Prediction-Id `p`."""
    return {
        "_event_time": [DAY] * count,
        "_prediction_id": ["p"] * count,
        "x": np.arange(float(count)),
        **columns,
    }


def by_id(label, row=None, at=0, **more):
    return Label("p", row, None, label, NEXT + at, **more)


def by_key(label, at=0, **key):
    return Label(None, None, key, label, NEXT + at)


def labels(log):
    """Return the labels of the rows by their `x`."""
    return log.labelled("flights", WINDOW).table.sort_by("x").column("_label").to_pylist()


def test_cached_labels_are_not_read_again(log, writer):
    writer.write(request(1))
    writer.label(by_id("late", 0))
    cached_labels = log.labels("flights")
    assert cached_labels.count == 1
    writer.label(by_id("on time", 0, at=1), name="newer")
    rows = log.labelled("flights", WINDOW, labels=cached_labels)
    assert rows.table.column("_label").to_pylist() == ["late"]


FIVES = [
    pa.array([5, 6], pa.int64()),
    pa.array([5, 6], pa.float32()),
    pa.array(["5", "6"]),
    pa.array(["5", "6"]).dictionary_encode(),
]
TRUTHS = [
    pa.array([True, False]),
    pa.array([1.0, 0.0], pa.float32()),
    pa.array([1, 0]),
    pa.array(["True", "False"]),
]


@pytest.mark.parametrize(
    ("column", "spellings"),
    [
        *((column, (5, 5.0, "5")) for column in FIVES),
        *((column, (True, "true", "True", "TRUE", 1, 1.0, "1")) for column in TRUTHS),
    ],
)
def test_key_matches_every_spelling_of_its_value(log, writer, column, spellings):
    for gate, said in enumerate(spellings):
        writer.write(request(2, flight=column, tail=['N"1', None], gate=[gate, gate]))
        writer.label(by_key(repr(said), flight=said, tail='N"1', gate=gate), name=f"{gate}")
    found = labels(log)
    assert sorted(found[: len(spellings)]) == sorted(map(repr, spellings))
    assert found[len(spellings) :] == [None] * len(spellings)


@pytest.mark.parametrize("number", [123456789, 2**62 + 1])
def test_integer_key_matches_columns_of_several_types(log, writer, number):
    writer.write({**request(1, key=pa.array([7], pa.float32())), "x": [0.0]})
    writer.write({**request(1, key=pa.array([number])), "x": [1.0]})
    writer.label(by_key("new", key=number), by_key("old", key=7))
    tables = view_tables(log, View("flights"), ["x", "_label"])
    assert {row["x"]: row["_label"] for row in rows_of(tables)} == {0.0: "old", 1.0: "new"}


JOINED = {
    "small fractions, dates and missing values": (
        request(
            3,
            f=pa.array([0.1, 0.2, 0.3], pa.float32()),
            day=pa.array([DAY.date()] * 3),
            tail=["N1", None, "N3"],
            is_late=[True, True, False],
        ),
        [
            by_key("one", f=0.1, day="2013-07-01"),
            by_key("two", tail=None, f=0.2),
            by_key("three", is_late=False),
            by_key("nobody", gate=7),
            by_key("nobody either", tail="N9"),
        ],
        ["one", "two", "three"],
    ),
    "half floats": (
        request(2, column=pa.array([0.5, 7.0], pa.float16())),
        [by_key("half", column="0.5"), by_key("seven", column=7)],
        ["half", "seven"],
    ),
    "the later one by id and by key": (
        request(2, flight=[5, 6]),
        [by_key("key", at=1, flight=5), by_id("id", at=0)],
        ["key", "id"],
    ),
    "all rows, and a later one of one row": (
        request(3),
        [by_id("all", at=0), by_id("one", row=1, at=1)],
        ["all", "one", "all"],
    ),
    "one row, and a later one of all rows": (
        request(2),
        [by_id("one", row=1, at=1), by_id("all", at=2)],
        ["all", "all"],
    ),
    "one without a value takes the earlier one back": (
        request(2),
        [by_id("yes", at=0), by_id(None, row=0, at=1)],
        [None, "yes"],
    ),
    "of the same moment the one at the end of the last segment": (
        request(1),
        [
            by_id("a", segment="s", offset=7),
            by_id("b", segment="s", offset=9),
            by_id("c", segment="r", offset=99),
        ],
        ["b"],
    ),
}


@pytest.mark.parametrize(("rows", "given", "expected"), JOINED.values(), ids=JOINED)
def test_label_joins_its_rows(log, writer, monkeypatch, rows, given, expected):
    writer.write(rows)
    for number, label in enumerate(given):
        writer.label(label, name=f"f{number}")
        writer.label(label, name=f"again-{number}")
    assert labels(log) == expected
    monkeypatch.setattr(module, "_BATCH_ROWS", 1)
    assert labels(log) == expected


def test_prediction_id_like_a_key_is_distinguished(log, writer):
    writer.write(request(1, flight=[5]))
    writer.label(by_key("key", flight=5), Label('{"flight":"5"}', None, None, "id", NEXT + 1))
    assert labels(log) == ["key"]
    assert log_stats(log, "flights").labels == LabelCounts(rows=1, names=2, unmatched=1)


def test_earlier_label_counts_only_by_key(log, writer):
    writer.write(request(2, flight=[5, 6]))
    early = -90 * 86_400_000_000
    writer.label(by_key("known before", at=early, flight=5), day="2013-04-03")
    assert labels(log) == ["known before", None]
    writer.label(by_id("years later", row=1, at=10**14), day="2016-09-01")
    assert labels(log) == ["known before", "years later"]


def test_rows_or_windows_without_labels(log, writer):
    assert log.labelled("flights", WINDOW) is None
    writer.write(request(2))
    assert labels(log) == [None, None]
    writer.label()
    assert labels(log) == [None, None]


def test_malformed_label_file_is_named(log, writer):
    writer.write(request(1))
    writer.label(by_id("yes"))
    bad = writer.root / "_labels/endpoint=flights/date=2013-07-02/bad.parquet"
    bad.write_bytes(b"PAR1")

    assert labels(log) == ["yes"]
    assert list(log.unreadable) == [str(bad)]


def test_full_disk_of_the_index_is_an_error(log, writer, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    writer.write(request(1))
    writer.label(by_id("one"))
    with pytest.raises(OnnxserveError, match=r"index .*labels"):
        labels(log)


def test_labels_match_sampled_rows(log, writer):
    count = 300
    writer.write(
        {
            "_event_time": [DAY + timedelta(seconds=second) for second in range(count)],
            "_prediction_id": [f"p{row}" for row in range(count)],
            "_row": [0] * count,
            "_offset": pa.array(range(count), pa.int64()),
        }
    )
    writer.label(*(Label(f"p{row}", 0, None, row, NEXT) for row in range(count)))
    table = log.labelled("flights", WINDOW, max_rows=50).table
    ids = table.column("_prediction_id").to_pylist()
    assert [f"p{label}" for label in table.column("_label").to_pylist()] == ids


def test_list_column_matches_no_key(log, writer):
    columns = {
        "list": pa.array([[0.5], [0.25]]),
        "lists": pa.array([[["a"]], [["b"]]]),
        "struct": pa.array([{"a": 1}, {"a": 2}]),
    }
    writer.write(request(2, **columns))
    keys = [by_key("nobody's", **{name: 1}, at=1) for name in columns]
    writer.label(*keys, by_id("late", row=0))
    assert labels(log) == ["late", None]
    assert log_stats(log, "flights").labels.unmatched == len(columns)


def test_only_frequent_key_columns_are_joined(log, writer):
    columns = {f"c{place}": [place, place + 1] for place in range(66)}
    writer.write(request(2, **columns))
    writer.label(*(by_key("nobody's", **{name: -1}) for name in [*columns][1:65]), name="a")
    writer.label(by_key("of a rare set", c65=66, at=1), by_id("by id", row=0, at=1), name="b")
    writer.label(by_key("known", c0=0), by_key("known too", c0=1), name="c")
    assert labels(log) == ["by id", "known too"]


def test_column_names_like_keys_are_distinguished(log, writer):
    writer.write(request(2, **{"a": [1, 2], "a:null": [3, 4], 'b":null': [5, 6]}))
    writer.label(by_key("first", **{"a:null": 3}), by_key("second", a=2), name="one")
    assert labels(log) == ["first", "second"]
    writer.label(
        by_key("again", **{'b":null': 5}, at=1), by_key("quoted", a='":null', at=1), name="two"
    )
    assert labels(log) == ["again", "second"]


def test_labels_without_duckdb_name_the_extra(log, writer, monkeypatch):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    writer.write(request(1))
    assert labels(log) == [None]
    writer.label(by_id("late"))
    with pytest.raises(NotInstalled, match="monitoring"):
        labels(log)
