"""Tests of `onnxserve log`. See tests/serve/inference_log for the results."""

import csv
import io
import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.cli.log import size_text, table_lines
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.serve.inference_log.query import QueryResult
from tests.support.commands import said
from tests.support.inference_log import LogWriter
from tests.support.refusals import mentions

DAY = datetime(2013, 7, 1, tzinfo=UTC)


@pytest.fixture
def writer(tmp_path, monkeypatch):
    """Thirty rows in two hours, one of them labelled."""
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "log"))
    monkeypatch.chdir(tmp_path)
    writer = LogWriter(tmp_path / "log")
    times = [DAY + timedelta(minutes=3 * number) for number in range(30)]
    ids = [f"p{number}" for number in range(30)]
    carriers = ["UA", "line\nbreak \x1b[31m"] + ["AA"] * 28
    writer.write(
        {
            "_event_time": times,
            "_prediction_id": ids,
            "x": [float(number) for number in range(30)],
            "carrier": carriers,
            "probs": [[0.25, 0.75]] * 30,
        }
    )
    writer.label(Label("p0", None, None, "late", 1))
    return writer


def log(*arguments):
    return CliRunner().invoke(main, ["log", *arguments])


def test_a_table_shows_the_first_rows_and_says_that_there_are_more(writer):
    result = log("query", "flights")

    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.output
    assert lines[0].split() == [
        "_event_time",
        "_prediction_id",
        "_variant",
        "_version",
        "x",
        "carrier",
        "probs",
        "_label",
    ]
    assert lines[1].split() == [
        "2013-07-01",
        "00:00:00",
        "p0",
        "flights",
        "1",
        "0",
        "UA",
        "[0.25,",
        "0.75]",
        "late",
    ]
    assert "line break  [31m" in lines[2]  # The escape character is removed.
    assert len(lines) == 22
    assert mentions(lines[-1], "--limit", "20")
    assert log("query", "flights", "--where", "x < 2").stdout.splitlines()[-1] == "2 rows"


def test_csv_holds_every_column_and_can_be_read_back(writer):
    result = log("query", "flights", "-o", "csv", "--limit", "2")

    first, second = csv.DictReader(io.StringIO(result.stdout))
    assert first["_event_time"] == "2013-07-01T00:00:00.000000Z"
    assert first["x"] == "0"
    assert first["probs"] == "[0.25, 0.75]"
    assert first["_label"] == "late"
    assert second["_label"] == ""
    assert second["_shadow"] == "false"
    assert second["carrier"] == "line\nbreak \x1b[31m"


def test_json_lines(writer):
    result = log(
        "query",
        "flights",
        "-o",
        "jsonl",
        "--select",
        "x, probs, _event_time, 0/0 AS nan",
        "--limit",
        "1",
    )
    assert json.loads(result.stdout) == {
        "x": 0.0,
        "probs": [0.25, 0.75],
        "_event_time": "2013-07-01T00:00:00.000000Z",
        "nan": None,
    }


def test_json_is_one_array_and_a_window_may_be_called_so(writer):
    rows = json.loads(
        log("query", "flights", "--window", "2013-07-01/1d", "-o", "json", "--select", "x").stdout
    )
    assert rows[0] == {"x": 0.0}
    assert len(rows) > 1
    assert json.loads(log("query", "flights", "-o", "json", "--where", "x > 1e9").stdout) == []


def test_a_file_is_written_in_the_form_that_its_name_says_whole_or_not_at_all(writer, tmp_path):
    target = tmp_path / "rows.parquet"
    result = log("query", "flights", str(target))
    assert mentions(result.stderr, "30 rows", str(target))
    table = pq.read_table(target)
    assert table.num_rows == 30
    assert str(table.schema.field("probs").type) == "list<element: double>"

    before = target.read_bytes()
    assert "Could not convert" in said(
        log("query", "flights", str(target), "--select", "CAST(carrier AS INT)")
    )
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "rows.parquet"]


def test_an_empty_answer_has_its_header(writer):
    assert (
        log("query", "flights", "-o", "csv", "--select", "x", "--where", "x > 99").stdout == '"x"\n'
    )
    assert log("query", "flights", "--select", "x", "--since", "1h").stdout.splitlines() == [
        "x",
        "0 rows",
    ]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("flihgts",), ["'flights'"]),
        (("flights", "--where", "carier = 1"), ["'carrier'"]),
        (
            ("flights", "no/such/folder/rows.csv"),
            ["file no/such/folder/rows.csv", "folder no/such/folder"],
        ),
    ],
)
def test_a_mistake_is_one_line(writer, arguments, names):
    assert mentions(said(log("query", *arguments)), *names)


def test_parquet_is_not_written_to_a_terminal(writer):
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "log",
        "query",
        "flights",
        "-o",
        "parquet",
    ]
    terminal, output = os.openpty()
    ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    for end in (terminal, output):
        os.close(end)
    assert ended.returncode == 2
    assert mentions(ended.stderr, "Parquet", "a FILE")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_column_that_a_format_cannot_hold_is_a_one_line_error(writer, tmp_path, form):
    message = said(
        log("query", "flights", str(tmp_path / f"rows.{form}"), "--select", "INTERVAL 1 DAY")
    )
    assert mentions(message, f"cannot be written as {form}", "CAST(… AS VARCHAR)")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "table"])
def test_times_that_python_does_not_know_are_shown(writer, form):
    times = "DATE '-0005-01-01' AS a, 'infinity'::DATE AS b, TIMESTAMP '290000-01-01' AS c"
    shown = log("query", "flights", "--select", times, "-o", form, "--limit", "1")
    assert shown.exit_code == 0
    assert shown.stderr == ""
    assert "-0006-01-01" in shown.stdout or "-0005-01-01" in shown.stdout


def test_broken_file_is_reported_in_a_note(writer):
    broken = writer.root / "endpoint=flights/date=2013-07-01/hour=00/broken.parquet"
    broken.write_bytes(b"PAR1")
    result = log("query", "flights", "--limit", "1")
    assert result.exit_code == 0
    assert mentions(result.stderr, "note", str(broken))


@pytest.mark.long
def test_a_reader_that_has_seen_enough_ends_it_quietly(writer):
    command = f"{sys.executable} -m mlflow_deploy_plugin.cli log query flights -o jsonl | head -n 1"
    ended = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        env=os.environ,
        check=False,
    )
    assert ended.stdout.count(b"\n") == 1
    assert ended.stderr == b""


def test_figures_in_words_and_as_json(writer):
    text = log("stats", "flights").stdout
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert mentions(lines["rows"], "30", "2013-07-01 00:00:00", "2013-07-01 01:27:00")
    assert mentions(lines["labels"], "1 rows", "3.3%", "0 unmatched")
    assert ["2013-07-01", "00:00", "20"] in [line.split()[:3] for line in text.splitlines()]
    figures = json.loads(
        log("stats", "flights", "-o", "json", "--since", "2013-07-01T01:00").stdout
    )
    assert figures["rows"] == 10
    assert figures["by_hour"] == {"2013-07-01T01:00:00+00:00": 10}
    assert mentions(said(log("stats", "other")), "no rows", "'other'")


def test_requests_that_got_no_answer_are_apart(writer):
    none = log("query", "flights", "--failed")
    assert none.exit_code == 0
    assert none.stdout == ""
    assert mentions(none.stderr, "no failed request", "flights")

    LogWriter(writer.root / "_failed").write(
        {"_event_time": [DAY] * 2, "_status": pa.array([504, 503], pa.int16())}
    )

    shown = log(
        "query", "flights", "--failed", "--select", "_status", "--order-by", "1", "-o", "csv"
    ).stdout
    assert shown == '"_status"\n503\n504\n'
    assert "failed    2 rows" in log("stats", "flights").stdout
    assert "rows      30, " in log("stats", "flights").stdout

    message = "column 'hour' (long), row 0: 'x'; an integer is expected"
    reason = {"_error_code": ["BAD_REQUEST"], "_message": [message], "_column": ["hour"]}
    LogWriter(writer.root / "_failed").write({"_event_time": [DAY], "_status": [400], **reason})
    assert message in log("query", "flights", "--failed").stdout
    output = log("query", "flights", "--failed", "--where", "_column = 'hour'", "-o", "json").stdout
    assert [(row["_error_code"], row["_message"]) for row in json.loads(output)] == [
        ("BAD_REQUEST", message)
    ]
    assert "--failed" in said(log("sql", "flights", "SELECT * FROM failed"))

    LogWriter(writer.root / "_failed").write(
        {"_event_time": [DAY], "_status": [500]}, endpoint="never-well"
    )
    assert (
        log("query", "never-well", "--failed", "--select", "_status", "-o", "csv").stdout
        == '"_status"\n500\n'
    )
    assert "failed    1 rows" in log("stats", "never-well").stdout
    assert mentions(log("compact", "never-well").stdout, "never-well", "0 files")
    assert log("expire", "never-well", "--keep", "90d").stdout.startswith(
        "never-well: 1 files older than 90d deleted"
    )


def test_old_rows_are_counted_and_then_deleted(writer):
    counted = log("expire", "flights", "--keep", "90d", "--dry-run").stdout
    assert counted.startswith("flights: 3 files older than 90d would be deleted")
    assert log("expire", "flights", "--keep", "90d").stdout.startswith(
        "flights: 3 files older than 90d deleted"
    )
    assert list(writer.root.rglob("*.parquet")) == []
    writer.label(Label("p0", None, None, "late", 1), endpoint="of-labels-alone")
    assert log("expire", "of-labels-alone", "--keep", "90d").stdout.startswith(
        "of-labels-alone: 1 files older"
    )
    assert mentions(said(log("expire", "nobody", "--keep", "90d")), "no rows", "'nobody'")


def test_rows_on_hold_or_below_the_floor_are_kept(writer, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    with closing(open_store(load_settings().store_url)) as store:
        store.add_endpoint("onnxserve", new_endpoint("flights", "m"))
    hold = ["endpoint", "hold", "flights", "--why", "case 7"]
    held = CliRunner().invoke(main, hold)
    refused = log("expire", "flights", "--keep", "90d")
    deletion = CliRunner().invoke(main, ["endpoint", "delete", "flights"])
    released = CliRunner().invoke(main, [*hold, "--release"])
    monkeypatch.setenv("ONNXSERVE_RETENTION_FLOOR_DAYS", "91")
    below = log("expire", "flights", "--keep", "90d")
    dry_run = log("expire", "flights", "--keep", "90d", "--dry-run")

    assert held.stdout == "endpoint flights is on hold\n"
    assert released.stdout == "endpoint flights is released\n"
    for result in (refused, deletion):
        assert mentions(said(result), "flights", "case 7", "--release")
    for result in (below, dry_run):
        assert mentions(said(result), "91 days", "ONNXSERVE_RETENTION_FLOOR_DAYS")
    assert len(list(writer.root.rglob("*.parquet"))) == 3


def test_small_files_become_one(writer):
    writer.write(
        {
            "_event_time": [DAY],
            "_prediction_id": ["q"],
            "x": [1.0],
            "carrier": ["UA"],
            "probs": [[1.0]],
        }
    )
    for file in writer.root.rglob("*.parquet"):
        os.utime(file, (0, 0))
    assert mentions(log("compact", "flights").stdout, "flights", "2 files", "1")
    assert log("sql", "flights", "SELECT count(*) AS n FROM log", "-o", "csv").stdout == '"n"\n31\n'


def test_a_giant_text_costs_no_more_memory_than_a_query_may_have(writer, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.cli.log._MEMORY_BYTES", 200 * 2**20)
    sql = "SELECT repeat('x', 100000000 + x::INT) FROM log"
    assert mentions(said(log("sql", "flights", sql, "-o", "csv")), "SQL", "memory")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (10**15, "1000.0 TB")],
)
def test_a_size_has_the_unit_that_keeps_it_short(size, text):
    assert size_text(size) == text


def test_table_right_aligns_numbers_and_shortens_long_or_missing_values():
    batch = pa.RecordBatch.from_pydict(
        {
            "count": [1, 10, None],
            "text": ["x" * 60, "a\nb", None],
            "at": [
                datetime(2013, 7, 1, tzinfo=UTC),
                datetime(2013, 7, 1, 0, 0, 0, 250_000, tzinfo=UTC),
                None,
            ],
        }
    )

    lines = list(table_lines(QueryResult(batch.schema, iter([batch])), 2))

    assert lines[0].split() == ["count", "text", "at"]
    assert lines[1].split() == ["1", f"{'x' * 39}…", "2013-07-01", "00:00:00"]
    assert lines[2].split() == ["10", "a", "b", "2013-07-01", "00:00:00.25"]
    assert mentions(lines[3], "--limit", "2")
