"""The drift job from the log to the run in MLflow."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import mlflow
import pytest
import yaml

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.inference_log.windows import parse_window
from mlflow_deploy_plugin.store import open_store
from mlflow_deploy_plugin.store.monitors import Monitors

CALM, SUMMER = datetime(2013, 4, 1, tzinfo=UTC), datetime(2013, 7, 1, tzinfo=UTC)


def run_drift(*arguments, **named):
    # Evidently, which it brings, takes seconds to import, and every worker of a run imports every test
    from mlflow_deploy_plugin.monitoring import drift

    return drift.run_drift(*arguments, **named)


def artifact(run_id, name):
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)).read_text()


def test_a_shifted_day_is_called_drifted_and_its_run_is_found_from_the_version(world):
    world.capture_day(SUMMER, shift=8)

    result = run_drift("flights", parse_window("2013-07-01/1d"), min_rows=100, settings=world.settings)

    assert result.judgement.state == "drift"
    run = mlflow.get_run(result.run.run_id)
    assert mlflow.get_experiment(run.info.experiment_id).name == "onnxserve/flights"
    assert run.info.status == "FINISHED"
    wanted = {
        "onnxserve.endpoint": "flights",
        "onnxserve.model": "flight-delay",
        "onnxserve.version": "1",
        "onnxserve.window.start": "2013-07-01T00:00:00+00:00",
        "onnxserve.window.end": "2013-07-02T00:00:00+00:00",
        "onnxserve.verdict": "drift",
        "onnxserve.monitor": "drift",
    }
    assert wanted.items() <= run.data.tags.items()
    metrics = run.data.metrics
    assert metrics["rows"] == 120
    assert metrics["p_value"] <= metrics["false_alarm_rate"] == 0.05
    assert metrics["statistic"] == metrics["drift_score/temperature"] > metrics["threshold"]
    assert 0 < metrics["share_of_drifted_columns"] <= 1
    version = mlflow.MlflowClient().get_model_version("flight-delay", "1")
    assert version.tags["onnxserve.monitor.flights.drift"] == "drift"
    assert version.tags["onnxserve.monitor.flights.drift.report"] == f"{result.run.run_id}/report.html"


def test_the_run_holds_the_report_and_the_verdict_and_they_agree(world):
    world.capture_day(SUMMER, shift=8)

    result = run_drift("flights", parse_window("2013-07-01/1d"), min_rows=100, settings=world.settings)

    verdict = json.loads(artifact(result.run.run_id, "verdict.json"))
    assert (verdict["state"], verdict["window"]["start"]) == ("drift", "2013-07-01T00:00:00+00:00")
    report = json.loads(artifact(result.run.run_id, "evidently.json"))
    scores = {m["config"]["column"]: m["value"] for m in report["metrics"] if "ValueDrift" in m["metric_name"]}
    findings = [found for found in verdict["findings"] if found["check"] == "distribution"]
    assert scores == {found["subject"]: pytest.approx(found["value"]) for found in findings}
    page = artifact(result.run.run_id, "report.html")
    assert "flight-delay version 1" in page
    assert "plotly" in page


def test_the_job_of_an_mlflow_project_logs_to_the_run_of_the_project(world, monkeypatch):
    world.capture_day(CALM)
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)

    result = run_drift("flights", parse_window("2013-04-01/1d"), min_rows=100, settings=world.settings)

    assert (result.run.run_id, result.run.experiment) == (run_id, "Default")
    run = mlflow.get_run(run_id)
    assert run.info.status == "RUNNING"  # MLflow ends the run of a project itself
    assert run.data.tags["onnxserve.verdict"] == result.judgement.state
    assert "<html" in artifact(run_id, "report.html")


def test_the_metrics_are_linked_to_the_logged_model(world):
    world.capture_day(CALM)

    result = run_drift("flights", parse_window("2013-04-01/1d"), min_rows=100, settings=world.settings)

    logged = mlflow.MlflowClient().get_logged_model(world.model_id)
    assert {metric.run_id for metric in logged.metrics} == {result.run.run_id}
    assert "p_value" in {metric.key for metric in logged.metrics}


def test_the_latest_whole_day_with_rows_is_judged_by_the_endpoints_own_monitor(world):
    world.capture_day(CALM)
    world.capture_day(SUMMER)
    document = yaml.safe_load((world.state_dir / "spec.yaml").read_text())
    document["monitors"] = {"daily": {"min_rows": 60, "false_alarm_rate": 0.1}}
    (world.state_dir / "spec.yaml").write_text(yaml.safe_dump(document))

    result = run_drift("flights", settings=world.settings, clock=lambda: datetime(2013, 7, 1, 12, tzinfo=UTC))

    assert str(result.judgement.window) == "2013-04-01/2013-04-02"
    assert (result.judgement.monitor, result.judgement.figures["false_alarm_rate"]) == ("daily", 0.1)
    with pytest.raises(NotFound, match="no monitor 'weekly'; it has daily"):
        run_drift("flights", monitor="weekly", settings=world.settings)


def test_too_few_rows_are_not_judged_and_the_run_says_so(world):
    world.capture_day(CALM)

    result = run_drift("flights", settings=world.settings)

    assert result.judgement.state == "not judged"
    run = mlflow.get_run(result.run.run_id)
    assert run.data.tags["onnxserve.verdict"] == "not judged"
    assert run.data.tags["onnxserve.reason"] == "the window has 120 rows; min_rows is 200"
    assert "p_value" not in run.data.metrics
    assert "min_rows is 200" in artifact(result.run.run_id, "report.html")


def test_rows_are_compared_with_the_reference_of_the_version_that_answered_most_of_them(world):
    other = world.write_model("2", world.reference().slice(0, 500))
    mlflow.MlflowClient().create_model_version("flight-delay", source=str(other))
    world.capture_day(CALM, rows=100, version="2")
    world.capture_day(CALM, rows=30, version="1")

    result = run_drift("flights", min_rows=50, settings=world.settings)

    assert (result.judgement.version, result.judgement.rows, result.judgement.figures["reference_rows"]) == (
        "2",
        100,
        500,
    )
    assert any("30 rows of the window were answered by flight-delay version 1" in n for n in result.judgement.notes)


def test_a_stopped_and_deleted_endpoint_is_judged_from_its_log_and_the_registry(world):
    world.capture_day(CALM)
    for path in world.state_dir.iterdir():
        path.unlink()

    result = run_drift("flights", min_rows=100, settings=world.settings)

    assert result.judgement.state in ("drift", "no drift")


def test_a_window_that_was_judged_already_gets_a_further_revision(world):
    world.capture_day(CALM)
    with closing(open_store(world.settings.store_url)) as store:
        monitors = Monitors(store)
        begun = monitors.add("flights", "drift", CALM, CALM + timedelta(days=1))
        monitors.update(replace(begun, state="judged", verdict="drift", run_id="of the schedule"))

        result = run_drift("flights", settings=world.settings)

        first, second = monitors.windows("flights", "drift")
    assert (first.verdict, first.run_id) == ("drift", "of the schedule")
    assert (second.revision, second.state, second.verdict) == (2, "judged", "not judged")
    assert (second.rows, second.log_rows, second.run_id) == (120, 120, result.run.run_id)
    assert mlflow.get_run(result.run.run_id).data.tags["onnxserve.window.revision"] == "2"


def test_a_model_without_a_reference_is_not_judged_and_says_how_to_log_one(world):
    world.serve(world.write_model("2", None), "2")
    world.capture_day(CALM, version="2")

    result = run_drift("flights", settings=world.settings)

    assert result.judgement.state == "not judged"
    assert "version 2 has no reference" in result.judgement.reason


def test_a_reference_without_event_times_is_not_judged_and_says_how_to_log_them(world):
    world.serve(world.write_model("2", world.reference().drop_columns(["_event_time"])), "2")
    world.capture_day(CALM, version="2")

    result = run_drift("flights", min_rows=100, settings=world.settings)

    assert result.judgement.state == "not judged"
    assert "event_time=" in result.judgement.reason


def test_an_unknown_endpoint_and_an_empty_window_name_what_there_is(world):
    world.capture_day(CALM)

    with pytest.raises(NotFound, match="no endpoint 'flihgts'; did you mean 'flights'"):
        run_drift("flihgts", settings=world.settings)
    with pytest.raises(
        NotFound, match=r"no captured rows in 2014-01-01/2014-01-02; the latest .* 2013-04-01/2013-04-02"
    ):
        run_drift("flights", parse_window("2014-01-01/1d"), settings=world.settings)
