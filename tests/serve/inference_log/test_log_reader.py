"""Read the log: the distinct rows of a window, in bounded memory."""

from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow.fs import FileSelector, LocalFileSystem

from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.serve.inference_log.labels import EndpointLabels, Label, labels_table
from mlflow_deploy_plugin.serve.inference_log.log_reader import (
    MAX_ROWS,
    InferenceLog,
    View,
    match_labels,
    require_endpoint,
    view_schema,
    view_tables,
)
from mlflow_deploy_plugin.serve.inference_log.storage import LogLocation
from mlflow_deploy_plugin.serve.inference_log.windows import (
    microseconds,
    parse_time_range,
    parse_window,
)

DAY = datetime(2013, 7, 1, tzinfo=UTC)
WINDOW = parse_window("2013-07-01/1d")


def columns(*times, **values):
    return {"_event_time": list(times), "x": np.arange(len(times), dtype=np.float64), **values}


def read(log, max_rows=MAX_ROWS):
    rows = log.read("flights", WINDOW, max_rows)
    assert rows is not None
    return rows


class CountingFiles:
    """A file system that counts listings."""

    def __init__(self) -> None:
        self.files = LocalFileSystem()
        self.listed = 0

    def get_file_info(self, selector: FileSelector) -> Any:
        self.listed += 1
        return self.files.get_file_info(selector)


@pytest.mark.parametrize(("newest_first", "day"), [(False, 0), (True, 8)])
def test_of_hours_that_are_not_asked_for_no_day_is_listed(writer, newest_first, day):
    for number in range(9):
        writer.write({"_event_time": [DAY + timedelta(days=number)], "x": [1]})
    counting = CountingFiles()
    log = InferenceLog(LogLocation(counting, str(writer.root), "log", is_local=True))

    assert next(log.walk_hours("flights", newest_first=newest_first)).start == DAY + timedelta(
        days=day
    )
    assert counting.listed == 1 + newest_first  # all at once, or the endpoint and one day


def test_a_window_is_half_open(log, writer):
    tick = timedelta(microseconds=1)
    writer.write(columns(DAY - tick, DAY, DAY + timedelta(days=1) - tick, DAY + timedelta(days=1)))

    rows = read(log)

    assert (rows.model, rows.version, rows.rows, rows.is_sampled) == ("flight-delay", "1", 2, False)
    assert sorted(rows.table.column("x").to_pylist()) == [1, 2]


def test_rows_that_were_shipped_twice_count_once_and_rows_of_the_same_request_id_do_not_collide(
    log, writer
):
    times = [DAY + timedelta(minutes=minute) for minute in range(90)]
    segment = writer.write(columns(*times))
    writer.write(columns(*times), segment=segment, suffix="-again")
    writer.write(columns(*times), segment=segment, offset=4096)

    assert read(log).rows == 180


def test_a_window_that_is_larger_than_the_bound_is_sampled_the_same_way_each_time(log, writer):
    for number in range(10):
        times = [DAY + timedelta(hours=number, seconds=second) for second in range(1000)]
        segment = writer.write(columns(*times))
        writer.write(columns(*times), segment=segment, suffix="-again")

    rows, again = (read(log, max_rows=900) for _ in range(2))

    assert (len(rows.table), rows.is_sampled) == (900, True)
    assert rows.rows == pytest.approx(10_000, rel=0.15)
    assert rows.table.equals(again.table)
    hours = {time.hour for time in rows.table.column("_event_time").to_pylist()}
    assert hours == set(range(10))
    keys = set(
        zip(*(rows.table.column(name).to_pylist() for name in ("_segment", "_row")), strict=True)
    )
    assert len(keys) == 900


def test_the_version_that_answered_most_is_read_and_the_others_are_counted(log, writer):
    writer.write(columns(DAY, DAY), version="1")
    writer.write(columns(DAY, DAY, DAY, tag=["a", "b", "c"]), version="2")

    rows = read(log)

    assert rows.version == "2"
    assert rows.rows == 3
    assert rows.other_versions == {"flight-delay version 1": 2}
    assert sorted(rows.table.column("tag").to_pylist()) == ["a", "b", "c"]


def test_a_file_without_values_in_a_column_and_one_with_join(log, writer):
    writer.write(columns(DAY, tag=[None]))
    writer.write(columns(DAY, tag=["a"]))

    assert sorted(map(str, read(log).table.column("tag").to_pylist())) == ["None", "a"]


def test_large_tensors_are_summarised_while_they_are_read(log, writer):
    writer.write(columns(DAY, DAY, image=[[[1.0, 3.0]], [[2.0, 2.0]]]))

    table = read(log).table

    assert "image" not in table.column_names
    assert sorted(table.column("image.mean").to_pylist()) == [2, 2]


def test_the_latest_whole_window_is_the_last_one_that_is_over(log, writer):
    writer.write(columns(DAY))
    writer.write(columns(DAY + timedelta(days=9, hours=5, minutes=10)))

    later = DAY + timedelta(days=30)
    assert str(log.latest_window("flights", "1d", later)) == "2013-07-10/2013-07-11"
    assert (
        str(log.latest_window("flights", "1d", DAY + timedelta(days=9, hours=23)))
        == "2013-07-01/2013-07-02"
    )
    assert (
        str(log.latest_window("flights", "15m", later)) == "2013-07-10T05:00:00/2013-07-10T05:15:00"
    )
    assert str(log.latest_window("flights", "6h", later)) == "2013-07-10/2013-07-10T06:00:00"
    with pytest.raises(NotFound, match="2013-07-01/2013-07-02"):
        log.latest_window("flights", "1d", DAY + timedelta(hours=1))


def test_an_endpoint_without_captured_rows_has_no_window(log, writer):
    assert log.endpoints() == []
    assert log.read("flights", WINDOW) is None
    with pytest.raises(NotFound, match=r"endpoint 'flights' have been captured"):
        log.latest_window("flights", "1d", DAY)
    writer.write(columns(DAY), endpoint="other")
    assert log.endpoints() == ["other"]
    assert log.read("flights", WINDOW) is None


@pytest.fixture
def written(writer):
    writer.write(
        {"_event_time": [DAY, DAY], "_prediction_id": ["p", "p"], "x": [1, 2]}, version="1"
    )
    writer.write(
        {
            "_event_time": [DAY + timedelta(hours=1)],
            "_prediction_id": ["q"],
            "x": [0.5],
            "y": ["a"],
        },
        version="2",
    )
    writer.label(Label("p", 1, None, "late", microseconds(DAY)))
    return writer


def test_the_columns_are_those_of_every_version_in_the_wider_type(log, written):
    schema = view_schema(log, View("flights"))
    assert schema.names[0] == "_event_time"
    assert schema.field("x").type == pa.float64()
    assert schema.field("y").type == pa.string()
    assert "_label" in schema.names
    assert "_label" not in view_schema(log, View("flights", labels=False)).names


def test_labels_are_joined_where_they_are_asked_for(log, written):
    tables = list(view_tables(log, View("flights"), ["x", "_label"]))
    rows = list(chain.from_iterable(table.select(["x", "_label"]).to_pylist() for table in tables))
    assert sorted(rows, key=str) == [
        {"x": 0.5, "_label": None},
        {"x": 1, "_label": None},
        {"x": 2, "_label": "late"},
    ]
    assert all(
        "_label" not in table.column_names for table in view_tables(log, View("flights"), ["x"])
    )


def test_a_time_range_chooses_the_rows(log, written):
    view = View("flights", parse_time_range("2013-07-01/1h", None, DAY))
    assert sum(map(len, view_tables(log, view, ["x"]))) == 2


def test_labels_are_matched_with_rows_of_the_whole_log(log, written):
    received = microseconds(DAY)
    matches = EndpointLabels(
        [
            labels_table(
                [Label("p", 0, None, 1, received), Label("nobody's", None, None, 1, received)]
            )
        ]
    )
    match_labels(log, "flights", matches)
    assert matches.count == 2
    assert matches.matched == 1


def test_labels_whose_rows_are_all_found_need_no_look_at_older_rows(log, written):
    """Reading the labels of yesterday must not read the log of a year."""
    older = written.root / "endpoint=flights/date=2012-07-01/hour=00/0-0-0.parquet"
    older.parent.mkdir(parents=True)
    older.write_bytes(b"read")
    matches = EndpointLabels([labels_table([Label("p", 0, None, 1, microseconds(DAY))])])
    match_labels(log, "flights", matches)
    assert matches.matched == 1
    assert log.unreadable == {}
    unmatched = Label("nobody's", None, None, 1, microseconds(DAY))
    matches = EndpointLabels([labels_table([unmatched])])
    match_labels(log, "flights", matches)
    assert matches.matched == 0
    assert len(log.unreadable) == 1


def test_the_error_of_an_unknown_endpoint_names_the_nearest(log, written):
    require_endpoint(log, "flights")
    with pytest.raises(NotFound, match=r"endpoint 'flight'.*flights"):
        require_endpoint(log, "flight")
