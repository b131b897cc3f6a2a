"""Tests of `onnxserve predict`, `batch` and `feedback`: file formats, models and
deployments, labels with a server and directly into the log, and errors.
"""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime

import mlflow.pyfunc
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.tabular.row_files import FILE_FORMATS, open_output, value_writer
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log, view_tables
from tests.support.commands import done, onnxserve, said
from tests.support.inference_log import LogWriter, rows_of
from tests.support.models import columns, write_model
from tests.support.pyfuncs import Days, save_pyfuncs
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

ROWS = 1200
FRAME = pd.DataFrame({"b": [row / 4 for row in range(ROWS)], "a": range(ROWS)})
SUMS = [{"y": row * 1.25} for row in range(ROWS)]


@pytest.fixture(scope="module")
def by(home, models):
    """The arguments of the same model in this process and in a server, whose small
    limit of a request splits the rows.
    """
    limit = {"server.max_body_bytes": 4096}
    home.create_deployment("once", models.once, config=limit, endpoint="sums")
    return {"model": models.once, "deployment": "-n once"}


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
            return json.loads(file.read_text())["predictions"]


@pytest.mark.parametrize(
    ("way", "kind"),
    [*(("model", kind) for kind in FILE_FORMATS), ("deployment", "csv"), ("deployment", "parquet")],
)
def test_rows_are_answered_in_order(by, folder, tmp_path, way, kind):
    out = tmp_path / f"out.{kind}"

    result = onnxserve(f"predict {by[way]} -i {folder}/rows.{kind} -o {out}")

    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == f"1,200 predictions in {out}\n"
    assert answers(out) == SUMS
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("document", "sums"),
    [
        (
            {"dataframe_split": {"columns": ["b", "a"], "data": [[1, 2], [3, 4]], "index": [7, 8]}},
            [3, 7],
        ),
        ({"dataframe_records": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]}, [3, 7]),
        ({"inputs": {"a": [1, 3], "b": [2, 4]}, "params": {"x": 1}}, [3, 7]),
        ({"inputs": {"a": 1, "b": 2}}, [3]),
        ({"a": [1, 3], "b": [2, 4]}, [3, 7]),
        ([[1, 2], [3, 4]], [3, 7]),
    ],
    ids=lambda document: str(document)[:24],
)
def test_json_documents_are_split_into_batches(by, document, sums):
    result = onnxserve(f"predict {by['model']} --batch-rows 1", given=json.dumps(document))

    assert json.loads(result.stdout) == {"predictions": [{"y": value} for value in sums]}


@pytest.mark.parametrize(
    ("way", "kind", "text", "names"),
    [
        ("model", "csv", "b,a\n{ok}1,x\n1,y\n{ok}", ["line 1202", "column 'a'", "'x'"]),
        ("model", "csv", '\ufeff"b",a\n{ok}1,"x\n{ok}', ["line 1202", "CSV"]),
        ("model", "csv", "c,a\n{ok}", ["'b'", "'c'", "a, b"]),
        ("model", "csv", "b,a\n", ["no rows"]),
        ("deployment", "jsonl", '{ok}{"a": 1, "b": "x"}\n', ["line 1201", "column 'b'", "'x'"]),
        ("model", "json", '[{"a": 1, "b": 2}, {"a": 1, "b": []}]', ["row 1", "column 'b'"]),
        ("model", "json", '{"x": {"y": 1}, "z": [1]}', ["no rows", "dataframe_split"]),
        ("deployment", "parquet", "a,b", ["row 0", "Parquet"]),
    ],
)
def test_invalid_row_leaves_the_output_unchanged(by, tmp_path, way, kind, text, names):
    good = {"csv": "1,2\n", "jsonl": '{"a": 1, "b": 2}\n'}.get(kind, "") * 1200
    rows = tmp_path / f"rows.{kind}"
    out = tmp_path / "out.csv"
    rows.write_text(text.replace("{ok}", good))
    out.write_text("before")

    message = said(onnxserve(f"predict {by[way]} -i {rows} -o {out}"))

    assert message.startswith(str(rows))
    assert mentions(message, *names)
    assert out.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("-n nobody -i /nowhere.csv", ["no deployment", "'nobody'", "once"]),
        ("-n onec", ["no deployment", "'onec'", "'once'"]),
        ("-n once -o out.xlsx", ["out.xlsx", ".csv .json .jsonl"]),
        ("/nowhere", ["folder /nowhere"]),
        ("-n once -i /nowhere.csv", ["file /nowhere.csv", "read", "No such file"]),
        ("-n once -o /nowhere/x.csv", ["file /nowhere/x.csv", "written", "folder /nowhere"]),
        ("-n idle", ["idle", "empty"]),
    ],
)
def test_impossible_prediction_is_refused(home, by, arguments, names):
    home.create_endpoint("idle")
    try:
        result = onnxserve(f"predict {arguments}", given=b'[{"a": 1, "b": 2}]')
        assert mentions(said(result), *names)
    finally:
        home.delete_endpoint("idle")


def logged_times():
    """The event times of July 2026 by the value of `a`."""
    select = "a, strftime(_event_time, '%Y-%m-%dT%H:%M') AS at"
    result = onnxserve("log query sums --window 2026-07-01/2d -o jsonl --select", select)
    rows = map(json.loads, result.stdout.splitlines())
    return {row["a"]: row["at"] for row in rows}


def test_event_times_reach_the_log(by, tmp_path):
    """Rows without an offset are in UTC; the second row is at 08:00 in UTC."""
    texts = pd.DataFrame({"b": 0.0, "at": ["2026-07-01T10:00:00", "2026-07-02T10:00:00+02:00"]})
    times = [datetime(2026, 7, 1, 10, tzinfo=UTC), datetime(2026, 7, 2, 8, tzinfo=UTC)]
    texts.assign(a=[0, 1]).to_csv(tmp_path / "rows.csv", index=False)
    texts.assign(a=[2, 3]).to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    texts.assign(a=[4, 5], at=times).to_parquet(tmp_path / "rows.parquet")

    shown = [
        done(f"predict -n once -i {tmp_path}/rows.{kind} -O jsonl --event-time at")
        for kind in ("csv", "jsonl", "parquet")
    ]

    assert "".join(shown) == "".join(f'{{"y":{value}.0}}\n' for value in range(6))
    wait_until(lambda: len(logged_times()) == 6, 60, "the rows are logged")
    assert logged_times() == dict(enumerate(["2026-07-01T10:00", "2026-07-02T08:00"] * 3))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("b,a\n1,2\n", ["line 2", "no column 'at'"]),
        ("b,a,at\n1,2,2026-07-01\n1,2,\n", ["line 3", "at is None", "2013-07-01T12:30:00Z"]),
        ("b,a,at\n1,2,soon\n", ["line 2", "at is 'soon'", "2013-07-01T12:30:00Z"]),
    ],
)
def test_row_without_event_time_is_named(by, text, names):
    result = onnxserve("predict -n once -t csv --event-time at", given=text)
    assert mentions(said(result), *names)


def test_bad_row_is_one_failed_request(by):
    where = "_message LIKE '%bad%'"

    def failed():
        return onnxserve("log query sums --failed -o jsonl --where", where).stdout.count("\n")

    for rows in ("1,bad\n", "1,2\n" * 9 + "1,bad\n" + "1,2\n" * 9):
        message = said(onnxserve("predict -n once -t csv", given=f"b,a\n{rows}"))
        assert mentions(message, "column 'a'", "'bad'")
    wait_until(lambda: failed() >= 2, 60, "both failures are logged")
    assert failed() == 2


def test_endpoint_of_one_deployment_predicts(by):
    assert onnxserve("predict -n sums -O jsonl", given="[[1, 2]]").stdout == '{"y":3.0}\n'


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
def test_deployment_predicts_without_pandas(by, folder):
    code = "print('pandas' in sys.modules, file=sys.stderr)"
    ended = typed("-n", "once", "-i", f"{folder}/rows.parquet", "-O", "jsonl", after=code)
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


def as_parquet(frame):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame), sink)
    return bytes(sink.getvalue())


@pytest.mark.long
def test_pyfunc_answers_as_in_mlflow(days):
    frame = pd.DataFrame(
        {"when": pd.to_datetime(["2013-01-01", "2013-07-04"]), "name": ["ana", "007"]}
    )

    rows = as_parquet(frame)
    ended = typed(days, "-t", "parquet", "-O", "jsonl", "--batch-rows", "1", given=rows)

    assert ended.stdout == b'{"day":1,"name":"ANA"}\n{"day":185,"name":"007"}\n'


@pytest.mark.long
def test_deployed_pyfunc_reads_parquet_rows(home, tmp_path):
    folder = save_pyfuncs(tmp_path, ["bytes"])["bytes"]
    rows = as_parquet(pd.DataFrame({"blob": [b"\xff\0\x01", b""], "extra": [float("inf"), None]}))
    spans = as_parquet(pd.DataFrame({"blob": [b"\0"], "span": pd.to_timedelta(["1h"])}))
    home.create_deployment("bytes", str(folder))
    try:
        answered = [
            onnxserve(f"predict {way} -t parquet -O jsonl", given=rows).stdout
            for way in ("-n bytes", folder)
        ]
        refused = onnxserve("predict -n bytes -t parquet -O jsonl", given=spans)
    finally:
        home.delete_deployment("bytes")

    assert answered == ["3\n0\n"] * 2
    assert refused.exit_code == 1
    assert "JSON" in refused.stderr


@pytest.mark.long
def test_failed_pyfunc_shows_traceback_on_request(tmp_path, monkeypatch, capfd):
    folder = save_pyfuncs(tmp_path, ["troubled"])["troubled"]
    monkeypatch.delenv("ONNXSERVE_LOG_LEVEL", raising=False)
    for is_shown in (False, True):
        failed = said(onnxserve(f"predict {folder} -t csv", given=b"do\nraise\n"))
        assert mentions(failed, "line 2", "KeyError")
        assert ("Traceback" in capfd.readouterr().err) is is_shown
        monkeypatch.setenv("ONNXSERVE_LOG_LEVEL", "ERROR")


def test_parquet_type_widens_after_later_rows(tmp_path):
    out = tmp_path / "out.parquet"
    with (
        open_output(str(out), sys.stdout.buffer) as target,
        value_writer("parquet", target, "prediction") as write,
    ):
        write([{"score": None, "label": "x"}])
        write([{"score": 1, "label": None}])
        write([{"score": 0.5, "label": "y"}])

    assert pq.read_table(out).to_pydict() == {"score": [None, 1.0, 0.5], "label": ["x", None, "y"]}


def test_terminal_shows_the_progress(folder, tmp_path, models, monkeypatch):
    out = tmp_path / "out.jsonl"
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal, os.fdopen(theirs, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        command = ["predict", models.once, "-i", f"{folder}/rows.csv", "-o", str(out)]
        main(command, standalone_mode=False)
        shown = terminal.read(100_000).decode()

    assert "1,200 rows" in shown
    assert answers(out) == SUMS


@pytest.mark.long
def test_batch_reports_bad_rows(tmp_path):
    model = write_model(tmp_path / "same", signature=columns(x="float"))
    (tmp_path / "rows.csv").write_text("id,x\na,1\nb,oops\nc,3\n")
    command = f"batch {model} -i {tmp_path}/rows.csv --keep id --workers 1 --folder {tmp_path}"

    failed = onnxserve(f"{command}/failed")
    skipped = onnxserve(f"{command}/out --on-error skip-row")
    left_out = onnxserve(f"{command}/none --on-error skip-part")

    assert mentions(said(failed), "rows.csv", "row 1", "'x'", "'oops'")
    assert skipped.exit_code == 0
    assert skipped.stdout.startswith("2 predictions of same in ")
    assert mentions(skipped.stderr, "1 bad rows", f"{tmp_path}/out/_rejected")
    assert (tmp_path / "out" / "rows.csv").read_text() == '"id","y"\n"a",1\n"c",3\n'
    assert left_out.exit_code == 1
    assert left_out.stderr.count("skipped: rows.csv: row 1") == 1


def test_batch_progress_without_a_terminal_is_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.cli.predict._LINE_SECONDS", 0)
    model = write_model(tmp_path / "same", signature=columns(x="float"))
    (tmp_path / "rows.csv").write_text("x\n" + "1\n" * 1000)

    result = onnxserve(f"batch {model} -i {tmp_path}/rows.csv --folder {tmp_path}/out --workers 1")

    line = r"[\d,]+ rows, [\d,]+ rows/s, [01] of 1 parts(, about [\d:]+ left)?"
    lines = result.stderr.splitlines()
    assert all(re.fullmatch(line, shown) for shown in lines)
    assert re.fullmatch(r"1,000 rows, [\d,]+ rows/s, 1 of 1 parts, about 0:00:00 left", lines[-1])


def ask(deployed, records):
    body = {"dataframe_records": records}
    return requests.post(f"{deployed['url']}/invocations", json=body, timeout=60)


@contextmanager
def capturing(home):
    """The log has hashes instead of the values of b, and a column that the model does
    not take.
    """
    home.update_endpoint("sums", {"capture.mask": "b", "capture.keys": "customer_id"})
    yield
    home.update_endpoint("sums", {"capture.mask": "", "capture.keys": ""})


@pytest.fixture
def captured(home, ids):
    with capturing(home):
        yield


@pytest.fixture(scope="module")
def ids(home, by):
    """The X-Prediction-Ids of a few requests of two rows, which are logged. No other
    row has their numbers in `a`.
    """
    deployed = home.get_deployment("once")
    numbers = range(5000, 5003)
    with capturing(home):
        sent = [ask(deployed, [{"a": number, "b": 1}, {"a": number, "b": 2}]) for number in numbers]
        ids = [answer.headers["X-Prediction-Id"] for answer in sent]
        wait_until(lambda: len(logged(ids)) == 6, 60, "all rows are logged")
    return ids


def logged(ids):
    """The logged rows of the requests with these ids."""
    log = open_log(load_settings().inference_log)
    tables = view_tables(log, View("sums"), ["_prediction_id", "_row", "a", "_label"])
    return [row for row in rows_of(tables) if row["_prediction_id"] in ids]


def labels(ids):
    """The labels of these rows."""
    found = {(row["a"], row["_row"]): row["_label"] for row in logged(ids)}
    return {place: label for place, label in found.items() if label is not None}


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
    expected = {
        (5000, 0): "1",
        (5000, 1): "0",
        (5001, 0): "late",
        (5001, 1): "late",
    }
    wait_until(lambda: labels(ids) == expected, 60, "the labels are beside their rows")


def test_predict_output_accepts_labels(captured, tmp_path):
    rows = tmp_path / "rows.parquet"
    out = tmp_path / "out.parquet"
    labels = tmp_path / "labels.jsonl"
    names = [f"{row:03}" for row in range(30)]
    pd.DataFrame({"b": 1.0, "a": range(30), "customer_id": names}).to_parquet(rows)

    done(f"predict -n once -i {rows} -o {out} --batch-rows 20")

    written = pq.read_table(out).to_pylist()
    assert [row["customer_id"] for row in written] == names
    assert [row["y"] for row in written] == [row + 1.0 for row in range(30)]
    assert [row["row"] for row in written] == [*range(20), *range(10)]
    assert len({row["prediction_id"] for row in written}) == 2
    labels.write_text("".join(json.dumps({**row, "label": 1}) + "\n" for row in written))
    (accepted,) = done(f"feedback sums --file {labels} --no-match").splitlines()
    assert mentions(accepted, "30 labels accepted")


@pytest.mark.long
def test_key_may_contain_a_masked_column(ids, captured, tmp_path):
    file = tmp_path / "labels.parquet"
    delays = {"a": [5002.0] * 3, "b": [1, 2, 3], "delayed": [True, False, True]}
    pq.write_table(pa.table(delays), file)

    result = onnxserve(f"feedback sums --file {file} --key a,b --label-column delayed")

    assert result.exit_code == 0
    assert result.stderr == ""
    assert mentions(result.stdout, "2 of 3", "1 unmatched")
    delayed = {(5002, 0): "true", (5002, 1): "false"}
    wait_until(lambda: labels(ids).items() >= delayed.items(), 60, "they are beside their rows")


def test_refused_row_leaves_the_other_rows(ids, captured):
    lines = [
        {"key": {"a": 5002, "b": 1}, "label": "x"},
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


def test_labels_are_logged_without_a_server(tmp_path, monkeypatch, new_home):
    monkeypatch.chdir(tmp_path)
    writer = LogWriter(tmp_path / "home" / "inference_log")
    times = [datetime(2013, 7, 1, tzinfo=UTC)] * 2
    columns = {
        "_event_time": times,
        "_prediction_id": ["p", "p"],
        "flight": [7, 8],
        "a": [0.0, 1.0],
    }
    writer.write(columns, endpoint="sums")
    command = "feedback sums --file labels.csv --key flight"

    def import_labels(rows, options=""):
        (tmp_path / "labels.csv").write_text(f"flight,label\n{rows}")
        return onnxserve(f"{command} {options}")

    result = import_labels("7,1\n9,1\n7,2\n")
    assert result.exit_code == 0, result.output
    assert mentions(result.stdout, "sums", "3 labels", str(writer.root), "1 of 2", "1 unmatched")
    rows = sorted(logged(["p"]), key=lambda row: row["a"])
    assert [row["_label"] for row in rows] == ["2", None]
    full = import_labels("7,2,2\n", "--rejects /dev/full")
    assert mentions(full.stderr.splitlines()[-1], "/dev/full", "No space left")
