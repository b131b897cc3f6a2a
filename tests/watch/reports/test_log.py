"""A judged window in MLflow has one run, even if several processes report it
repeatedly.
"""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import pytest
from boto3.exceptions import S3UploadFailedError
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import RegistryUnavailable
from mlflow_deploy_plugin.watch.reports.log import build_report, log_result, to_metrics
from mlflow_deploy_plugin.watch.result import Finding
from tests.support.refusals import mentions, refused
from tests.support.results import FIRST, past_of, result_of


def all_runs_of(client, endpoint):
    experiment = client.get_experiment_by_name(f"onnxserve/{endpoint}")
    if experiment:
        return client.search_runs([experiment.experiment_id])
    return []


def runs_of(client, endpoint):
    """Return the runs of windows."""
    return [run for run in all_runs_of(client, endpoint) if "onnxserve.series" not in run.data.tags]


def artifact(run_id, name):
    with TemporaryDirectory() as folder:
        file = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=name, dst_path=folder
        )
        return Path(file).read_bytes()


class Unsendable(dict):
    def items(self):
        raise ConnectionError("Connection refused")


def test_run_has_files_metrics_and_tags(tracking):
    result = result_of(endpoint="whole", temperature=6.5, noise=0.5, model_id="m-not-here")

    past = past_of(result_of(-1, temperature=0.5))

    run = log_result(result, {**build_report(result, past), "sketches.parquet": b"\xffPAR1"})

    logged = tracking.get_run(run.run_id)
    assert run.experiment == "onnxserve/whole"
    assert logged.info.status == "FINISHED"
    assert {
        "onnxserve.endpoint": "whole",
        "onnxserve.monitor": "daily",
        "onnxserve.model": "flight-delay",
        "onnxserve.version": "1",
        "onnxserve.window.start": "2013-07-01T00:00:00+00:00",
        "onnxserve.window.end": "2013-07-02T00:00:00+00:00",
        "onnxserve.window.revision": "1",
        "onnxserve.verdict": "drift",
    }.items() <= logged.data.tags.items()
    assert (
        logged.data.metrics.items()
        >= {"statistic": 6.5, "threshold": 3.0, "distribution_score/noise": 0.5}.items()
    )
    point = tracking.get_metric_history(run.run_id, "statistic")[0]
    assert point.timestamp == result.window.end_us // 1000
    assert artifact(run.run_id, "sketches.parquet") == b"\xffPAR1"
    page = artifact(run.run_id, "report.html").decode()
    caption = "temperature, score in SD"
    words = "newest 6.5, threshold 3, an alarm in 1 of 2 windows"
    assert f"<figcaption>{caption}</figcaption><img alt='{caption}: {words}'" in page
    assert "<title>whole, daily, 2013-07-01/2013-07-02</title></head>" in page
    assert "aria-label='Findings'><table>" in page


def test_tried_bounds_have_no_verdict(tracking):
    result = result_of(endpoint="tried", statistic=6.5)
    verdict_run = log_result(result, {}).run_id
    tried = [replace(result, state="no drift", tried=bounds) for bounds in ("a=1", "a=2")]

    runs = [log_result(entry, {}).run_id for entry in (tried[0], *tried)]

    assert len({*runs, verdict_run}) == 3
    tags = tracking.get_run(runs[2]).data.tags
    assert (tags["onnxserve.tried"], tags["onnxserve.tried.verdict"]) == ("a=2", "no drift")
    assert "onnxserve.verdict" not in tags
    assert tracking.get_run(verdict_run).data.tags["onnxserve.verdict"] == "drift"
    (series,) = [
        run for run in all_runs_of(tracking, "tried") if "onnxserve.series" in run.data.tags
    ]
    assert len(tracking.get_metric_history(series.info.run_id, "statistic")) == 1


def test_endpoints_of_one_name_have_separate_runs(tracking):
    first, second = (
        result_of(endpoint="anew", endpoint_created=f"2026-11-20T1{hour}:00:00+00:00")
        for hour in (1, 2)
    )

    runs = [log_result(judged, {}).run_id for judged in (first, second, first)]

    assert runs[0] == runs[2] != runs[1]
    assert all("onnxserve.superseded_by" not in run.data.tags for run in runs_of(tracking, "anew"))
    # Each has its own run for all windows.
    assert len(all_runs_of(tracking, "anew")) == 4


def test_metric_names_are_valid_for_mlflow(tracking):
    names = ["a/b%[x]", "..", "../../etc", "x" * 400, "ü mlaut", ""]
    scores = dict.fromkeys(names, 1.0)

    run = log_result(result_of(endpoint="names", **scores), {})

    logged = {
        name
        for name in tracking.get_run(run.run_id).data.metrics
        if name.startswith("distribution_score/")
    }
    assert len(logged) == len(names)


def test_version_links_to_the_newest_report(tracking):
    # An older window is judged last.
    newest, _ = (
        log_result(result_of(day, "led", temperature=score), {})
        for day, score in ((2, 1.0), (0, 9.0))
    )

    version = tracking.get_model_version("flight-delay", "1")
    report = f"{newest.run_id}/report.html"
    assert version.tags["onnxserve.monitor.led/daily"] == "no drift"
    assert version.tags["onnxserve.monitor.led/daily/report"] == report
    assert version.description.startswith("Trained on a Monday.\n\n")
    (row,) = [line for line in version.description.splitlines() if "led, daily" in line]
    assert mentions(row, "no drift", "2013-07-03T00:00 – 2013-07-04T00:00", report)


def test_names_with_dots_are_distinguished(tracking):
    number = tracking.create_model_version("flight-delay", source=".").version
    names = (("a", "b.c"), ("a.b", "c"))
    for endpoint, monitor in names:
        log_result(result_of(0, endpoint, monitor=monitor, version=str(number)), {})

    version = tracking.get_model_version("flight-delay", number)
    for endpoint, monitor in names:
        assert version.tags[f"onnxserve.monitor.{endpoint}/{monitor}"] == "no drift"
        assert version.description.count(f"| {endpoint}, {monitor} |") == 1


def test_missing_or_unregistered_version_is_logged(tracking):
    for version in ("77", ""):
        assert log_result(result_of(endpoint="gone", version=version), {}).run_id
    assert len(runs_of(tracking, "gone")) == 1


def test_abandoned_run_is_reused(tracking, monkeypatch):
    result = result_of(endpoint="left")
    create = MlflowClient.create_run

    def die_after(*arguments, **named):
        create(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "create_run", die_after)
        with pytest.raises(KeyboardInterrupt):
            log_result(result, {})
    (left,) = runs_of(tracking, "left")

    assert log_result(result, {}).run_id == left.info.run_id
    assert len(runs_of(tracking, "left")) == 1


def test_deleted_duplicate_run_is_ignored(tracking, monkeypatch):
    result = result_of(endpoint="two")
    log_batch = MlflowClient.log_batch
    first = log_result(result, {})
    run = tracking.get_run(first.run_id)
    tags = {name: value for name, value in run.data.tags.items() if name != "onnxserve.verdict"}
    tracking.create_run(run.info.experiment_id, tags=tags)

    def deleted_before(client, run_id, **logged):
        if any(tag.key == "onnxserve.superseded_by" for tag in logged.get("tags", ())):
            client.delete_run(run_id)
        log_batch(client, run_id, **logged)

    monkeypatch.setattr(MlflowClient, "log_batch", deleted_before)

    assert log_result(result, {}).run_id == first.run_id
    assert [logged_run.info.run_id for logged_run in runs_of(tracking, "two")] == [first.run_id]


def test_run_is_continued_after_an_outage(tracking):
    result = result_of(endpoint="down")

    with refused(RegistryUnavailable, "endpoint down", "connection refused"):
        log_result(result, Unsendable())
    assert [run.info.status for run in runs_of(tracking, "down")] == ["FAILED"]
    run = log_result(result, {})
    assert [(other.info.run_id, other.info.status) for other in runs_of(tracking, "down")] == [
        (run.run_id, "FINISHED")
    ]


def test_unavailable_artifact_store_is_an_outage(tracking, monkeypatch):
    def fail(*_arguments):
        raise S3UploadFailedError(
            "Could not connect to the endpoint URL: http://s3.example/reports"
        )

    monkeypatch.setattr(MlflowClient, "log_artifacts", fail)

    with refused(RegistryUnavailable, "artifact store", "http://s3.example"):
        log_result(result_of(endpoint="artifacts"), {"a.txt": "a"})


def test_series_run_has_all_windows(tracking):
    for day, score in ((0, 1.0), (1, 9.0), (1, 9.0)):
        log_result(result_of(day, "series", temperature=score), {})

    (series,) = [
        run for run in all_runs_of(tracking, "series") if "onnxserve.series" in run.data.tags
    ]

    points = tracking.get_metric_history(series.info.run_id, "statistic")
    ends = [(FIRST + timedelta(days=day)).timestamp() * 1000 for day in (1, 2)]
    assert [point.timestamp for point in points] == ends
    assert [point.value for point in points] == [1.0, 9.0]
    assert [point.step - points[0].step for point in points] == [0, 1]
    assert (series.info.run_name, series.info.status) == ("daily: all windows", "FINISHED")


def test_criteria_are_metrics_with_thresholds():
    violated = Finding("accuracy", "criterion", "violated", "", 0.71, 0.8)
    kept = Finding("accuracy", "criterion", "kept", "", 0.81, 0.8, "carrier=AA")
    unknown = Finding("f1", "criterion", "not judged", "one class only")

    metrics = to_metrics(result_of(kind="performance", findings=(violated, kept, unknown)))

    assert metrics["criterion/accuracy"] == 0.71
    assert metrics["criterion_threshold/accuracy"] == 0.8
    assert metrics["criterion/accuracy/carrier_AA"] == 0.81
    assert "criterion/f1" not in metrics


SCORES = {
    "a_b": 1.0,
    "a/b": 2.0,
    "a%b": 3.0,
    "a b": 4.0,
    "\n": 5.0,
    "x" * 300 + "1": 6.0,
    "x" * 300 + "2": 7.0,
}


def test_metric_names_are_unique_and_stable():
    metrics = to_metrics(result_of(**SCORES))
    backwards = to_metrics(result_of(**dict(reversed(SCORES.items()))))

    scores = {
        name: value for name, value in metrics.items() if name.startswith("distribution_score/")
    }
    assert sorted(scores.values()) == sorted(SCORES.values())
    assert metrics["distribution_score/a_b"] == 1.0
    assert backwards == metrics
    assert max(map(len, metrics)) <= 250
