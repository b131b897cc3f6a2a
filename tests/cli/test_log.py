"""Tests of `onnxserve log`. See tests/serve/inference_log for the results."""

import json
import os
import sys
from datetime import UTC, datetime, timedelta

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.cli.log import table_lines
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.serve.inference_log.query import QueryResult
from tests.support.commands import onnxserve, said, told
from tests.support.inference_log import LogWriter
from tests.support.refusals import mentions, refused
from tests.support.stores import own_store

DAY = datetime(2013, 7, 1, tzinfo=UTC)
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def writer(tmp_path, monkeypatch):
    """Thirty rows in two hours, one of them labelled."""
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "log"))
    monkeypatch.chdir(tmp_path)
    writer = LogWriter(tmp_path / "log")
    writer.write(
        {
            "_event_time": [DAY + timedelta(minutes=3 * number) for number in range(30)],
            "_prediction_id": [f"p{number}" for number in range(30)],
            "x": [float(number) for number in range(30)],
            "carrier": ["UA", "line\nbreak \x1b[31m"] + ["AA"] * 28,
            "probs": [[0.25, 0.75]] * 30,
        }
    )
    writer.label(Label("p0", None, None, "late", 1))
    return writer


def query(options):
    return onnxserve(f"log query flights {options}")


def test_table_shows_the_first_rows(writer):
    result = query("")

    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.output
    head = "_event_time _prediction_id _variant _version x carrier probs _label"
    assert lines[0].split() == head.split()
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
    assert query("--where 'x < 2'").stdout.splitlines()[-1] == "2 rows"


def test_json_has_typed_values(writer):
    lines = query("-o jsonl --select 'x, probs, _event_time, 0/0 AS nan' --limit 1").stdout
    array = query("-o json --window 2013-07-01/1d --select x --limit 2").stdout
    empty = query("-o json --where 'x > 1e9'").stdout

    assert json.loads(lines) == {
        "x": 0.0,
        "probs": [0.25, 0.75],
        "_event_time": "2013-07-01T00:00:00.000000Z",
        "nan": None,
    }
    assert json.loads(array) == [{"x": 0.0}, {"x": 1.0}]
    assert json.loads(empty) == []


def test_file_is_written_atomically(writer, tmp_path):
    target = tmp_path / "rows.parquet"
    result = query(target)
    assert mentions(result.stderr, "30 rows", str(target))
    table = pq.read_table(target)
    assert table.num_rows == 30
    assert str(table.schema.field("probs").type) == "list<element: double>"

    before = target.read_bytes()
    assert "Could not convert" in said(query(f"{target} --select 'CAST(carrier AS INT)'"))
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "rows.parquet"]


def test_empty_result_has_a_header(writer):
    assert query("-o csv --select x --where 'x > 99'").stdout == '"x"\n'
    assert query("--select x --since 1h").stdout.splitlines() == ["x", "0 rows"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("query flights no/such/rows.csv", ["file no/such/rows.csv", "folder no/such"]),
        (
            "query flights rows.csv --select 'INTERVAL 1 DAY'",
            ["cannot be written as csv", "CAST(… AS VARCHAR)"],
        ),
        ("sql flights 'SELECT * FROM failed'", ["--failed"]),
        ("expire nobody --keep 90d", ["no rows", "'nobody'"]),
        ("errors fligts", ["'fligts'", "'flights'"]),
    ],
)
def test_impossible_request_is_refused(writer, tmp_path, line, names):
    assert mentions(said(onnxserve(f"log {line}")), *names)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_parquet_is_not_written_to_a_terminal(writer, monkeypatch):
    terminal, output = os.openpty()
    with os.fdopen(output, "w") as screen:
        monkeypatch.setattr(sys, "stdout", screen)
        with refused(click.UsageError, "Parquet", "a FILE"):
            main(["log", "query", "flights", "-o", "parquet"], standalone_mode=False)
    os.close(terminal)


def test_times_outside_python_years_are_shown(writer):
    times = "DATE '-0005-01-01' AS a, 'infinity'::DATE AS b, TIMESTAMP '290000-01-01' AS c"
    shown = onnxserve("log query flights --limit 1 --select", times)
    assert shown.exit_code == 0
    assert shown.stderr == ""
    assert "-0006-01-01" in shown.stdout or "-0005-01-01" in shown.stdout


def test_broken_file_is_noted(writer):
    broken = writer.root / "endpoint=flights/date=2013-07-01/hour=00/broken.parquet"
    broken.write_bytes(b"PAR1")
    result = query("--limit 1")
    assert result.exit_code == 0
    assert mentions(result.stderr, "note", str(broken))


def test_stats_count_rows_and_labels(writer):
    text = onnxserve("log stats flights").stdout
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert mentions(lines["rows"], "30", "2013-07-01 00:00:00", "2013-07-01 01:27:00")
    assert mentions(lines["labels"], "1 rows", "3.3%", "0 unmatched")
    assert ["2013-07-01", "00:00", "20"] in [line.split()[:3] for line in text.splitlines()]
    figures = told("log stats flights --since 2013-07-01T01:00")
    assert figures["rows"] == 10
    assert figures["by_hour"] == {"2013-07-01T01:00:00+00:00": 10}


def test_failed_requests_are_separate(writer):
    none = query("--failed")
    assert none.exit_code == 0
    assert none.stdout == ""
    assert mentions(none.stderr, "no failed request", "flights")

    failed = LogWriter(writer.root / "_failed")
    message = "column 'hour' (long), row 0: 'x'; an integer is expected"
    failed.write(
        {
            "_event_time": [DAY],
            "_status": [400],
            "_error_code": ["BAD_REQUEST"],
            "_message": [message],
            "_column": ["hour"],
        }
    )
    failed.write({"_event_time": [DAY], "_status": [503]})

    statuses = query("--failed --select _status --order-by 1 -o csv").stdout
    assert statuses == '"_status"\n400\n503\n'
    (row,) = json.loads(query("--failed -o json --where \"_column = 'hour'\"").stdout)
    assert (row["_error_code"], row["_message"]) == ("BAD_REQUEST", message)
    assert "failed    2 rows" in onnxserve("log stats flights").stdout
    assert "rows      30, " in onnxserve("log stats flights").stdout


def test_endpoint_with_only_failures_is_maintained(writer):
    LogWriter(writer.root / "_failed").write(
        {"_event_time": [DAY], "_status": [500]}, endpoint="never-well"
    )
    shown = onnxserve("log query never-well --failed --select _status -o csv").stdout
    assert shown == '"_status"\n500\n'
    assert "failed    1 rows" in onnxserve("log stats never-well").stdout
    assert mentions(onnxserve("log compact never-well").stdout, "never-well", "0 files")
    expired = onnxserve("log expire never-well --keep 90d").stdout
    assert expired.startswith("never-well: 1 files older than 90d deleted")


def test_expire_deletes_old_rows_and_labels(writer):
    writer.label(Label("p0", None, None, "late", 1), endpoint="labels")
    command = "log expire flights --keep 90d"
    counted = onnxserve(f"{command} --dry-run").stdout
    assert counted.startswith("flights: 3 files older than 90d would be deleted")
    assert onnxserve(command).stdout.startswith("flights: 3 files older than 90d deleted")
    assert onnxserve("log expire labels --keep 90d").stdout.startswith("labels: 1 files older")
    assert list(writer.root.rglob("*.parquet")) == []


def test_held_and_recent_rows_are_kept(writer, monkeypatch, new_home):
    with own_store() as store:
        store.add_endpoint("onnxserve", new_endpoint("flights", "m"))
    hold = "endpoint hold flights --why 'case 7'"
    expire = "log expire flights --keep 90d"
    assert onnxserve(hold).stdout == "endpoint flights is on hold\n"
    for command in (expire, "endpoint delete flights"):
        assert mentions(said(onnxserve(command)), "flights", "case 7", "--release")
    assert onnxserve(f"{hold} --release").stdout == "endpoint flights is released\n"
    monkeypatch.setenv("ONNXSERVE_RETENTION_FLOOR_DAYS", "91")
    for option in ("", "--dry-run"):
        refused = said(onnxserve(f"{expire} {option}"))
        assert mentions(refused, "91 days", "ONNXSERVE_RETENTION_FLOOR_DAYS")
    assert len(list(writer.root.rglob("*.parquet"))) == 3


def test_compact_joins_small_files(writer):
    row = {"_prediction_id": ["q"], "x": [1.0], "carrier": ["UA"], "probs": [[1.0]]}
    writer.write({"_event_time": [DAY], **row})
    for file in writer.root.rglob("*.parquet"):
        os.utime(file, (0, 0))
    assert mentions(onnxserve("log compact flights").stdout, "flights", "2 files", "1")
    counted = onnxserve("log sql flights 'SELECT count(*) AS n FROM log' -o csv").stdout
    assert counted == '"n"\n31\n'


def test_memory_limit_refuses_a_large_text(writer, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.cli.log._MEMORY_BYTES", 200 * 2**20)
    sql = "SELECT repeat('x', 100000000 + x::INT) FROM log"
    assert mentions(said(onnxserve("log sql flights -o csv", sql)), "SQL", "memory")


def test_table_shortens_long_and_missing_values():
    exact = datetime(2013, 7, 1, 0, 0, 0, 250_000, tzinfo=UTC)
    batch = pa.RecordBatch.from_pydict(
        {"count": [1, None, 10], "text": ["x" * 60, "a\nb", None], "at": [DAY, exact, None]}
    )

    lines = list(table_lines(QueryResult(batch.schema, iter([batch])), 2))

    assert lines[0].split() == ["count", "text", "at"]
    assert lines[1].split() == ["1", f"{'x' * 39}…", "2013-07-01", "00:00:00"]
    assert lines[2].split() == ["NULL", "a", "b", "2013-07-01", "00:00:00.25"]
    assert mentions(lines[3], "--limit", "2")


def found(options="", name="flights"):
    return told(f"log errors {name} {options}")


@pytest.fixture
def fail(tmp_path, monkeypatch, new_home):
    """A function that logs failed requests of the endpoint, the first at a given age,
    each one second later. The log has 10 answered requests, each with two rows.
    """
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "log"))
    writer = LogWriter(tmp_path / "log")
    for number in range(10):
        times = [NOW - timedelta(minutes=1)] * 2
        writer.write({"_event_time": times}, segment=f"answered-{number}")

    def fail(
        messages,
        column=None,
        age=timedelta(hours=1),
        status=400,
        code="BAD_REQUEST",
        version="3",
    ):
        count = len(messages)
        columns = {
            "_event_time": [NOW - age + timedelta(seconds=number) for number in range(count)],
            "_request_id": [f"request-{number}" for number in range(count)],
            "_status": pa.array([status] * count, pa.int16()),
            "_error_code": [code] * count,
            "_column": pa.array([column] * count, pa.string()),
            "_message": pa.array(messages, pa.string()),
        }
        LogWriter(writer.root / "_failed").write(columns, version=version)

    return fail


def test_failures_are_grouped_by_cause(fail):
    bad = [
        f"column 'hour' (long), row {number}: 'x{number}'; an integer is expected"
        for number in range(8)
    ]
    fail(bad, "hour")
    full = ["the queue of the model is full"] * 2
    fail(full, status=429, code="REQUEST_LIMIT_EXCEEDED", version="10")

    document = found("--last 24h")

    assert document["answered"] == 10
    assert document["failed"] == 10
    first, second = document["causes"]
    assert first["count"] == 8
    assert first["share"] == 0.4
    assert first["column"] == "hour"
    assert first["versions"] == ["3"]
    began = NOW - timedelta(hours=1)
    assert datetime.fromisoformat(first["first"]) == began
    assert datetime.fromisoformat(first["last"]) == began + timedelta(seconds=7)
    assert first["newest"]["message"] == bad[-1]
    assert first["newest"]["request_id"] == "request-7"
    assert "x7" not in first["cause"]
    assert second["status"] == 429
    assert second["error_code"] == "REQUEST_LIMIT_EXCEEDED"
    assert second["versions"] == ["10"]
    assert mentions(second["remedy"], "server.max_queue_size")
    text = onnxserve("log errors flights").stdout
    assert mentions(text, "10 of 20", "8", "40.00%", "'hour'", "request-7", "24h", bad[-1])
    assert "onnxserve rollback flights" in text


VALUES = "'a'|\"it's\"|'a\\'b'|1.5|-3e+20|null|true|[1, 2, ...]|{'a': [1]}"


@pytest.mark.parametrize(
    "messages",
    [
        [
            f"column 'hour' (long), row 3: {value}; an integer is expected"
            for value in VALUES.split("|")
        ],
        [
            "column 'c', row 3: 'XX' is not a known category of the model; did you mean 'AA'?",
            "column 'c', row 12: 'Z' is not a known category of the model; the allowed values "
            "are AA, UA",
        ],
        [
            "the model's answer 3f2a9b1c4d5e6f708192a3b4c5d6e7f8 failed",
            "the model's answer 3f2a9b1c-4d5e-6f70-8192-a3b4c5d6e7f8 failed",
        ],
        [
            "the CSV has 1,024 lines; at most 1,000 are allowed",
            "the CSV has 99 lines; at most 1,000 are allowed",
        ],
    ],
    ids=["values", "categories", "ids", "numbers"],
)
def test_values_rows_and_ids_share_a_cause(fail, messages):
    fail(messages, "hour")
    assert len(found()["causes"]) == 1


def test_columns_types_and_texts_separate_causes(fail):
    fail(["column 'a', row 1: 'x' does not fit the type float32"], "a")
    fail(["column 'b', row 1: 'x' does not fit the type float32"], "b")
    fail(["column 'b', row 1: 'x' does not fit the type int64"], "b")
    start = "could not convert string to "
    fail([f"{start}float: 'abc' truncated at the end of this quo", start], "c")
    assert sorted(cause["column"] for cause in found()["causes"]) == ["a", "b", "b", "c", "c"]


def test_causes_without_messages_are_grouped(fail):
    fail([None] * 3, "hour")
    fail([None] * 2, "carrier")
    causes = [(cause["count"], cause["column"], cause["cause"]) for cause in found()["causes"]]
    assert causes == [(3, "hour", ""), (2, "carrier", "")]


def test_older_failures_do_not_count(fail):
    fail(["old"], age=timedelta(days=3))
    assert found()["failed"] == 0
    assert mentions(onnxserve("log errors flights").stdout, "0 of 10", "24h")
    assert found("--last 7d")["failed"] == 1
