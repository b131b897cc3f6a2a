"""A judged window in MLflow has one run, even if several processes report it
repeatedly.
"""

import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from typing import Any

import mlflow
import pytest
from boto3.exceptions import S3UploadFailedError
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import RegistryUnavailable
from mlflow_deploy_plugin.core.registry.connection import set_service_timeouts
from mlflow_deploy_plugin.watch.reports.log import build_report, log_result, to_metrics
from mlflow_deploy_plugin.watch.result import Finding, State
from tests.support.refusals import refused
from tests.support.results import past_of, result_of
from tests.support.tracking import tracking_at
from tests.support.waiting import free_port


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


class Files(Mapping):
    """A file of a report with an action that runs when the file is stored."""

    def __init__(self, then: Any) -> None:
        self._then = then

    def __getitem__(self, name: Any) -> Any:
        return {"a.txt": "a"}[name]

    def __iter__(self) -> Any:
        self._then()
        return iter(["a.txt"])

    def __len__(self) -> Any:
        return 1


KILLED_IN_THE_MIDDLE = """
import os, pickle, signal, sys
from mlflow_deploy_plugin.watch.reports.log import log_result

class Files(dict):
    def items(self):
        os.kill(os.getpid(), signal.SIGKILL)

log_result(pickle.load(sys.stdin.buffer), Files())
"""


def test_the_run_has_the_files_the_metrics_at_the_windows_end_and_the_tags(tracking):
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
    words = "newest 6.5, threshold 3, an alarm in 1 of 2 windows"
    for caption in ("largest score of a column, in SD", "temperature, score in SD"):
        assert f"<figcaption>{caption}</figcaption><img alt='{caption}: {words}'" in page
    assert "<title>whole, daily, 2013-07-01/2013-07-02</title></head>" in page
    assert "name='viewport'" in page
    assert "@media (prefers-color-scheme: dark)" in page
    assert "tabindex='0' role='region' aria-label='Findings'><table>" in page


def test_bounds_that_were_tried_have_runs_of_their_own_that_are_no_verdicts_of_the_monitor(
    tracking,
):
    result = result_of(endpoint="tried", statistic=6.5)
    verdict_run = log_result(result, {})
    tried_states: tuple[tuple[str, State], ...] = (("a=1", "no drift"), ("a=2", "drift"))
    tried = [replace(result, state=state, tried=bounds) for bounds, state in tried_states]

    runs = [log_result(entry, {}).run_id for entry in (*tried, *tried)]

    assert len({*runs, verdict_run.run_id}) == 3
    tags = [tracking.get_run(run).data.tags for run in runs[:2]]
    assert [(entry["onnxserve.tried"], entry["onnxserve.tried.verdict"]) for entry in tags] == [
        ("a=1", "no drift"),
        ("a=2", "drift"),
    ]
    assert "onnxserve.verdict" not in {*tags[0], *tags[1]}
    assert tracking.get_run(verdict_run.run_id).data.tags["onnxserve.verdict"] == "drift"
    (series,) = [
        run for run in all_runs_of(tracking, "tried") if "onnxserve.series" in run.data.tags
    ]
    assert len(tracking.get_metric_history(series.info.run_id, "statistic")) == 1


def test_an_endpoint_that_was_made_anew_leaves_the_runs_of_its_namesake_alone(tracking):
    result = result_of(endpoint="anew")
    unstored = log_result(result, {}).run_id
    first, second = (
        replace(result, endpoint_created=f"2026-11-20T1{hour}:00:00+00:00") for hour in (1, 2)
    )

    runs = [log_result(judged, {}).run_id for judged in (first, second, first)]

    assert runs[0] == runs[2]
    assert len({unstored, *runs}) == 3
    assert all("onnxserve.superseded_by" not in run.data.tags for run in runs_of(tracking, "anew"))


def test_names_that_mlflow_refuses_are_logged_under_names_that_it_takes(tracking):
    names = ["a/b%[x]", "..", "../../etc", "x" * 400, "ü mlaut", ""]
    scores: dict[str, Any] = dict.fromkeys(names, 1.0)

    run = log_result(result_of(endpoint="names", **scores), {})

    logged = {
        name
        for name in tracking.get_run(run.run_id).data.metrics
        if name.startswith("distribution_score/")
    }
    assert len(logged) == len(names)


def test_the_version_leads_to_the_newest_report_and_keeps_its_own_description(tracking):
    def version():
        return tracking.get_model_version("flight-delay", "1")

    runs = [
        log_result(result_of(day, "led", temperature=score), {})
        for day, score in ((1, 6.0), (2, 1.0))
    ]
    log_result(result_of(0, "led", temperature=9.0), {})  # an older window that is judged later

    assert version().tags["onnxserve.monitor.led/daily"] == "no drift"
    assert version().tags["onnxserve.monitor.led/daily/report"] == f"{runs[1].run_id}/report.html"
    description = version().description
    assert description.startswith("Trained on a Monday.\n\n")
    assert description.count("led, daily") == 1
    row = ["no drift", "2013-07-03T00:00 – 2013-07-04T00:00", f"`{runs[1].run_id}/report.html`"]
    assert row in [
        [cell.strip() for cell in line.strip("|").split("|")][-3:]
        for line in description.splitlines()
    ]


def test_names_with_dots_are_not_taken_for_one_another(tracking):
    number = tracking.create_model_version("flight-delay", source=".").version
    for endpoint, monitor in (("a", "b.c"), ("a.b", "c"), ("a", "b.c.window")):
        log_result(result_of(0, endpoint, monitor=monitor, version=str(number)), {})

    version = tracking.get_model_version("flight-delay", number)
    assert [
        version.tags[f"onnxserve.monitor.{name}"] for name in ("a/b.c", "a.b/c", "a/b.c.window")
    ] == ["no drift"] * 3
    rows = [line.split(" | ")[0] for line in version.description.splitlines() if "no drift" in line]
    assert sorted(rows) == ["| a, b.c", "| a, b.c.window", "| a.b, c"]


def test_missing_or_unregistered_version_is_not_an_error(tracking):
    for version in ("77", ""):
        assert log_result(result_of(endpoint="gone", version=version), {}).run_id
    assert len(runs_of(tracking, "gone")) == 1


def test_a_window_that_is_reported_again_overwrites_its_run(tracking):
    first = log_result(result_of(endpoint="again", temperature=9.0), {"report.html": "first"})
    second = log_result(result_of(endpoint="again", temperature=1.0), {"report.html": "second"})
    revised = log_result(result_of(endpoint="again", temperature=2.0, revision=2), {})

    assert first.run_id == second.run_id != revised.run_id
    assert len(runs_of(tracking, "again")) == 2
    run = tracking.get_run(first.run_id)
    assert run.data.tags["onnxserve.verdict"] == "no drift"
    assert run.data.metrics["statistic"] == 1.0
    assert artifact(first.run_id, "report.html") == b"second"


def test_run_is_tagged_at_creation_so_an_abandoned_one_is_reused(tracking, monkeypatch):
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


def test_duplicate_run_deleted_meanwhile_by_its_creator_is_not_an_error(tracking, monkeypatch):
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


@pytest.mark.long
def test_a_killed_report_is_gone_on_with_in_the_same_run(tracking):
    result = result_of(endpoint="killed", temperature=9.0)

    child = subprocess.run(
        [sys.executable, "-c", KILLED_IN_THE_MIDDLE], input=pickle.dumps(result), check=False
    )
    assert child.returncode == -signal.SIGKILL
    (left,) = runs_of(tracking, "killed")
    assert (left.info.status, "onnxserve.verdict" in left.data.tags) == ("RUNNING", False)

    run = log_result(result, {"a.txt": "a"})

    assert (
        [other.info.run_id for other in runs_of(tracking, "killed")]
        == [run.run_id]
        == [left.info.run_id]
    )
    assert tracking.get_run(run.run_id).info.status == "FINISHED"
    assert artifact(run.run_id, "a.txt") == b"a"


@pytest.mark.long
def test_several_that_report_a_window_at_the_same_time_end_in_one_run(tracking):
    result = result_of(endpoint="crowd", temperature=9.0)
    barrier = Barrier(4)

    def report(_number):
        barrier.wait(60)
        meet = [lambda: barrier.wait(60)]  # All threads meet once in the middle of a run.
        return log_result(result, Files(lambda: meet.pop()() if meet else None))

    with ThreadPoolExecutor(4) as pool:
        run_ids = {run.run_id for run in pool.map(report, range(4))}

    counting = [run for run in runs_of(tracking, "crowd") if "onnxserve.verdict" in run.data.tags]
    assert len(counting) == 1
    assert run_ids == {counting[0].info.run_id}
    assert counting[0].info.status == "FINISHED"


def test_unavailable_mlflow_is_reported_and_the_begun_run_is_continued(tracking, monkeypatch):
    result = result_of(endpoint="down")

    def fail():
        raise ConnectionError("Connection refused")

    with refused(RegistryUnavailable, "endpoint down", "connection refused"):
        log_result(result, Files(fail))
    assert [run.info.status for run in runs_of(tracking, "down")] == ["FAILED"]
    run = log_result(result, {})
    assert [(other.info.run_id, other.info.status) for other in runs_of(tracking, "down")] == [
        (run.run_id, "FINISHED")
    ]

    for variable in ("MAX_RETRIES", "BACKOFF_FACTOR", "TIMEOUT"):  # restored after the test
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{variable}", "1")
    set_service_timeouts()
    with tracking_at(f"http://127.0.0.1:{free_port()}"), pytest.raises(RegistryUnavailable):
        log_result(result, {})


def test_unavailable_artifact_store_is_reported_as_an_outage(tracking, monkeypatch):
    def fail(*_arguments):
        raise S3UploadFailedError(
            "Could not connect to the endpoint URL: http://s3.example/reports"
        )

    monkeypatch.setattr(MlflowClient, "log_artifacts", fail)

    with refused(RegistryUnavailable, "artifact store", "http://s3.example"):
        log_result(result_of(endpoint="artifacts"), {"a.txt": "a"})


def test_each_endpoint_of_the_name_has_its_own_run_for_all_windows(tracking):
    for day, created in enumerate(("", "2026-11-20T11:00:00+00:00", "2026-11-20T12:00:00+00:00")):
        log_result(result_of(day, "namesake", endpoint_created=created), {})

    series = [
        run for run in all_runs_of(tracking, "namesake") if "onnxserve.series" in run.data.tags
    ]

    assert len(series) == 3


def test_one_run_more_has_all_windows_of_a_monitor_over_time(tracking):
    results = [
        result_of(day, "series", temperature=score) for day, score in enumerate([1.0, 2.0, 9.0])
    ]
    for result in (results[0], results[1], results[1], results[2]):
        log_result(result, {})

    (series,) = [
        run for run in all_runs_of(tracking, "series") if "onnxserve.series" in run.data.tags
    ]

    points = tracking.get_metric_history(series.info.run_id, "statistic")
    assert [(point.timestamp, point.value) for point in points] == [
        (result.window.end_us // 1000, score)
        for result, score in zip(results, [1.0, 2.0, 9.0], strict=True)
    ]
    assert [point.step - points[0].step for point in points] == [0, 1, 2]
    assert series.info.run_name == "daily: all windows"
    assert series.info.status == "FINISHED"


def test_criteria_are_charted_each_with_its_threshold(tracking):
    findings = (
        Finding("accuracy", "criterion", "violated", "", 0.71, 0.8),
        Finding("accuracy", "criterion", "kept", "", 0.81, 0.8, "carrier=AA"),
        Finding("f1", "criterion", "not judged", "one class only"),
    )
    result = result_of(endpoint="criteria", kind="performance", findings=findings, state="violated")

    past = past_of(result_of(-1, findings=(replace(findings[0], state="kept", value=0.84),)))

    run = log_result(result, build_report(result, past))

    metrics = tracking.get_run(run.run_id).data.metrics
    assert metrics["criterion/accuracy"] == 0.71
    assert metrics["criterion_threshold/accuracy"] == 0.8
    assert metrics["criterion/accuracy/carrier_AA"] == 0.81
    assert "criterion/f1" not in metrics


SCORES: dict[str, Any] = {
    "a_b": 1.0,
    "a/b": 2.0,
    "a%b": 3.0,
    "a b": 4.0,
    "\n": 5.0,
    "x" * 300 + "1": 6.0,
    "x" * 300 + "2": 7.0,
}


def test_no_column_is_lost_and_each_keeps_its_name_whatever_their_order_is():
    metrics = to_metrics(result_of(**SCORES))
    backwards = to_metrics(result_of(**dict(reversed(SCORES.items()))))

    scores = {
        name: value for name, value in metrics.items() if name.startswith("distribution_score/")
    }
    assert sorted(scores.values()) == sorted(SCORES.values())
    assert metrics["distribution_score/a_b"] == 1.0
    assert backwards == metrics
    assert max(map(len, metrics)) <= 250
