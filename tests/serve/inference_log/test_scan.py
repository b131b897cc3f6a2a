"""Rows of an hour are read exactly once, even if files change meanwhile."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.inference_log import scan
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
from mlflow_deploy_plugin.serve.inference_log.scan import MARKS
from mlflow_deploy_plugin.serve.inference_log.stats import log_stats
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from tests.support.inference_log import rows_of
from tests.support.refusals import mentions

DAY = datetime(2013, 7, 1, tzinfo=UTC)
WINDOW = parse_window("2013-07-01/1d")
FOLDER = "endpoint=flights/date=2013-07-01/hour=00"


def hour(count, **columns):
    times = [DAY + timedelta(milliseconds=number) for number in range(count)]
    return {"_event_time": times, "x": np.arange(count, dtype=np.float64), **columns}


def read(log, *columns, **options):
    return rows_of(log.batches("flights", WINDOW, columns or None, **options))


def test_requested_columns_keep_their_order(log, writer):
    writer.write(hour(2))
    writer.write(hour(1, carrier=["UA"]))

    names = [table.column_names for table in log.batches("flights", WINDOW, ["carrier", "x"])]

    assert sorted(names) == [["carrier", "x"], ["x"]]


@pytest.mark.parametrize("mark", MARKS)
def test_marked_rows_are_read_on_request(log, writer, mark):
    writer.write(hour(2))  # written by an older agent without the marks
    writer.write(hour(3, **{mark: [True, False, True]}))
    others = [name for name in MARKS if name != mark]

    assert len(read(log, "x")) == 3
    assert sorted(bool(row.get(mark)) for row in read(log, mark, left_out=others)) == (
        [False] * 3 + [True] * 2
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"PAR1",
        lambda content: b"PAR1 nothing of the kind PAR1",
        lambda content: content[: len(content) // 2],
        lambda content: bytes(len(content) // 2) + content[len(content) // 2 :],
    ],
)
def test_malformed_file_is_omitted_and_named(log, writer, spoil):
    segment = writer.write(hour(1000))
    writer.write(hour(2))
    file = writer.root / FOLDER / f"{segment}-0.parquet"
    file.write_bytes(spoil(file.read_bytes()))
    assert len(read(log, "x")) == 2
    assert list(log.unreadable) == [str(file)]


def test_unrelated_parquet_file_is_named(log, writer):
    writer.write(hour(2))
    stranger = writer.root / FOLDER / "stranger.parquet"
    pa.parquet.write_table(pa.table({"a": [1]}), stranger)
    assert len(read(log, "x")) == 2
    assert mentions(log.unreadable[str(stranger)], "_segment")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("_offset", pa.array(["a text"])),
        ("_prediction_id", pa.array([b"p"])),
        ("_received_time", pa.array(["now"])),
        ("_shadow", pa.array(["no"])),
        ("_tried", pa.array(["no"])),
        ("_label", pa.array(["late"])),
    ],
)
def test_columns_of_wrong_types_are_named(log, writer, name, column):
    writer.write(hour(2))
    writer.write(hour(1, **{name: column}), segment="strange")
    assert log_stats(log, "flights").rows == 2
    ((file, reason),) = log.unreadable.items()
    assert Path(file).name == "strange-0.parquet"
    assert mentions(reason, name)


class Changing(fs.FileSystemHandler):  # type: ignore[misc]
    """A local log that calls `before(path)` when a file is about to be opened."""

    def __init__(self, before):
        self._inner = fs.LocalFileSystem()
        self._before = before

    def get_type_name(self):
        return "changing"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        return self._inner.get_file_info(paths)

    def get_file_info_selector(self, selector):
        return self._inner.get_file_info(selector)

    def open_input_file(self, path):
        self._before(path)
        return self._inner.open_input_file(path)

    def open_input_stream(self, path):
        self._before(path)
        return self._inner.open_input_stream(path)

    def _not_here(self, *arguments):
        raise NotImplementedError

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = (
        _not_here
    )
    move = copy_file = open_output_stream = open_append_stream = _not_here


def changing(log, before, is_local=True):
    return InferenceLog(
        replace(log.location, filesystem=fs.PyFileSystem(Changing(before)), is_local=is_local)
    )


is_of_a_bucket = pytest.mark.parametrize("is_local", [True, False], ids=["folder", "bucket"])


@is_of_a_bucket
def test_files_compacted_meanwhile_are_read_once(log, writer, is_local):
    names = [writer.write(hour(10, x=np.arange(10.0) + number * 10)) for number in range(4)]
    files = [writer.root / FOLDER / f"{name}-0.parquet" for name in names]
    opened = []

    def compact_at_the_second(path):
        opened.append(path)
        if len(opened) == 2:
            table = pa.concat_tables([pa.parquet.read_table(file) for file in files])
            pa.parquet.write_table(table, writer.root / FOLDER / "compacted.parquet")
            for file in files:
                file.unlink()

    rows = read(changing(log, compact_at_the_second, is_local), "x")

    assert sorted(row["x"] for row in rows) == list(range(40))


def test_files_expiring_meanwhile_are_no_error(log, writer):
    for _ in range(3):
        writer.write(hour(5))
    seen = []

    def expire_at_the_second(path):
        seen.append(path)
        if len(seen) == 2:
            for file in (writer.root / FOLDER).iterdir():
                file.unlink()

    assert len(read(changing(log, expire_at_the_second), "x")) == 5


@is_of_a_bucket
def test_log_outage_blames_no_file(log, writer, is_local):
    writer.write(hour(5))

    def fail(path):
        raise OSError("the network is gone")

    down = changing(log, fail, is_local)
    with pytest.raises(OnnxserveError, match=r"inference log .*network"):
        read(down)
    assert down.unreadable == {}


@is_of_a_bucket
def test_brief_outage_loses_no_row(log, writer, is_local):
    writer.write(hour(5))
    opened = []

    def fail_at_first(path):
        opened.append(path)
        if len(opened) == 1:
            raise OSError("the network is gone")

    shaken = changing(log, fail_at_first, is_local)
    assert len(read(shaken)) == 5
    assert shaken.unreadable == {}


def test_large_hour_is_read_in_parts(log, writer, monkeypatch):
    segments = [writer.write(hour(300)) for _ in range(3)]
    writer.write(hour(300), segment=segments[0], suffix="-again")
    monkeypatch.setattr(scan, "PASS_BYTES", 8000)

    rows = read(log, "_segment", "_row")

    assert len(rows) == 900
    assert len({(row["_segment"], row["_row"]) for row in rows}) == 900


def test_unrelated_folders_and_files_are_ignored(log, writer):
    writer.write(hour(1))
    for strange in (
        "date=never/hour=00",
        "date=2013-07-01/hour=99",
        "date=2013-07-01/other",
        "notes",
    ):
        (writer.root / "endpoint=flights" / strange).mkdir(parents=True)
    (writer.root / FOLDER / ".half-written.parquet").write_bytes(b"PAR")
    (writer.root / FOLDER / "notes.txt").write_text("hello")

    assert len(read(log)) == 1
    assert [hour.start for hour in log.hours("flights")] == [DAY]
    assert log.unreadable == {}


def test_wide_rows_are_returned_in_pieces(log, writer, monkeypatch):
    monkeypatch.setattr(scan, "BATCH_BYTES", 2**20)
    writer.write(hour(100, image=list(np.random.default_rng(0).random((100, 10_000)))))
    sizes = [table.nbytes for table in log.batches("flights", WINDOW)]
    assert max(sizes) < 2 * 2**20
    assert len(sizes) > 4
