"""A monitor of every kind from the log to its run in MLflow."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import NotInstalled
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.watch.monitors.evaluation import (
    judge_and_log,
    judge_window,
    judging_worker,
)
from mlflow_deploy_plugin.watch.result import WindowRequest
from tests.support.inference_log import LogWriter
from tests.support.refusals import mentions
from tests.watch.conftest import day_of_rows

CALM = datetime(2013, 4, 1, tzinfo=UTC)
SUMMER = datetime(2013, 7, 1, tzinfo=UTC)


def asked(world, window="2013-04-01/1d", **spec):
    return WindowRequest(
        "flights", "watch", MonitorSpec(**spec), parse_window(window), 1, world.settings
    )


def run(world, window="2013-04-01/1d", **spec):
    result = judge_and_log(asked(world, window, **spec))
    return result, result.run


def capture(world, day, shift=0.0):
    """Write the rows of a day to the log; a shift of 6 corresponds to a season."""
    rows = day_of_rows(np.random.default_rng(day.toordinal()), day, shift)
    LogWriter(Path(world.settings.inference_log)).write(rows)


def artifact(run_id, name):
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)).read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "require", "state"),
    [
        ("drift", "missing<=0.2", "no drift"),
        ("performance", "accuracy>=0.8", "not judged"),
        ("shadow", "disagreement<=0.1", "not judged"),
        ("service_level", "p99<=0.2", "not judged"),
    ],
)
def test_every_kind_logs_a_run(world, kind, require, state):
    capture(world, CALM)

    result, shown_by = run(world, kind=kind, min_rows=100, require=[require])

    assert result.state == state
    logged = mlflow.get_run(shown_by.run_id)
    assert logged.data.tags["onnxserve.verdict"] == state
    assert logged.data.metrics["rows"] == result.rows
    assert "flight-delay" in artifact(shown_by.run_id, "report.html")


def report_libraries():
    return {"matplotlib", "evidently"} & sys.modules.keys()


@pytest.mark.long
def test_judging_process_does_not_import_libraries_of_reports(world):
    capture(world, CALM)
    process = judging_worker()
    try:
        result = process.call(judge_window, asked(world, min_rows=100), seconds=60.0)
        imported = process.call(report_libraries, seconds=60.0)
    finally:
        process.end()

    assert result.state == "no drift"
    assert imported == set()


def test_reason_and_notes_are_single_lines(world, monkeypatch):
    from mlflow_deploy_plugin.watch.run import KINDS

    judge = lambda request: request.result(  # noqa: E731
        "not judged", "1 column: two\nlines", notes=["of two\nlines"]
    )
    monkeypatch.setitem(KINDS, "drift", judge)

    result, shown_by = run(world)

    assert result.reason == "1 column: two lines"
    assert result.notes == ("of two lines",)
    assert mlflow.get_run(shown_by.run_id).data.tags["onnxserve.reason"] == result.reason


def test_missing_evidently_is_reported_first(world, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("mlflow_deploy_plugin.watch.run.KINDS", {})
    with pytest.raises(NotInstalled, match=r"pip install 'mlflow-onnxserve\[monitoring\]'"):
        run(world)


@pytest.mark.long
def test_shifted_day_is_drift_in_mlflow(world):
    capture(world, SUMMER, shift=8)

    result, shown_by = run(world, "2013-07-01/1d", min_rows=100)

    assert result.state == "drift"
    run_id = shown_by.run_id
    logged = mlflow.get_run(run_id)
    (first, *_) = result.findings
    assert mentions(
        logged.data.tags["onnxserve.reason"], first.subject, first.change, "since 1 July 2013"
    )
    metrics = logged.data.metrics
    assert metrics["p_value"] <= metrics["false_alarm_rate"] == 0.05
    assert metrics["statistic"] == metrics["drift_score/temperature"] > metrics["threshold"]
    of_model = mlflow.MlflowClient().get_logged_model(world.model_id).metrics
    assert "p_value" in {metric.key for metric in of_model if metric.run_id == run_id}
