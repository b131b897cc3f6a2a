"""Read the log: the distinct rows of a window, in bounded memory."""

import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.serve.inference_log import maintenance
from mlflow_deploy_plugin.serve.inference_log.labels import EndpointLabels, Label, labels_table
from mlflow_deploy_plugin.serve.inference_log.log_reader import (
    MAX_ROWS,
    InferenceLog,
    View,
    match_labels,
    open_log,
    require_endpoint,
    view_schema,
    view_tables,
)
from mlflow_deploy_plugin.serve.inference_log.maintenance import compact, expire
from mlflow_deploy_plugin.serve.inference_log.storage import LogLocation
from mlflow_deploy_plugin.serve.inference_log.windows import (
    Window,
    microseconds,
    parse_time_range,
    parse_window,
)
from tests.support.inference_log import LogWriter, rows_of

DAY = datetime(2013, 7, 1, tzinfo=UTC)
WINDOW = parse_window("2013-07-01/1d")


def columns(*times, **values):
    return {"_event_time": list(times), "x": np.arange(len(times), dtype=np.float64), **values}


def read(log, max_rows=MAX_ROWS):
    return log.read("flights", WINDOW, max_rows)


@pytest.mark.parametrize(("newest_first", "day"), [(False, 0), (True, 8)])
def test_walking_hours_lists_only_needed_days(writer, newest_first, day):
    for number in range(9):
        writer.write({"_event_time": [DAY + timedelta(days=number)], "x": [1]})
    counting = Mock(wraps=LocalFileSystem())
    log = InferenceLog(LogLocation(counting, str(writer.root), "log", is_local=True))

    first = next(log.walk_hours("flights", newest_first=newest_first))
    assert first.start == DAY + timedelta(days=day)
    # all at once, or the endpoint and one day
    assert counting.get_file_info.call_count == 1 + newest_first


def test_a_window_is_half_open(log, writer):
    tick = timedelta(microseconds=1)
    writer.write(columns(DAY - tick, DAY, DAY + timedelta(days=1) - tick, DAY + timedelta(days=1)))

    rows = read(log)

    assert (rows.model, rows.version, rows.rows, rows.is_sampled) == ("flight-delay", "1", 2, False)
    assert sorted(rows.table.column("x").to_pylist()) == [1, 2]


def test_rows_shipped_twice_count_once(log, writer):
    times = [DAY + timedelta(minutes=minute) for minute in range(90)]
    segment = writer.write(columns(*times))
    writer.write(columns(*times), segment=segment, suffix="-again")
    writer.write(columns(*times), segment=segment, offset=4096)

    assert read(log).rows == 180


def test_large_window_has_a_repeatable_sample(log, writer):
    for number in range(10):
        times = [DAY + timedelta(hours=number, seconds=second) for second in range(1000)]
        segment = writer.write(columns(*times))
        writer.write(columns(*times), segment=segment, suffix="-again")

    rows, again = (read(log, max_rows=900) for _ in range(2))

    assert (len(rows.table), rows.is_sampled) == (900, True)
    assert rows.rows == pytest.approx(10_000, rel=0.15)
    assert rows.table.equals(again.table)
    assert {time.hour for time in rows.table.column("_event_time").to_pylist()} == set(range(10))
    keys = {(row["_segment"], row["_row"]) for row in rows.table.to_pylist()}
    assert len(keys) == 900


def test_most_frequent_version_is_read(log, writer):
    writer.write(columns(DAY, DAY), version="1")
    writer.write(columns(DAY, DAY, DAY, tag=["a", "b", "c"]), version="2")
    rows = read(log)
    assert (rows.version, rows.rows) == ("2", 3)
    assert rows.other_versions == {"flight-delay version 1": 2}
    assert sorted(rows.table.column("tag").to_pylist()) == ["a", "b", "c"]


def test_large_tensors_are_summarised(log, writer):
    writer.write(columns(DAY, DAY, image=[[[1.0, 3.0]], [[2.0, 2.0]]]))

    table = read(log).table

    assert "image" not in table.column_names
    assert sorted(table.column("image.mean").to_pylist()) == [2, 2]


def test_latest_window_is_the_last_finished(log, writer):
    writer.write(columns(DAY))
    writer.write(columns(DAY + timedelta(days=9, hours=5, minutes=10)))

    def latest(length, now):
        return str(log.latest_window("flights", length, DAY + now))

    later = timedelta(days=30)
    assert latest("1d", later) == "2013-07-10/2013-07-11"
    assert latest("1d", timedelta(days=9, hours=23)) == "2013-07-01/2013-07-02"
    assert latest("15m", later) == "2013-07-10T05:00:00/2013-07-10T05:15:00"
    assert latest("6h", later) == "2013-07-10/2013-07-10T06:00:00"
    with pytest.raises(NotFound, match="2013-07-01/2013-07-02"):
        latest("1d", timedelta(hours=1))


def test_endpoint_without_rows_has_no_window(log, writer):
    assert log.endpoints() == []
    assert log.read("flights", WINDOW) is None
    with pytest.raises(NotFound, match=r"endpoint 'flights' have been captured"):
        log.latest_window("flights", "1d", DAY)
    writer.write(columns(DAY), endpoint="other")
    assert log.endpoints() == ["other"]
    assert log.read("flights", WINDOW) is None


@pytest.fixture
def written(writer):
    writer.write({"_event_time": [DAY, DAY], "_prediction_id": ["p", "p"], "x": [1, 2]})
    later = [DAY + timedelta(hours=1)]
    writer.write(
        {"_event_time": later, "_prediction_id": ["q"], "x": [0.5], "y": ["a"]}, version="2"
    )
    writer.label(Label("p", 1, None, "late", microseconds(DAY)))
    return writer


def test_schema_has_the_wider_types(log, written):
    schema = view_schema(log, View("flights"))
    assert schema.names[0] == "_event_time"
    assert schema.field("x").type == pa.float64()
    assert schema.field("y").type == pa.string()
    assert "_label" in schema.names
    assert "_label" not in view_schema(log, View("flights", labels=False)).names


def test_a_time_range_chooses_the_rows(log, written):
    view = View("flights", parse_time_range("2013-07-01/1h", None, DAY))
    assert sum(map(len, view_tables(log, view, ["x"]))) == 2


def label_of(prediction_id):
    return Label(prediction_id, 0, None, 1, microseconds(DAY))


def test_labels_match_rows_of_the_whole_log(log, written):
    matches = EndpointLabels([labels_table([label_of("p"), label_of("nobody's")])])
    match_labels(log, "flights", matches)
    assert (matches.count, matches.matched) == (2, 1)


@pytest.mark.parametrize(("prediction_id", "matched"), [("p", 1), ("nobody's", 0)])
def test_older_rows_are_read_for_unmatched_labels(log, written, prediction_id, matched):
    """Reading the labels of yesterday must not read the log of a year."""
    older = written.root / "endpoint=flights/date=2012-07-01/hour=00/0-0-0.parquet"
    older.parent.mkdir(parents=True)
    older.write_bytes(b"read")
    matches = EndpointLabels([labels_table([label_of(prediction_id)])])
    match_labels(log, "flights", matches)
    assert matches.matched == matched
    assert len(log.unreadable) == 1 - matched


def test_unknown_endpoint_names_the_nearest(log, written):
    require_endpoint(log, "flights")
    with pytest.raises(NotFound, match=r"endpoint 'flight'.*flights"):
        require_endpoint(log, "flight")


HOURS = 4
FOUR_HOURS = Window(DAY, DAY + timedelta(hours=HOURS))
LATER = datetime.now(UTC) + timedelta(days=1)

_hour = st.integers(0, HOURS - 1)
_ships = st.tuples(st.just("ship"), _hour, st.integers(1, 5))
_doubles = st.tuples(st.just("ship again"), st.integers(0, 20), st.integers(0, 3))
_upkeep = st.tuples(st.sampled_from(["compact", "compact and die", "expire"]), _hour, st.just(0))
_steps = st.lists(st.one_of(_ships, _ships, _doubles, _upkeep), min_size=3, max_size=14)


class Died(BaseException):
    """The end of a killed process."""


@settings(max_examples=15)
@given(_steps)
def test_log_has_each_shipped_row_once(steps):
    with tempfile.TemporaryDirectory() as folder:
        writer = LogWriter(Path(folder))
        log = open_log(folder)
        numbers = count()
        shipped = []
        expected = set()
        kept_from = 0
        for step, which, size in steps:
            if step == "ship":
                columns = {
                    "_event_time": [
                        DAY + timedelta(hours=which, seconds=row) for row in range(size)
                    ]
                }
                segment = writer.write(columns)
                shipped.append((segment, which, columns))
                expected |= {(segment, row) for row in range(size)}
            elif step == "ship again" and shipped:
                segment, which, columns = shipped[which % len(shipped)]
                if which >= kept_from:  # An agent that was offline ships its rows later.
                    writer.write(columns, segment=segment, suffix=f"-{next(numbers)}")
            elif step == "expire":
                kept_from = max(kept_from, which)
                expire(log, "flights", LATER, LATER - (DAY + timedelta(hours=which)))
                gone = {segment for segment, hour, _ in shipped if hour < which}
                expected = {row for row in expected if row[0] not in gone}
            elif step == "compact":
                compact(log, "flights", LATER)
            elif step == "compact and die":
                _compact_and_die(log, after=which)
            assert sorted(_rows(log)) == sorted(expected)


def _compact_and_die(log, after):
    """Run a compaction that is killed before it deletes the file with this number."""
    delete = maintenance._delete
    deleted = count()

    def dying(*arguments):
        if next(deleted) == after:
            raise Died
        return delete(*arguments)

    with pytest.MonkeyPatch.context() as patch, suppress(Died):
        patch.setattr(maintenance, "_delete", dying)
        compact(log, "flights", LATER)


def _rows(log):
    """Return (segment, row) of every row that is read, including duplicates."""
    return [
        (row["_segment"], row["_row"])
        for row in rows_of(log.batches("flights", FOUR_HOURS, ["_segment", "_row"]))
    ]
