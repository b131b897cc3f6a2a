"""Compaction loses no rows and is invisible to readers; old rows are deleted."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.serve.inference_log import maintenance
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
from mlflow_deploy_plugin.serve.inference_log.maintenance import (
    MaintenanceResult,
    compact,
    expire,
    maintain,
)
from mlflow_deploy_plugin.serve.inference_log.storage import write_file
from mlflow_deploy_plugin.serve.inference_log.windows import microseconds, parse_window
from tests.support.inference_log import LogWriter, rows_of

DAY = datetime(2013, 7, 1, tzinfo=UTC)
WINDOW = parse_window("2013-07-01/1d")
LATER = datetime.now(UTC) + timedelta(days=1)
FOLDER = "endpoint=flights/date=2013-07-01/hour=00"


def hour(count, start=0, **columns):
    times = [DAY + timedelta(milliseconds=number) for number in range(count)]
    return {"_event_time": times, "x": np.arange(count, dtype=np.float64) + start, **columns}


def files(writer, folder=FOLDER):
    return sorted((writer.root / folder).glob("*.parquet"))


def rows(log):
    """Return every row with all columns, in a fixed order."""
    tables = log.batches("flights", WINDOW, left_out=())
    return sorted(str(sorted(row.items())) for row in rows_of(tables))


@pytest.fixture
def many(writer):
    """Write segments of an hour, one of them twice."""
    names = [writer.write(hour(10, start=10 * number)) for number in range(6)]
    writer.write(hour(10), segment=names[0], suffix="-again")
    return names


def test_finished_hour_is_compacted_to_one_file(log, writer, many):
    before = rows(log)

    done = compact(log, "flights", LATER)

    assert done.compacted_files == 7
    assert done.written_files == 1
    (file,) = files(writer)
    assert pq.read_metadata(file).num_rows == 60  # The duplicates are removed.
    assert rows(log) == before
    assert compact(log, "flights", LATER) == MaintenanceResult()


def test_recent_hour_is_not_compacted(log, writer, many):
    # The agent may still write the file.
    assert compact(log, "flights", datetime.now(UTC)) == MaintenanceResult()
    assert compact(log, "flights", DAY + timedelta(minutes=59)) == MaintenanceResult()
    assert len(files(writer)) == 7


def test_different_columns_are_not_mixed(log, writer):
    for _ in range(2):
        writer.write(hour(3))
        writer.write(hour(3, carrier=["UA", "AA", None]))
        writer.write({**hour(3), "x": ["a", "b", "c"]})
    before = rows(log)

    assert compact(log, "flights", LATER).written_files == 3
    assert rows(log) == before
    assert sorted(str(pq.read_schema(file).field("x").type) for file in files(writer)) == [
        "double",
        "double",
        "string",
    ]


def test_files_of_older_agents_are_compacted(log, writer):
    writer.write(hour(2))
    writer.write(hour(2, _shadow=[True, False], _latency_us=pa.array([5, 6])))

    assert compact(log, "flights", LATER).written_files == 1
    shadows = pq.read_table(files(writer)[0]).column("_shadow").to_pylist()
    assert sorted(shadows, key=str) == [False, None, None, True]
    assert [table.num_rows for table in log.batches("flights", WINDOW)] == [3]


def test_malformed_file_is_not_compacted(log, writer, many):
    broken = writer.root / FOLDER / "broken.parquet"
    content = files(writer)[0].read_bytes()
    half = len(content) // 2
    broken.write_bytes(content[:4] + bytes(half) + content[4 + half :])
    compact(log, "flights", LATER)
    assert len(files(writer)) == 2
    assert broken in files(writer)


def test_file_rewritten_meanwhile_is_kept(log, writer, many, monkeypatch):
    again = writer.root / FOLDER / f"{many[1]}-0.parquet"

    def write_and_ship_again(*arguments):
        write_file(*arguments)
        writer.write(hour(12, start=10), segment=many[1])  # two more rows under the same name

    monkeypatch.setattr(maintenance, "write_file", write_and_ship_again)

    assert compact(log, "flights", LATER).compacted_files == 6
    assert again in files(writer)
    assert len(rows(log)) == 62


def test_two_compactors_at_once_lose_nothing(log, writer):
    for number in range(40):
        writer.write(hour(5, start=5 * number))
    before = rows(log)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: compact(InferenceLog(log.location), "flights", LATER), range(3)))

    assert rows(log) == before
    compact(log, "flights", LATER)
    assert rows(log) == before
    assert len(files(writer)) == 1


def test_large_files_are_not_compacted(log, writer, many, monkeypatch):
    size = files(writer)[1].stat().st_size
    monkeypatch.setattr(maintenance, "GROUP_BYTES", 3 * size)
    before = rows(log)

    assert compact(log, "flights", LATER).written_files > 1
    assert rows(log) == before
    monkeypatch.setattr(maintenance, "LARGE_BYTES", 10)
    assert compact(log, "flights", LATER) == MaintenanceResult()


def test_compacted_sources_stay_within_group_bytes(log, writer, monkeypatch):
    sizes = {}
    for number in range(6):
        segment = writer.write(hour(10, start=10 * number), segment=f"part-{number}")
        sizes[segment] = (writer.root / FOLDER / f"{segment}-0.parquet").stat().st_size
    limit = int(2.5 * max(sizes.values()))
    monkeypatch.setattr(maintenance, "GROUP_BYTES", limit)

    assert compact(log, "flights", LATER).compacted_files == 6

    groups = [set(pq.read_table(file)["_segment"].to_pylist()) for file in files(writer)]
    assert [len(group) for group in groups] == [2, 2, 2]
    assert max(sum(sizes[segment] for segment in group) for group in groups) <= limit


def test_labels_of_a_day_are_compacted(log, writer):
    writer.write({**hour(3), "_prediction_id": ["p"] * 3})
    for number in range(6):
        label = Label("p", number % 3, None, number, microseconds(DAY) + number, "s", number)
        writer.label(label, name=f"f{number}")
        writer.label(label, name=f"f{number}-again")
    before = log.labelled("flights", WINDOW).table

    compact(log, "flights", LATER)

    (file,) = files(writer, "_labels/endpoint=flights/date=2013-07-02")
    assert pq.read_metadata(file).num_rows == 6
    assert log.labelled("flights", WINDOW).table.equals(before)


def test_expired_rows_labels_and_sketches_are_deleted(log, writer):
    days = [f"2013-07-0{day}" for day in range(1, 5)]
    writer.write({"_event_time": [DAY + timedelta(hours=hours) for hours in range(96)]})
    for day in days:
        writer.label(Label("p", None, None, 1, 0), day=day)
        sketch = writer.root / f"_sketches/k/endpoint=flights/date={day}/hours.parquet"
        sketch.parent.mkdir(parents=True)
        sketch.write_bytes(b"12345")
    old = writer.root / "_sketches/of-other-bins/endpoint=flights/date=2013-07-01"
    old.mkdir(parents=True)
    writer.write({"_event_time": [DAY]}, endpoint="other")
    now = DAY + timedelta(days=3, hours=6)

    counted = expire(log, "flights", now, timedelta(days=1), only_count=True)
    done = expire(log, "flights", now, timedelta(days=1))

    assert counted == done
    assert done.expired_files == 2 * 24 + 6 + 2 + 2
    assert log.hours("flights")[0].start == DAY + timedelta(days=2, hours=6)
    assert len(log.hours("flights")) == 42
    for kind in ("_labels/endpoint=flights", "_sketches/k/endpoint=flights", "endpoint=flights"):
        left = sorted(path.name for path in (writer.root / kind).iterdir())
        assert left == [f"date={day}" for day in days[2:]]
    assert [path.name for path in (writer.root / "_sketches").iterdir()] == ["k"]
    assert len(log.hours("other")) == 1
    assert expire(log, "flights", now, timedelta(days=1)) == MaintenanceResult()


def test_rows_of_a_pinned_window_are_kept(log, writer):
    writer.write({"_event_time": [DAY + timedelta(hours=hours) for hours in range(96)]})
    for day in (1, 2, 3, 4):
        writer.label(Label("p", None, None, 1, 0), day=f"2013-07-0{day}")
    pinned = parse_window("2013-07-01T01:30/1h")

    maintain(log, "flights", DAY + timedelta(days=4), timedelta(days=1), [pinned])

    hours = [int((hour.start - DAY) / timedelta(hours=1)) for hour in log.hours("flights")]
    assert hours == [1, 2, *range(72, 96)]
    labels = sorted(path.name for path in (writer.root / "_labels/endpoint=flights").iterdir())
    assert labels == ["date=2013-07-01", "date=2013-07-04"]


def test_failed_requests_are_maintained_like_rows(log, writer):
    failures = LogWriter(writer.root / "_failed")
    for number in range(3):
        failures.write(hour(5, start=number))
    assert compact(log, "flights", LATER).written_files == 1
    assert sum(len(table) for table in log.failures.batches("flights", WINDOW)) == 15
    assert expire(log, "flights", LATER, timedelta(days=1)).expired_files == 1
    assert list(log.failures.batches("flights", WINDOW)) == []


def test_impossible_age_deletes_nothing(log):
    assert expire(log, "flights", LATER, timedelta(days=999_999)) == MaintenanceResult()
    assert maintain(log, "flights", LATER, timedelta(days=1)) == MaintenanceResult()


def test_upkeep_deletes_and_compacts(log, writer, many):
    old = DAY - timedelta(days=9)
    writer.write({"_event_time": [old]})

    done = maintain(log, "flights", LATER, LATER - DAY)

    assert done.compacted_files == 7
    assert done.written_files == 1
    assert done.expired_files == 1


def test_missing_log_is_empty(log):
    gone = InferenceLog(replace(log.location, root="/nowhere/at/all"))
    assert maintain(gone, "flights", LATER, timedelta(days=1)) == MaintenanceResult()
