"""The rows and labels of a person are erased; all other rows are left, each once."""

import os
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.inference_log import erasure, maintenance
from mlflow_deploy_plugin.serve.inference_log.erasure import Erasure
from mlflow_deploy_plugin.serve.inference_log.labels import SCHEMA, Label, read_labels
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from mlflow_deploy_plugin.serve.inference_log.maintenance import compact
from mlflow_deploy_plugin.serve.inference_log.storage import write_file
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from tests.support.inference_log import LogWriter, rows_of

DAY = datetime(2013, 7, 1, tzinfo=UTC)
WINDOW = parse_window("2013-07-01/1d")
LATER = datetime.now(UTC) + timedelta(days=1)
FOLDER = "endpoint=flights/date=2013-07-01/hour=00"


def requests(customers, **columns):
    times = [DAY + timedelta(milliseconds=number) for number in range(len(customers))]
    return {"_event_time": times, "customer": customers, **columns}


def erase(log, *values):
    done = Erasure(log, "flights", "customer", values)
    done.run()
    return done.rows, done.labels


def customers(log):
    return [row.get("customer") for row in rows_of(log.batches("flights", WINDOW, left_out=()))]


def test_rows_leave_every_file(log, writer):
    segment = writer.write(requests(["7", "8", "7"], x=[1.0, 2.0, 3.0]))
    writer.write(requests(["8", None]))
    writer.write(requests(["7"]))
    writer.write({"_event_time": [DAY]})  # before the key was captured
    LogWriter(writer.root / "_failed").write(requests(["7"]))
    (before,) = (writer.root / FOLDER).glob(f"{segment}*")
    schema = pq.read_schema(before)

    assert erase(log, "7") == (4, 0)

    assert sorted(map(str, customers(log))) == ["8", "8", "None", "None"]
    (after,) = (writer.root / FOLDER).glob("compacted-*")
    assert pq.read_schema(after).equals(schema)
    (row,) = pq.read_table(after).to_pylist()
    assert (row["_segment"], row["_row"], row["x"]) == (segment, 1, 2.0)
    assert not list((writer.root / "_failed").rglob("*.parquet"))
    assert erase(log, "7") == (0, 0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([7, 8], "7"),
        ([7.0, 8.0], "7"),
        (np.array([0.1, 0.2], np.float32), "0.1"),
        ([True, False], "1"),
    ],
)
def test_typed_values_are_compared_as_keys(log, writer, values, text):
    writer.write(requests(values))
    writer.label(Label(None, None, {"customer": values[0]}, 1, 0))
    assert erase(log, text) == (1, 1)
    assert len(customers(log)) == 1


def test_labels_of_erased_rows_are_erased(log, writer):
    writer.write(requests(["7", "8"], _prediction_id=["shared", "shared"]))
    writer.write(requests(["7"], _prediction_id=["own"]))
    writer.label(
        Label(None, None, {"customer": 7}, 1, 0, "k", 0),
        Label(None, None, {"customer": "7", "order": "9"}, 1, 0, "k", 1),
        Label(None, None, {"customer": "77"}, 1, 0, "k", 2),
        Label(None, None, {"note": '","customer":"7"'}, 1, 0, "k", 3),
        Label("own", None, None, 1, 0, "i", 0),
        Label("own", 0, None, 1, 0, "i", 1),
        Label("shared", 0, None, 1, 0, "i", 2),
        Label("shared", 1, None, 1, 0, "i", 3),
        Label("shared", None, None, 1, 0, "i", 4),
    )

    assert erase(log, "7") == (2, 5)

    left = rows_of(read_labels(log.location, "flights", {}))
    assert sorted((row["_segment"], row["_offset"]) for row in left) == [
        ("i", 3),
        ("i", 4),
        ("k", 2),
        ("k", 3),
    ]
    (file,) = (writer.root / "_labels").rglob("*.parquet")
    assert pq.read_schema(file).equals(SCHEMA)


def test_labels_stay_if_rows_have_no_prediction_id(log, writer):
    writer.write(requests(["7"], _prediction_id=[None]))
    writer.label(Label(None, None, {"customer": "8"}, 1, 0))
    assert erase(log, "7") == (1, 0)


def test_derived_profiles_of_the_endpoint_are_deleted(log, writer):
    writer.write(requests(["7", "8"]))
    for kind in ("samples", "bins"):
        for name in ("flights", "other"):
            file = writer.root / f"_sketches/{kind}/endpoint={name}/date=2013-07-02/x.parquet"
            file.parent.mkdir(parents=True)
            file.write_bytes(b"12345")

    assert erase(log, "9") == (0, 0)
    assert len(list((writer.root / "_sketches").rglob("*.parquet"))) == 4
    erase(log, "7")
    left = (writer.root / "_sketches").rglob("*.parquet")
    assert [file.parts[-3] for file in left] == ["endpoint=other"] * 2


def test_copy_of_a_running_compaction_is_dropped(log, writer, monkeypatch):
    """The compaction has read all files and writes its copy after the erasure."""
    for number in range(4):
        writer.write(requests(["7", "8"], x=[number, number + 0.5]))

    def erase_before_the_copy(*arguments):
        monkeypatch.setattr(maintenance, "write_file", write_file)
        assert erase(InferenceLog(log.location), "7")[0] == 4
        write_file(*arguments)

    monkeypatch.setattr(maintenance, "write_file", erase_before_the_copy)
    assert compact(log, "flights", LATER).compacted_files == 0
    assert customers(log) == ["8"] * 4
    assert erase(log, "7") == (0, 0)


def test_compactions_at_once_bring_no_row_back(log, writer):
    for number in range(30):
        writer.write(requests(["7", "8"], x=[number, number + 0.5]))
    for file in (writer.root / FOLDER).iterdir():
        os.utime(file, (0, 0))  # New files are not compacted.
    ended = threading.Event()

    def compact_until_the_end():
        while not ended.is_set():
            compact(InferenceLog(log.location), "flights", datetime.now(UTC))

    threads = [threading.Thread(target=compact_until_the_end) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert erase(log, "7")[0] >= 30
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert customers(log) == ["8"] * 30
    assert not log.unreadable


def test_two_erasures_at_once_lose_nothing(log, writer):
    for _ in range(20):
        writer.write(requests(["7", "8", "9"]))
    logs = [InferenceLog(log.location), InferenceLog(log.location)]
    threads = [
        threading.Thread(target=erase, args=arguments)
        for arguments in zip(logs, ["7", "9"], strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert customers(log) == ["8"] * 20


def test_rows_that_return_are_an_error(log, writer, monkeypatch):
    writer.write(requests(["7"]))
    monkeypatch.setattr(erasure, "replace_files", lambda *arguments: 0)
    with pytest.raises(OnnxserveError):
        erase(log, "7")


def test_malformed_file_is_reported(log, writer):
    writer.write(requests(["7"]))
    broken = writer.root / FOLDER / "broken.parquet"
    broken.write_bytes(b"PAR1")
    assert erase(log, "7")[0] == 1
    assert [*log.unreadable] == [str(broken)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["7", "70", "8", None]), min_size=1, max_size=6),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_exactly_the_other_rows_are_left(tmp_path_factory, batches, is_compacted):
    writer = LogWriter(tmp_path_factory.mktemp("log"))
    log = open_log(str(writer.root))
    for number, batch in enumerate(batches):
        segment = writer.write(requests(batch, x=[float(number)] * len(batch)))
        if number % 2:
            writer.write(requests(batch), segment=segment, suffix="-again")
    if is_compacted:
        compact(log, "flights", LATER)

    def identities():
        rows = rows_of(log.batches("flights", WINDOW, left_out=()))
        return sorted((row["_segment"], row["_row"], str(row["customer"])) for row in rows)

    others = [row for row in identities() if row[2] != "7"]
    erase(log, "7")
    assert identities() == others
