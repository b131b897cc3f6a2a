"""Tests of `onnxserve feedback` with a real server and directly into the log."""

import json
from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log, view_tables
from tests.support.commands import done, onnxserve, said
from tests.support.inference_log import LogWriter, rows_of
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

ROWS = 6


def ask(deployed, records):
    body = {"dataframe_records": records}
    return requests.post(f"{deployed['url']}/invocations", json=body, timeout=60)


@pytest.fixture(scope="module")
def ids(home, models):
    """An endpoint `sums` that has answered a few requests of two rows; their
    X-Prediction-Ids. Later requests have an id that the model does not take.
    """
    config = {"capture.mask": "b", "capture.keys": "customer_id"}
    deployed = home.create_deployment("sums", models.once, config=config)
    answers = [
        ask(deployed, [{"a": number, "b": 1}, {"a": number, "b": 2}]) for number in range(ROWS // 2)
    ]
    wait_until(lambda: len(logged()) == ROWS, 60, "all rows are logged")
    return [answer.headers["X-Prediction-Id"] for answer in answers]


def logged():
    """The rows of the log with their labels."""
    log = open_log(load_settings().inference_log)
    return rows_of(view_tables(log, View("sums"), ["_prediction_id", "_row", "a", "_label"]))


def labels(ids):
    """The labels of the requests with these ids."""
    return {
        (row["a"], row["_row"]): row["_label"]
        for row in logged()
        if row["_label"] is not None and row["_prediction_id"] in ids
    }


def test_bad_and_unmatched_rows_are_reported(ids, tmp_path):
    file = tmp_path / "labels.csv"
    rejects = tmp_path / "bad.jsonl"
    file.write_text(
        "prediction_id,row,label\n"
        f"{ids[0]},0,1\n"
        f"{ids[0]},1,0\n"
        f"{ids[1]},,late\n"
        "unknown,0,1\n"
        f"{ids[2]},0\n"
    )

    result = onnxserve(f"feedback sums --file {file} --rejects {rejects}")

    assert result.exit_code == 1
    assert mentions(result.stdout, "sums", "4 labels", "http", "3 of 4", "1 unmatched")
    line, left_out = result.stderr.splitlines()
    assert mentions(line, "line 6", "2 fields", "header", "3")
    assert mentions(left_out, "1 bad rows")
    rejected = json.loads(rejects.read_text())
    assert rejected["row"] == f"{ids[2]},0"
    assert f"{rejected['place']}: {rejected['why']}" == line
    expected = {(0, 0): "1", (0, 1): "0", (1, 0): "late", (1, 1): "late"}
    wait_until(lambda: labels(ids) == expected, 60, "the labels are beside their rows")


def test_predict_output_accepts_labels(ids, tmp_path):
    rows = tmp_path / "rows.parquet"
    out = tmp_path / "out.parquet"
    labels = tmp_path / "labels.jsonl"
    names = [f"{row:03}" for row in range(30)]
    pd.DataFrame({"b": 1.0, "a": range(30), "customer_id": names}).to_parquet(rows)

    done(f"predict -n sums -i {rows} -o {out} --batch-rows 20")

    written = pq.read_table(out).to_pylist()
    assert [row["customer_id"] for row in written] == names
    assert [row["y"] for row in written] == [row + 1.0 for row in range(30)]
    assert [row["row"] for row in written] == [*range(20), *range(10)]
    assert len({row["prediction_id"] for row in written}) == 2
    labels.write_text("".join(json.dumps({**row, "label": 1}) + "\n" for row in written))
    (accepted,) = done(f"feedback sums --file {labels} --no-match").splitlines()
    assert mentions(accepted, "30 labels accepted")


def test_key_may_contain_a_masked_column(ids, tmp_path):
    file = tmp_path / "labels.parquet"
    delays = {"a": [2.0, 2.0, 2.0], "b": [1, 2, 3], "delayed": [True, False, True]}
    pq.write_table(pa.table(delays), file)

    result = onnxserve(f"feedback sums --file {file} --key a,b --label-column delayed")

    assert result.exit_code == 0
    assert result.stderr == ""
    assert mentions(result.stdout, "2 of 3", "1 unmatched")
    delayed = {(2, 0): "true", (2, 1): "false"}
    wait_until(lambda: labels(ids).items() >= delayed.items(), 60, "they are beside their rows")


def test_refused_row_leaves_the_other_rows(ids):
    lines = [
        {"key": {"a": 2, "b": 1}, "label": "x"},
        {"key": {"c": 2}, "label": 1},
        {"prediction_id": ids[0], "label": 5},
    ]

    result = onnxserve("feedback sums -f - -t jsonl", given="\n".join(map(json.dumps, lines)))

    assert mentions(result.stdout, "sums", "2 labels", "2 of 2")
    assert mentions(result.stderr.splitlines()[0], "line 2", "'c'", "sums")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("sums --key a,bb", ["--key", "'bb'", "'b'"]),
        ("sums --key x", ["'x'", "a", "b", "prediction", "capture.keys"]),
        ("sums", ["'prediction_id'", "a, b, label", "--id-column", "--key"]),
        ("sums --key a --label-column late", ["'late'"]),
        ("sumz --key a", ["no endpoint", "'sumz'", "'sums'", "--url"]),
        ("sums --key a --url http://127.0.0.1:9", ["does not answer", "http://127.0.0.1:9"]),
        ("sums --key a --rejects no/such/bad.jsonl", ["file no/such/bad.jsonl"]),
        ("sums --key a --rejects labels.csv", ["--rejects labels.csv"]),
        ("sums --key a --file labels.txt", ["-t csv", "jsonl", "parquet"]),
    ],
)
def test_impossible_feedback_is_refused(ids, tmp_path, monkeypatch, options, names):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    for name in ("labels.csv", "labels.txt"):
        (tmp_path / name).write_text("a,b,label\n1,2,3\n")
    assert mentions(said(onnxserve(f"feedback --file labels.csv {options}")), *names)
    assert (tmp_path / "labels.csv").read_text() == "a,b,label\n1,2,3\n"


def test_labels_are_logged_without_a_server(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    writer = LogWriter(tmp_path / "home" / "inference_log")
    times = [datetime(2013, 7, 1, tzinfo=UTC)] * 2
    writer.write({"_event_time": times, "flight": [7, 8], "a": [0.0, 1.0]}, endpoint="sums")
    command = "feedback sums --file labels.csv --key flight"

    def import_labels(rows, options=""):
        (tmp_path / "labels.csv").write_text(f"flight,label\n{rows}")
        return onnxserve(f"{command} {options}")

    result = import_labels("7,1\n9,1\n7,2\n")
    assert result.exit_code == 0, result.output
    assert mentions(result.stdout, "sums", "3 labels", str(writer.root), "1 of 2", "1 unmatched")
    assert [row["_label"] for row in sorted(logged(), key=lambda row: row["a"])] == ["2", None]
    full = import_labels("7,2,2\n", "--rejects /dev/full")
    assert mentions(full.stderr.splitlines()[-1], "/dev/full", "No space left")
