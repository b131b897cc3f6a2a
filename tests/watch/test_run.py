"""A monitor of every kind from the log to its run in MLflow."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import mlflow
import pytest

from mlflow_deploy_plugin.core.errors import NotInstalled
from mlflow_deploy_plugin.core.spec.monitors import MonitorKind, MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.watch.drift.sketches.relations import RELATIONS
from mlflow_deploy_plugin.watch.result import WindowRequest
from tests.support.refusals import mentions

CALM = datetime(2013, 4, 1, tzinfo=UTC)
SUMMER = datetime(2013, 7, 1, tzinfo=UTC)


def run(world, window="2013-04-01/1d", **spec):
    # The import of Evidently takes seconds, and every worker imports every test.
    from mlflow_deploy_plugin.watch.run import run_monitor

    request = WindowRequest(
        "flights", "watch", MonitorSpec(**spec), parse_window(window), 1, world.settings
    )
    result = run_monitor(request)
    return result, result.run


def artifact(run_id, name):
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)).read_text()


def test_every_kind_of_the_spec_has_its_function():
    from mlflow_deploy_plugin.watch.run import KINDS

    assert set(KINDS) == set(get_args(MonitorKind))


@pytest.mark.long
def test_every_kind_logs_a_run_with_its_verdict(world):
    world.capture_day(CALM)
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "drift": ({"require": ["missing<=0.2"]}, "no drift"),
        "performance": ({"require": ["accuracy>=0.8"]}, "not judged"),
        "shadow": ({"require": ["disagreement<=0.1"]}, "not judged"),
        "service_level": ({"require": ["p99<=0.2"]}, "not judged"),
    }

    for kind, (spec, state) in cases.items():
        result, shown_by = run(world, kind=kind, min_rows=100, **spec)

        assert kind == kind
        assert result.state == state
        logged = mlflow.get_run(shown_by.run_id)
        assert logged.data.tags["onnxserve.verdict"] == state
        assert logged.data.metrics["rows"] == result.rows
        page = mlflow.artifacts.download_artifacts(
            run_id=shown_by.run_id, artifact_path="report.html"
        )
        assert "flight-delay" in Path(page).read_text()


def test_a_column_whose_name_has_two_lines_makes_a_reason_of_one(world, monkeypatch):
    from mlflow_deploy_plugin.watch.run import KINDS

    judge = lambda request: request.result(  # noqa: E731
        "not judged", "1 column: two\nlines", notes=["of two\nlines"]
    )
    monkeypatch.setitem(KINDS, "drift", judge)

    result, shown_by = run(world)

    assert result.reason == "1 column: two lines"
    assert result.notes == ("of two lines",)
    assert mlflow.get_run(shown_by.run_id).data.tags["onnxserve.reason"] == result.reason


def test_an_empty_window_is_a_run_as_well(world):
    result, shown_by = run(world)

    assert result.state == "not judged"
    assert mentions(result.reason, "no rows")
    assert mlflow.get_run(shown_by.run_id).data.tags["onnxserve.reason"] == result.reason


def test_missing_report_package_is_reported_before_any_data_is_read(world, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("mlflow_deploy_plugin.watch.run.KINDS", {})
    with pytest.raises(NotInstalled, match=r"pip install 'mlflow-onnxserve\[monitoring\]'"):
        run(world)


@pytest.mark.long
def test_a_reference_that_is_named_and_not_there_is_an_outcome(world):
    world.capture_day(CALM)

    result, _ = run(world, min_rows=100, reference="dataset:/nowhere.parquet")

    assert result.state == "not judged"
    assert mentions(result.reason, "/nowhere.parquet")


@pytest.mark.long
def test_shifted_day_is_drift_and_its_run_has_the_findings(world):
    world.capture_day(SUMMER, shift=8)

    result, shown_by = run(world, "2013-07-01/1d", min_rows=100)

    assert result.state == "drift"
    logged = mlflow.get_run(shown_by.run_id)
    assert mlflow.get_experiment(logged.info.experiment_id).name == "onnxserve/flights"
    assert logged.info.status == "FINISHED"
    wanted = {
        "onnxserve.endpoint": "flights",
        "onnxserve.model": "flight-delay",
        "onnxserve.version": "1",
        "onnxserve.window.start": "2013-07-01T00:00:00+00:00",
        "onnxserve.window.end": "2013-07-02T00:00:00+00:00",
        "onnxserve.verdict": "drift",
        "onnxserve.monitor": "watch",
    }
    assert wanted.items() <= logged.data.tags.items()
    (first, *_) = result.findings
    assert mentions(
        logged.data.tags["onnxserve.reason"], first.subject, first.change, "since 1 July 2013"
    )
    metrics = logged.data.metrics
    assert metrics["rows"] == 120
    assert metrics["p_value"] <= metrics["false_alarm_rate"] == 0.05
    assert metrics["statistic"] == metrics["drift_score/temperature"] > metrics["threshold"]
    assert 0 < metrics["share_of_drifted_columns"] <= 1
    version = mlflow.MlflowClient().get_model_version("flight-delay", "1")
    assert version.tags["onnxserve.monitor.flights/watch"] == "drift"
    assert (
        version.tags["onnxserve.monitor.flights/watch/report"] == f"{shown_by.run_id}/report.html"
    )
    of_model = mlflow.MlflowClient().get_logged_model(world.model_id).metrics
    assert {metric.run_id for metric in of_model} == {shown_by.run_id}
    assert "p_value" in {metric.key for metric in of_model}

    verdict = json.loads(artifact(shown_by.run_id, "verdict.json"))
    assert verdict["state"] == "drift"
    assert verdict["window"]["start"] == "2013-07-01T00:00:00+00:00"
    report = json.loads(artifact(shown_by.run_id, "evidently.json"))
    described = {
        metric["config"]["column"] for metric in report["metrics"] if "column" in metric["config"]
    }
    judged = {
        finding["subject"] for finding in verdict["findings"] if finding["check"] == "distribution"
    }
    assert described == judged - {RELATIONS}
    page = artifact(shown_by.run_id, "report.html")
    assert "flight-delay version 1" in page
    assert "plotly" in page


@pytest.mark.long
def test_the_job_of_an_mlflow_project_logs_to_the_run_of_the_project(world, monkeypatch):
    world.capture_day(CALM)
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)

    result, shown_by = run(world, "2013-04-01/1d", min_rows=100)

    assert shown_by.run_id == run_id
    assert shown_by.experiment == "Default"
    logged = mlflow.get_run(run_id)
    assert logged.info.status == "RUNNING"  # MLflow ends the run of a project.
    assert logged.data.tags["onnxserve.verdict"] == result.state
    assert "<html" in artifact(run_id, "report.html")


def test_too_few_rows_are_not_judged_and_the_run_says_so(world):
    world.capture_day(CALM)

    result, shown_by = run(world, min_rows=200)

    assert result.state == "not judged"
    logged = mlflow.get_run(shown_by.run_id)
    assert logged.data.tags["onnxserve.verdict"] == "not judged"
    assert mentions(logged.data.tags["onnxserve.reason"], "120 rows", "min_rows is 200")
    assert "p_value" not in logged.data.metrics
    assert "min_rows is 200" in artifact(shown_by.run_id, "report.html")


@pytest.mark.long
def test_rows_are_compared_with_the_reference_of_the_version_that_answered_most_of_them(world):
    other = world.write_model("2", world.reference().slice(0, 500))
    mlflow.MlflowClient().create_model_version("flight-delay", source=str(other))
    world.capture_day(CALM, rows=100, version="2")
    world.capture_day(CALM, rows=30, version="1")

    result, _ = run(world, min_rows=50)

    assert result.version == "2"
    assert result.rows == 100
    assert result.figures["reference_rows"] == 500
    assert any(mentions(note, "30 rows", "flight-delay version 1") for note in result.notes)


@pytest.mark.long
def test_a_stopped_and_deleted_endpoint_is_judged_from_its_log_and_the_registry(world):
    world.capture_day(CALM)
    for path in world.state_dir.iterdir():
        path.unlink()

    result, _ = run(world, min_rows=100)

    assert result.state in ("drift", "no drift")


def test_a_model_without_a_reference_is_not_judged_and_says_how_to_log_one(world):
    world.serve(world.write_model("2", None), "2")
    world.capture_day(CALM, version="2")

    result, _ = run(world)

    assert result.state == "not judged"
    assert mentions(result.reason, "version 2", "no reference")


def test_a_reference_without_event_times_is_not_judged_and_says_how_to_log_them(world):
    world.serve(world.write_model("2", world.reference().drop_columns(["_event_time"])), "2")
    world.capture_day(CALM, version="2")

    result, _ = run(world, min_rows=100)

    assert result.state == "not judged"
    assert "event_time=" in result.reason
