"""Tests of `onnxserve feedback` with a real server and directly into the log."""

import json
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.tabular.row_files import FILE_FORMATS
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log, view_tables
from tests.support.commands import said
from tests.support.inference_log import LogWriter, rows_of
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

ROWS = 6


@pytest.fixture(scope="module")
def ids(home, models):
    """An endpoint `sums` that has answered a few requests of two rows; their
    X-Prediction-Ids.
    """
    deployed = home.create_deployment("sums", models.once, config={"capture.mask": "b"})
    answers = [
        requests.post(
            f"{deployed['url']}/invocations",
            json={"dataframe_records": [{"a": number, "b": 1}, {"a": number, "b": 2}]},
            timeout=60,
        )
        for number in range(ROWS // 2)
    ]
    wait_until(lambda: len(logged()) == ROWS, 60, "all rows are logged")
    return [answer.headers["X-Prediction-Id"] for answer in answers]


@pytest.fixture(scope="module")
def customers(home, models):
    """An endpoint whose requests have an id that the model does not take."""
    home.create_deployment("customers", models.once, config={"capture.keys": "customer_id"})
    return "customers"


def logged(endpoint="sums"):
    """The rows of the log with their labels."""
    log = open_log(load_settings().inference_log)
    tables = view_tables(log, View(endpoint), ["_prediction_id", "_row", "a", "_label", "_segment"])
    return rows_of(tables)


def labels(endpoint="sums"):
    return {
        (row["a"], row["_row"]): row["_label"]
        for row in logged(endpoint)
        if row["_label"] is not None
    }


def feedback(*arguments, given=None):
    return CliRunner().invoke(main, ["feedback", *arguments], input=given)


def test_labels_sent_over_http_report_bad_and_unmatched_rows(ids, tmp_path):
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

    result = feedback("sums", "--file", str(file), "--rejects", str(rejects))

    assert result.exit_code == 1
    assert mentions(result.stdout, "sums", "4 labels", "http")
    assert mentions(result.stdout, "3 of 4", "1 unmatched")
    line, left_out = result.stderr.splitlines()
    assert mentions(line, "line 6", "2 fields", "header", "3")
    assert mentions(left_out, "1 bad rows")
    rejected = json.loads(rejects.read_text())
    assert rejected["place"] == "line 6"
    assert rejected["row"] == f"{ids[2]},0"
    assert f"{rejected['place']}: {rejected['why']}" == line
    expected = {(0, 0): "1", (0, 1): "0", (1, 0): "late", (1, 1): "late"}
    wait_until(lambda: labels() == expected, 60, "the labels are beside their rows")


@pytest.mark.long
@pytest.mark.parametrize("mask", ["", "customer_id"])
def test_labels_find_their_rows_by_an_id_that_the_model_does_not_take(home, models, tmp_path, mask):
    name = f"customers-{mask or 'plain'}".replace("_", "-")
    deployed = home.create_deployment(
        name, models.once, config={"capture.keys": "customer_id", "capture.mask": mask}
    )
    requested: list[list[dict[str, Any]]] = [
        [{"a": 1, "b": 1, "customer_id": 7}, {"a": 2, "b": 1, "customer_id": None}],
        [{"a": 3, "b": 1, "customer_id": "x-9"}],
        [{"a": 4, "b": 1}],
    ]
    for records in requested:
        body = {"dataframe_records": records}
        answered = requests.post(f"{deployed['url']}/invocations", json=body, timeout=60)
        assert answered.json() == {"predictions": [{"y": record["a"] + 1.0} for record in records]}
    wait_until(lambda: len(logged(name)) == 4, 60, "all rows are logged")
    file = tmp_path / "labels.csv"
    file.write_text("customer_id,label\n7,seven\nx-9,nine\n,nobody\n8,eight\n")

    result = feedback(name, "--file", str(file), "--key", "customer_id")

    assert result.exit_code == 0, result.output
    assert mentions(result.stdout, "3 of 4", "1 unmatched")
    expected = {(1, 0): "seven", (2, 1): "nobody", (3, 0): "nine", (4, 0): "nobody"}
    wait_until(lambda: labels(name) == expected, 60, "the labels are beside their rows")


@pytest.mark.parametrize("kind", FILE_FORMATS)
def test_the_output_of_predict_keeps_the_keys_and_is_a_file_of_labels(customers, tmp_path, kind):
    rows = tmp_path / f"rows.{kind}"
    out = tmp_path / f"out.{kind}"
    labels = tmp_path / "labels.jsonl"
    frame = pd.DataFrame(
        {"b": 1.0, "a": range(30), "customer_id": [f"{row:03}" for row in range(30)]}
    )
    match kind:
        case "csv":
            frame.to_csv(rows, index=False)
        case "parquet":
            frame.to_parquet(rows)
        case _:
            frame.to_json(rows, orient="records", lines=kind == "jsonl")

    options = ["-n", customers, "-i", str(rows), "-o", str(out), "--batch-rows", "20"]
    result = CliRunner().invoke(main, ["predict", *options])

    assert result.exit_code == 0, result.output
    written = written_rows(out)
    assert [(row["customer_id"], row["y"]) for row in written] == [
        (f"{row:03}", row + 1.0) for row in range(30)
    ]
    assert [row["row"] for row in written] == [*range(20), *range(10)]
    assert len({row["prediction_id"] for row in written}) == 2
    labels.write_text("".join(json.dumps({**row, "label": 1}) + "\n" for row in written))
    assert "30 labels accepted" in feedback(customers, "--file", str(labels), "--no-match").stdout


def written_rows(file):
    """The rows of an output file of any kind."""
    match file.suffix:
        case ".csv":
            records: list[dict[Any, Any]] = pd.read_csv(file, dtype={"customer_id": str}).to_dict(
                "records"
            )
            return records
        case ".parquet":
            return pq.read_table(file).to_pylist()
        case ".jsonl":
            return [json.loads(line) for line in file.read_text().splitlines()]
        case _:
            rows: list[dict[str, Any]] = json.loads(file.read_text())["predictions"]
            return rows


def test_an_unknown_key_column_is_answered_with_the_columns_there_are_and_the_setting_that_adds_one(
    ids, tmp_path
):
    file = tmp_path / "labels.csv"
    file.write_text("request,label\n1,1\n")
    line = said(feedback("sums", "--file", str(file), "--key", "request"))
    assert "'request'" in line
    assert {"a", "b", "prediction"} <= set(
        line.replace(";", ",").replace("have ", ",").replace(" ", "").split(",")
    )
    assert "capture.keys" in line
    assert "_request_id" not in line


def test_a_masked_column_may_be_in_the_key(ids, tmp_path):
    file = tmp_path / "labels.parquet"
    pq.write_table(
        pa.table({"a": [2.0, 2.0, 2.0], "b": [1, 2, 3], "delayed": [True, False, True]}), file
    )

    result = feedback("sums", "--file", str(file), "--key", "a,b", "--label-column", "delayed")

    assert result.exit_code == 0
    assert result.stderr == ""
    assert mentions(result.stdout, "2 of 3", "1 unmatched")
    wait_until(
        lambda: labels().items() >= {(2, 0): "true", (2, 1): "false"}.items(),
        60,
        "they are beside their rows",
    )


def test_a_row_that_the_server_refuses_is_named_and_the_others_are_taken(ids):
    lines = [
        {"key": {"a": 2, "b": 1}, "label": "x"},
        {"key": {"c": 2}, "label": 1},
        {"prediction_id": ids[0], "label": 5},
    ]

    result = feedback("sums", "-f", "-", "-t", "jsonl", given="\n".join(map(json.dumps, lines)))

    assert mentions(result.stdout, "sums", "2 labels")
    assert mentions(result.stdout, "2 of 2")
    assert mentions(result.stderr.splitlines()[0], "line 2", "'c'", "sums")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("sums", "--key", "a,bb"), ["--key", "'bb'", "'b'"]),
        (("sums",), ["'prediction_id'", "a, b, label", "--id-column", "--key"]),
        (("sums", "--key", "a", "--label-column", "late"), ["'late'"]),
        (("sumz", "--key", "a"), ["no endpoint", "'sumz'", "'sums'"]),
        (
            ("sums", "--key", "a", "--url", "http://127.0.0.1:9"),
            ["does not answer", "http://127.0.0.1:9"],
        ),
        (("sums", "--key", "a", "--rejects", "no/such/bad.jsonl"), ["file no/such/bad.jsonl"]),
        (("sums", "--key", "a", "--rejects", "labels.csv"), ["--rejects labels.csv"]),
    ],
)
def test_invalid_feedback_is_a_one_line_error_and_sends_no_labels(
    ids, tmp_path, monkeypatch, arguments, names
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "labels.csv"
    file.write_text("a,b,label\n1,2,3\n")
    assert mentions(said(feedback(*arguments, "--file", str(file))), *names)
    assert file.read_text() == "a,b,label\n1,2,3\n"


def test_a_file_that_is_not_there_or_of_no_kind_is_one_line(ids, tmp_path):
    assert mentions(
        said(feedback("sums", "--file", str(tmp_path / "none.csv"))), "none.csv", "No such file"
    )
    (tmp_path / "labels.txt").touch()
    assert mentions(
        said(feedback("sums", "--file", str(tmp_path / "labels.txt"))), "-t csv", "jsonl", "parquet"
    )


def test_where_no_server_runs_labels_go_straight_into_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    writer = LogWriter(tmp_path / "home" / "inference_log")
    times = [datetime(2013, 7, 1, tzinfo=UTC)] * 2
    writer.write({"_event_time": times, "flight": [7, 8], "a": [0.0, 1.0]}, endpoint="sums")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("flight,label\n7,1\n9,1\n7,2\n")

    result = feedback("sums", "--file", str(tmp_path / "labels.csv"), "--key", "flight")

    assert result.exit_code == 0, result.output
    assert mentions(result.stdout, "sums", "3 labels", str(tmp_path / "home" / "inference_log"))
    assert mentions(result.stdout, "1 of 2", "1 unmatched")
    assert [row["_label"] for row in sorted(logged(), key=lambda row: row["a"])] == ["2", None]
    (tmp_path / "labels.csv").write_text("flight,label\n8.0,3\n")
    again = feedback("sums", "-f", "labels.csv", "--key", "flight")
    assert mentions(again.stdout, "1 of 1")
    (tmp_path / "labels.csv").write_text("flight,label\n7,2,2\n")
    full = feedback("sums", "-f", "labels.csv", "--key", "flight", "--rejects", "/dev/full")
    assert mentions(full.stderr.splitlines()[-1], "/dev/full", "No space left")
    silent = feedback(
        "sums", "--file", str(tmp_path / "labels.csv"), "--key", "flight", "--no-match"
    )
    assert silent.stdout.count("\n") == 1
