"""Tests of `onnxserve predict`: every file format, with a model and with a deployment,
and every error.
"""

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.tabular.row_files import FILE_FORMATS, open_output, value_writer
from tests.support.commands import said
from tests.support.pyfuncs import Days, save_pyfuncs
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

ROWS = 2500
FRAME = pd.DataFrame({"b": [row / 4 for row in range(ROWS)], "a": range(ROWS)})
SUMS = [{"y": row * 1.25} for row in range(ROWS)]


def predict(*arguments: str, given: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["predict", *arguments], input=given)


@pytest.fixture(scope="module")
def by(home, models):
    """The two ways to be answered by the same model."""
    home.create_deployment("once", models.once)
    return {"model": [models.once], "deployment": ["-n", "once"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same rows in every kind of file."""
    folder = tmp_path_factory.mktemp("rows")
    FRAME.to_csv(folder / "rows.csv", index=False)
    FRAME.to_parquet(folder / "rows.parquet")
    FRAME.to_json(folder / "rows.jsonl", orient="records", lines=True)
    FRAME.to_json(folder / "rows.json", orient="records")
    return folder


def answers(file):
    """The predictions in a file of any kind, as JSON Lines has them."""
    match file.suffix:
        case ".csv":
            return pd.read_csv(file).to_dict("records")
        case ".parquet":
            return pq.read_table(file).to_pylist()
        case ".jsonl":
            return [json.loads(line) for line in file.read_text().splitlines()]
        case _:
            answered: list[Any] = json.loads(file.read_text())["predictions"]
            return answered


@pytest.mark.parametrize("way", ["model", "deployment"])
@pytest.mark.parametrize("kind", FILE_FORMATS)
def test_every_row_of_every_kind_of_file_is_answered_in_its_order(by, folder, tmp_path, way, kind):
    out = tmp_path / f"out.{kind}"

    result = predict(*by[way], "-i", str(folder / f"rows.{kind}"), "-o", str(out))

    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == f"2,500 predictions in {out}\n"
    assert answers(out) == SUMS
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_split": {"columns": ["b", "a"], "data": [[1, 2], [3, 4]], "index": [7, 8]}},
        {"dataframe_records": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]},
        {"instances": [[1, 2], [3, 4]]},
        {"inputs": {"a": [1, 3], "b": [2, 4]}, "params": {"x": 1}},
        {"a": [1, 3], "b": [2, 4]},
        [[1, 2], [3, 4]],
    ],
    ids=lambda document: str(document)[:24],
)
def test_every_form_of_json_is_cut_into_batches(by, document):
    result = predict(*by["model"], "--batch-rows", "1", given=json.dumps(document).encode())

    assert json.loads(result.stdout) == {"predictions": [{"y": 3.0}, {"y": 7.0}]}


def test_one_record_is_one_row(by):
    result = predict(*by["model"], "-O", "csv", given=b'{"inputs": {"a": 1, "b": 2}}')

    assert result.stdout == "y\n3.0\n"


def test_quotes_blank_lines_and_a_byte_order_mark_are_understood_and_lines_still_counted(by):
    text = b'\xef\xbb\xbf"b","a",note\r\n1,2,"two\r\nlines"\r\n\r\n3,4,""\r\n5,x,'

    result = predict(*by["model"], "-t", "csv", given=text[: text.rindex(b"5")])
    assert result.stdout == "y\n3.0\n7.0\n"

    assert mentions(
        said(predict(*by["model"], "-t", "csv", given=text)),
        "standard input",
        "line 6",
        "column 'a'",
    )


@pytest.mark.parametrize("way", ["model", "deployment"])
@pytest.mark.parametrize(
    ("kind", "text", "names"),
    [
        ("csv", "b,a\n{ok}1,x\n1,y\n{ok}", ["line 1202", "column 'a'", "'x'"]),
        ("csv", "b,a\n{ok}1\n{ok}", ["line 1202", "1 fields", "2"]),
        ("csv", 'b,a\n{ok}1,"x\n{ok}', ["line 1202", "CSV"]),
        ("csv", "c,a\n{ok}", ["'b'", "'c'", "a, b"]),
        ("csv", "b,a\n", ["no rows"]),
        ("jsonl", '{ok}{"a": 1, "b": }\n', ["line 1201", "JSON"]),
        ("jsonl", '{ok}{"a": 1, "b": "x"}\n', ["line 1201", "column 'b'", "'x'"]),
        ("jsonl", "{ok}[1, 2]\n", ["line 1201", "JSON objects"]),
        ("json", '[{"a": 1, "b": 2}, {"a": 1, "b": []}]', ["row 1", "column 'b'"]),
        ("json", '{"x": {"y": 1}, "z": [1]}', ["no rows", "dataframe_split"]),
        ("json", "a,b", ["not valid JSON"]),
        ("parquet", "a,b", ["a Parquet file"]),
    ],
)
def test_input_file_error_names_its_place_and_leaves_the_output_file_unchanged(
    by, tmp_path, way, kind, text, names
):
    good = {"csv": "1,2\n", "jsonl": '{"a": 1, "b": 2}\n'}.get(kind, "") * 1200
    (tmp_path / f"rows.{kind}").write_text(text.replace("{ok}", good))
    (tmp_path / "out.csv").write_text("before")

    message = said(
        predict(*by[way], "-i", str(tmp_path / f"rows.{kind}"), "-o", str(tmp_path / "out.csv"))
    )

    assert message.startswith(f"{tmp_path}/rows.{kind}")
    assert mentions(message, *names)
    assert (tmp_path / "out.csv").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["-n", "nobody"], ["no deployment", "'nobody'", "once"]),
        (["-n", "nobody", "-i", "/nowhere.csv"], ["no deployment", "'nobody'", "once"]),
        (["-n", "onec"], ["no deployment", "'onec'", "'once'"]),
        (["-n", "once", "-o", "out.xlsx"], ["out.xlsx", ".csv .json .jsonl"]),
        (["/nowhere"], ["folder /nowhere"]),
        (["-n", "once", "-i", "/nowhere.csv"], ["file /nowhere.csv", "read", "No such file"]),
        (
            ["-n", "once", "-o", "/nowhere/x.csv"],
            ["file /nowhere/x.csv", "written", "folder /nowhere"],
        ),
        (["-n", "idle"], ["idle", "empty"]),
    ],
)
def test_predictions_that_cannot_start_give_a_reason(home, by, arguments, names):
    home.create_endpoint("idle")
    try:
        assert mentions(said(predict(*arguments, given=b'[{"a": 1, "b": 2}]')), *names)
    finally:
        home.delete_endpoint("idle")


@pytest.fixture(scope="module")
def captured(home, models):
    home.create_deployment("captured", models.once)
    return "captured"


def logged_times():
    select = "strftime(_event_time, '%Y-%m-%dT%H:%M')"
    result = CliRunner().invoke(
        main,
        [
            "log",
            "query",
            "captured",
            "--select",
            f"{select} AS at",
            "--order-by",
            "a",
            "-o",
            "jsonl",
        ],
    )
    if result.exit_code == 0:
        return [json.loads(line)["at"] for line in result.stdout.splitlines()]
    return []


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_column_of_event_times_reaches_the_log(captured, tmp_path, kind):
    """Rows without an offset are in UTC; the third row is at 08:00 in UTC."""
    before = len(logged_times())
    times = ["2026-07-01T10:00:00", "2026-07-01T10:00:00", "2026-07-02T10:00:00+02:00"]
    frame = pd.DataFrame({"b": [0.0] * 3, "a": [before, before + 1, before + 2], "at": times})
    if kind == "parquet":
        frame["at"] = [datetime.fromisoformat(time).replace(tzinfo=UTC) for time in times[:2]] + [
            datetime(2026, 7, 2, 8, tzinfo=UTC)
        ]
        frame.to_parquet(tmp_path / "rows.parquet")
    elif kind == "csv":
        frame.to_csv(tmp_path / "rows.csv", index=False)
    else:
        frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)

    result = predict(
        "-n", captured, "-i", str(tmp_path / f"rows.{kind}"), "-O", "jsonl", "--event-time", "at"
    )

    assert [json.loads(line)["y"] for line in result.stdout.splitlines()] == [
        before,
        before + 1,
        before + 2,
    ]
    wait_until(lambda: len(logged_times()) == before + 3, 60, "the rows are logged")
    assert logged_times()[before:] == ["2026-07-01T10:00", "2026-07-01T10:00", "2026-07-02T08:00"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("b,a\n1,2\n", ["line 2", "no column 'at'"]),
        ("b,a,at\n1,2,2026-07-01\n1,2,\n", ["line 3", "at is None", "2013-07-01T12:30:00Z"]),
        ("b,a,at\n1,2,soon\n", ["line 2", "at is 'soon'", "2013-07-01T12:30:00Z"]),
    ],
)
def test_a_row_without_an_event_time_is_named(captured, text, names):
    message = said(predict("-n", captured, "-t", "csv", "--event-time", "at", given=text.encode()))
    assert mentions(message, *names)


def test_an_event_time_needs_a_deployment():
    result = predict("/nowhere", "--event-time", "at")
    assert (result.exit_code, mentions(result.stderr, "--event-time", "-n DEPLOYMENT")) == (2, True)


@pytest.mark.parametrize(
    ("rows", "name"), [("1,x\n", "one"), ("1,2\n" * 9 + "1,x\n" + "1,2\n" * 9, "many")]
)
def test_a_bad_row_is_one_failed_request(home, models, rows, name):
    home.create_deployment(name, models.once)

    def failed():
        result = CliRunner().invoke(main, ["log", "errors", name, "-o", "json"])
        if result.exit_code == 0:
            return json.loads(result.stdout)["failed"]
        return 0

    assert mentions(
        said(predict("-n", name, "-t", "csv", given=f"b,a\n{rows}".encode())), "column 'a'", "'x'"
    )
    assert mentions(said(predict("-n", name, "-t", "csv", given=b"b\n1\n")), "'a'")
    wait_until(lambda: failed() >= 2, 60, "both failures are logged")
    assert failed() == 2


def test_an_endpoint_is_asked_as_its_traffic_goes_and_in_parts_where_a_batch_is_too_large(
    home, models, folder, tmp_path
):
    home.create_deployment(
        "champion", models.twice, config={"server.max_body_bytes": 4096}, endpoint="shared"
    )

    assert (
        predict(
            "-n", "shared", "-i", str(folder / "rows.csv"), "-o", str(tmp_path / "out.csv")
        ).exit_code
        == 0
    )

    assert answers(tmp_path / "out.csv") == [{"y": 2 * row["y"]} for row in SUMS]
    assert predict("-n", "champion", "-O", "jsonl", given=b"[[1, 2]]").stdout == '{"y":6.0}\n'


def typed(*arguments, given=b"", after=""):
    """Run the command in a process of its own, which has imported nothing yet, and the
    code `after` it.
    """
    code = (
        "import sys; from mlflow_deploy_plugin.cli.commands import main; "
        f"main(sys.argv[1:], standalone_mode=False); {after}"
    )
    command = [sys.executable, "-c", code, "predict", *arguments]
    return subprocess.run(command, input=given, capture_output=True, check=True)


@pytest.mark.long
def test_a_server_is_asked_without_pandas(by, folder):
    code = "print('pandas' in sys.modules, file=sys.stderr)"
    ended = typed(*by["deployment"], "-i", str(folder / "rows.parquet"), "-O", "jsonl", after=code)
    assert ended.stderr == b"False\n"


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """The folder of a model without an ONNX form, which also writes on stdout."""
    folder = tmp_path_factory.mktemp("days") / "model"
    signature = ModelSignature(
        inputs=Schema([ColSpec("datetime", "when"), ColSpec("string", "name")])
    )
    mlflow.pyfunc.save_model(
        folder, python_model=Days(), signature=signature, pip_requirements=["mlflow"]
    )
    return str(folder)


def as_jsonl(frame):
    return frame.to_json(orient="records", lines=True, date_format="iso").encode()


def as_parquet(frame):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame), sink)
    return bytes(sink.getvalue())


@pytest.mark.long
@pytest.mark.parametrize(("kind", "encode"), [("jsonl", as_jsonl), ("parquet", as_parquet)])
def test_a_model_without_an_onnx_form_is_asked_as_mlflow_would(days, kind, encode):
    frame = pd.DataFrame(
        {"when": pd.to_datetime(["2013-01-01", "2013-07-04"]), "name": ["ana", "007"]}
    )

    ended = typed(days, "-t", kind, "-O", "jsonl", "--batch-rows", "1", given=encode(frame))

    assert ended.stdout == b'{"day":1,"name":"ANA"}\n{"day":185,"name":"007"}\n'


@pytest.mark.long
def test_a_deployment_without_an_onnx_form_is_sent_rows_of_parquet_that_mlflow_reads(
    home, tmp_path
):
    folder = save_pyfuncs(tmp_path, ["bytes"])["bytes"]
    rows = as_parquet(pd.DataFrame({"blob": [b"\xff\0\x01", b""], "extra": [float("inf"), None]}))
    spans = as_parquet(pd.DataFrame({"blob": [b"\0"], "span": pd.to_timedelta(["1h"])}))
    home.create_deployment("bytes", str(folder))
    try:
        answered = [
            predict(*way, "-t", "parquet", "-O", "jsonl", given=rows)
            for way in (["-n", "bytes"], [str(folder)])
        ]
        refused = predict("-n", "bytes", "-t", "parquet", "-O", "jsonl", given=spans)
    finally:
        home.delete_deployment("bytes")

    assert [result.stdout for result in answered] == ["3\n0\n"] * 2, answered
    assert refused.exit_code == 1
    assert "JSON" in refused.stderr


def test_a_wider_type_and_a_missing_value_come_late_into_a_parquet_file(tmp_path):
    out = tmp_path / "out.parquet"
    with (
        open_output(str(out), sys.stdout.buffer) as target,
        value_writer("parquet", target, "prediction") as write,
    ):
        write([{"score": None, "label": "x"}])
        write([{"score": 1, "label": None}])
        write([{"score": 0.5, "label": "y"}])

    assert pq.read_table(out).to_pydict() == {"score": [None, 1.0, 0.5], "label": ["x", None, "y"]}


def test_a_bar_is_drawn_on_a_terminal_only(folder, tmp_path, models):
    """The bar on a terminal reaches its end,
    and stdout contains only the predictions.
    """
    typed = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "predict",
        models.once,
        "-O",
        "jsonl",
    ]
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [*typed, "-i", str(folder / "rows.csv")],
            stdout=subprocess.PIPE,
            stderr=theirs,
            cwd=tmp_path,
        )
        os.close(theirs)
        output, _ = process.communicate(timeout=120)
        shown = terminal.read(100_000).decode()

    assert [json.loads(line) for line in output.splitlines()] == SUMS
    assert "100%" in shown
