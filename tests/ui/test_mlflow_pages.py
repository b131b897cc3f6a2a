"""Tests of the description of a monitor's window and of its verdict
from an MLflow run.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import mlflow
import pytest

from mlflow_deploy_plugin.core.store.monitor_tables import MonitorWindow
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages, MonitorVerdict
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence
from tests.support.refusals import mentions

DAY = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("start", "length", "said"),
    [
        (DAY, timedelta(days=1), "2026-11-20"),
        (DAY, timedelta(days=7), "2026-11-20 – 2026-11-26"),
        (DAY, timedelta(hours=1), "2026-11-20 00:00 – 01:00"),
        (DAY + timedelta(hours=23), timedelta(hours=2), "2026-11-20 23:00 – 2026-11-21 01:00"),
        (DAY, timedelta(), "2026-11-20 00:00 – 00:00"),
    ],
)
def test_a_window_is_written_as_short_as_it_can_be(start, length, said):
    stored = replace(window("judged"), start=start, end=start + length)
    assert MonitorVerdict(stored, "drift", "alarm").window == said


def test_a_window_in_words():
    stored = window("judged", reason="0.84 → 0.71", figures={"labelled_share": 0.835})
    verdict = MonitorVerdict(stored, "violated", "alarm")
    assert mentions(verdict.words, "hits, 2026-11-20", "violated", "84%", "0.84 → 0.71")
    by_hand = MonitorVerdict(replace(stored, by_hand=True), "no drift", "fine")
    assert mentions(by_hand.words, "hits, 2026-11-20", "no drift", "by hand")


@pytest.mark.parametrize(
    ("verdict", "mark", "alarms", "sentence"),
    [
        ("drift", "alarm", ("a", "b", "c"), "in a, b, c"),
        ("violated", "alarm", ("a", "b", "c", "d", "e"), "in a, b, c and 2 more"),
        ("drift", "alarm", (), "a reason (p = 0.2)"),
        ("no drift", "fine", (), "there is no alarm"),
        ("cannot tell", "undecided", (), "the rows do not decide the requirement"),
        ("not judged", "undecided", (), "a reason (p = 0.2)"),
    ],
)
def test_the_sentence_of_a_verdict_has_no_statistics_if_the_store_has_the_columns(
    verdict, mark, alarms, sentence
):
    stored = window(
        "judged",
        verdict=verdict,
        reason="a reason (p = 0.2)",
        evidence=Evidence(alarms=alarms).to_json(),
    )
    assert MonitorVerdict(stored, verdict, mark).sentence == sentence


def window(state, **more):
    return MonitorWindow(
        1, "judged", "hits", DAY, DAY + timedelta(days=1), 1, False, state, DAY, DAY, **more
    )


def test_a_window_has_its_verdict_and_a_report_or_says_how_far_it_is(mlflow_app):
    from mlflow.server import handlers

    experiment = mlflow.MlflowClient().create_experiment("onnxserve/judged")
    pages = MlflowPages(handlers._get_tracking_store(), "/mlflow")
    violated = window("judged", verdict="violated", run_id="a-run", figures={"labelled_share": 0.5})
    windows = [violated, window("judged", verdict="cannot tell"), window("running")]
    windows += [
        window("failed", reason="a timeout", attempts=5),
        window("pending", reason="no column", attempts=1),
    ]

    judged, undecided, running, failed, failing = pages.windows("judged", windows)

    assert judged.state == "violated"
    assert judged.mark == "alarm"
    assert judged.window == "2026-11-20"
    assert mentions(judged.words, "50%")
    assert judged.report == f"/mlflow/#/experiments/{experiment}/runs/a-run/artifacts/report.html"
    assert undecided.state == "cannot tell"
    assert undecided.mark == "undecided"
    assert undecided.report == ""
    assert running.state == "running"
    assert running.mark == "waiting"
    assert failed.state == "failed"
    assert failed.mark == "failed"
    assert failed.stored.reason == "a timeout"
    assert failing.state == "failing"
    assert failing.mark == "failed"
    assert failing.stored.reason == "no column"


def test_a_window_whose_alarms_are_all_accepted_is_accepted_and_not_an_alarm(mlflow_app):
    from mlflow.server import handlers

    pages = MlflowPages(handlers._get_tracking_store(), "")
    evidence = {"alarms": ["x", "y"], "accepted": ["x"]}
    partly = window("judged", verdict="drift", evidence=evidence)
    fully = window("judged", verdict="drift", evidence={**evidence, "accepted": ["y", "x"]})

    outcomes = [
        (verdict.state, verdict.mark) for verdict in pages.windows("nobody", [partly, fully])
    ]

    assert outcomes == [("drift", "alarm"), ("accepted", "fine")]


def test_the_sentence_of_a_verdict_names_the_alarms_that_are_not_accepted(mlflow_app):
    from mlflow.server import handlers

    pages = MlflowPages(handlers._get_tracking_store(), "")
    alarms = ("delay", "fare")
    windows = [
        window(
            "judged",
            verdict="drift",
            reason="a",
            evidence=Evidence(alarms=alarms, accepted=accepted).to_json(),
        )
        for accepted in (("delay",), alarms)
    ]

    sentences = [verdict.sentence for verdict in pages.windows("nobody", windows)]

    assert sentences == ["in fare", "all alarms are accepted: delay, fare"]


def test_a_window_without_an_experiment_has_its_verdict(mlflow_app):
    from mlflow.server import handlers

    pages = MlflowPages(handlers._get_tracking_store(), "")
    (verdict,) = pages.windows("nobody", [window("judged", verdict="no drift", run_id="a-run")])
    assert verdict.state == "no drift"
    assert verdict.mark == "fine"
    assert verdict.report == ""
