"""Tests of the output and errors of `onnxserve drift run`. See
tests/watch/monitors/test_manual_runs.py.
"""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint, WantedVariant
from mlflow_deploy_plugin.watch.result import WindowRequest
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

DAY = datetime(2013, 7, 1, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")


@pytest.fixture
def home(tmp_path, new_database, monkeypatch):
    """An endpoint `flights` with a calm day and a shifted one in its log."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.onnx").touch()
    section = {"data": "model.onnx", "reference": {"data": "reference.parquet", "rows": 3000}}
    (model / "MLmodel").write_text(yaml.safe_dump({"flavors": {"onnxserve": section}}))
    times = [DAY - timedelta(days=30) + timedelta(minutes=14.4 * row) for row in range(3000)]
    pq.write_table(
        pa.table({"x": rng.normal(size=3000), "_event_time": pa.array(times, TIME)}),
        model / "reference.parquet",
    )
    state = tmp_path / "home" / "deployments" / "flights"
    state.mkdir(parents=True)
    (state / "spec.yaml").write_text(
        yaml.safe_dump({"name": "flights", "variants": {"flights": {"model": str(model)}}})
    )
    variant = WantedVariant(model_uri=str(model), model="model", version="unknown", folder=model)
    write_state(
        state / WANTED, Wanted(endpoints={"flights": WantedEndpoint(variants={"flights": variant})})
    )
    for days, shift in ((0, 0), (1, 9)):
        write_day(
            tmp_path / "home" / "inference_log",
            DAY + timedelta(days=days),
            rng.normal(shift, 1, 250),
        )
    with tracking_at(new_database(tmp_path)):
        yield tmp_path / "home"


def write_day(log, day, values):
    rows = len(values)
    folder = log / f"endpoint=flights/date={day:%Y-%m-%d}/hour=00"
    folder.mkdir(parents=True)
    table = {
        "_event_time": pa.array([day + timedelta(seconds=row) for row in range(rows)], TIME),
        "_model": ["model"] * rows,
        "_version": ["unknown"] * rows,
        # The segment must not be random, because it determines the rows that are
        # compared.
        "_segment": [f"{day:%Y%m%d}"] * rows,
        "_offset": pa.array([0] * rows, pa.int64()),
        "_row": pa.array(range(rows), pa.int32()),
        "x": values,
    }
    pq.write_table(pa.table(table), folder / "a-0.parquet")


def invoke(*arguments):
    return CliRunner().invoke(main, ["drift", "run", *arguments])


@pytest.mark.long
def test_it_prints_the_verdict_its_reason_and_the_run(home):
    drifted = invoke("flights")
    calm = invoke("flights", "--window", "2013-07-01/1d")
    refused = invoke("flights", "--min-rows", "300", "--monitor", "nightly")
    values = json.loads(invoke("flights", "-o", "json").stdout)

    assert [result.exit_code for result in (drifted, calm, refused)] == [0, 0, 0]
    assert drifted.stdout.startswith("flights drift 2013-07-02/2013-07-03: drift\n")
    change = r"mean -0\.\d+ \(Tuesdays\) → 9\.\d+, higher; "
    assert re.search(rf"\n  x: {change}since 2 July 2013", drifted.stdout)
    figures = r"distribution +mean [\d.]+ SD +threshold [\d.]+ SD"
    history = f"{change}drift since the window of 2 July 2013"
    assert re.search(rf"\n  x +{figures} .*{history}\n", drifted.stdout)
    assert (
        "\n  SD: standard deviations of the measure in the reference's own windows"
        in drifted.stdout
    )
    assert [values["findings"][0][name] for name in ("measure", "unit")] == ["mean", "SD"]
    times = [values["findings"][0][name] for name in ("since", "since_end")]
    assert times == ["2013-07-02T00:00:00+00:00", "2013-07-03T00:00:00+00:00"]
    assert values["findings"][0]["in_a_row"] == 1
    assert values["findings"][0]["change"].endswith(", higher")
    in_run = mlflow.artifacts.load_dict(f"runs:/{values['run_id']}/verdict.json")
    assert in_run["findings"] == values["findings"]
    assert values["verdict"] == "drift"
    assert values["rows"] == 250
    assert values["findings"][0]["subject"] == "x"
    assert drifted.stderr.splitlines() == [
        "judging 2013-07-02/2013-07-03 of flights: drift",
        "reading the reference, training",
        "reading 250 rows of the window",
        "comparing 250 rows with the reference's own windows",
        "drawing the report",
        "logging the report to the experiment onnxserve/flights",
    ]
    assert calm.stdout.startswith("flights drift 2013-07-01/2013-07-02: no drift\n")
    assert refused.stdout.startswith("flights nightly 2013-07-02/2013-07-03: not judged\n")
    assert mentions(refused.stdout, "250 rows", "min_rows is 300")
    assert mentions(refused.stdout, "note", "min_rows=300")
    experiment = mlflow.get_experiment_by_name("onnxserve/flights")
    runs = mlflow.search_runs(
        [experiment.experiment_id], "tags.`onnxserve.verdict` != ''", output_format="list"
    )
    assert len(runs) == 3
    runs += mlflow.search_runs(
        [experiment.experiment_id], "tags.`onnxserve.tried` != ''", output_format="list"
    )
    assert [run.data.tags["onnxserve.monitor"] for run in runs[3:]] == ["nightly"]
    text = drifted.stdout + calm.stdout + refused.stdout + str(values)
    assert all(run.info.run_id in text for run in runs)


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (["nothing"], 1, ["no endpoint", "'nothing'", "flights"]),
        (["flights", "--window", "soon"], 2, ["window 'soon'", "START/END"]),
        (["flights", "--window", "2001-01-01/1d"], 1, ["2013-07-02/2013-07-03"]),
        (["flights", "--false-alarm-rate", "1"], 2, ["'--false-alarm-rate'", "0<x<1"]),
        (["flights", "--min-rows", "0"], 2, ["'--min-rows'", "x>=1"]),
        (["flights", "--columns", "xx"], 1, ["'xx'", "'x'"]),
        (["flights", "--exclude", "x,xx"], 1, ["'xx'", "'x'"]),
    ],
)
def test_invalid_arguments_give_a_clear_error_without_a_traceback(home, arguments, code, names):
    result = invoke(*arguments)

    assert result.exit_code == code
    assert mentions(result.stderr, *names)
    assert "Traceback" not in result.output


@pytest.mark.long
def test_columns_are_named_for_one_window(home):
    judged = json.loads(invoke("flights", "--columns", "x", "-o", "json").stdout)
    nothing = json.loads(invoke("flights", "--exclude", "x", "-o", "json").stdout)

    assert judged["verdict"] == "drift"
    assert nothing["verdict"] == "not judged"
    run = mlflow.MlflowClient().get_run(nothing["run_id"])
    assert run.data.tags["onnxserve.tried"] == "exclude=x"


@pytest.mark.long
def test_every_command_judges_the_same_window_with_one_function_and_the_same_verdict(
    home, monkeypatch, capsys
):
    # The imports take seconds, and every worker imports every test.
    from mlflow_deploy_plugin.watch.run import KINDS
    from projects.flight_delay import drift

    requests: list[WindowRequest] = []
    judge = KINDS["drift"]

    def recorded(request):
        requests.append(request)
        return judge(request)

    monkeypatch.setitem(KINDS, "drift", recorded)
    window = ["--window", "2013-07-02/1d"]
    project_run = mlflow.MlflowClient().create_run("0").info.run_id

    runs = [
        json.loads(CliRunner().invoke(main, [*command, "flights", *window, "-o", "json"]).stdout)[
            "run_id"
        ]
        for command in (["monitor", "run"], ["drift", "run"])
    ]
    monkeypatch.setenv("MLFLOW_RUN_ID", project_run)
    monkeypatch.setattr("sys.argv", ["drift", *window])
    drift.main()

    assert project_run in capsys.readouterr().out
    verdicts = [
        mlflow.artifacts.load_dict(f"runs:/{run}/verdict.json") for run in (*runs, project_run)
    ]
    assert [verdict.pop("revision") for verdict in verdicts] == [1, 2, 3]
    assert verdicts[0]["state"] == "drift"
    assert verdicts[0] == verdicts[1] == verdicts[2]
    same = [replace(request, revision=1) for request in requests]
    assert same[0] == same[1] == same[2]


def test_comparing_two_files_needs_no_endpoint(home, tmp_path):
    rng = np.random.default_rng(0)
    files = (("training.csv", 0, 2000), ("recent.csv", 2, 250), ("few.csv", 0, 5))
    for name, shift, count in files:
        values = "\n".join(map(str, rng.normal(shift, 1, count)))
        (tmp_path / name).write_text(f"x\n{values}\n")

    result = invoke("mine", "--rows", "recent.csv", "--reference", "training.csv")
    coded = [
        invoke("mine", "--rows", rows, "--reference", "training.csv", "--exit-code").exit_code
        for rows in ("recent.csv", "few.csv")
    ]
    half = invoke("mine", "--rows", "recent.csv")

    assert result.exit_code == 0, result.output
    assert coded == [1, 3]
    assert re.match(r"mine drift .*: drift\n  250 rows\n  x: mean ", result.stdout)
    assert "experiment onnxserve/mine" in result.stdout
    assert half.exit_code == 2
    assert mentions(half.stderr, "--rows", "--reference")
