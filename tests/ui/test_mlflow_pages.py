"""Tests of the description of a monitor's window and of its verdict."""

from datetime import UTC, datetime, timedelta

import mlflow
import pytest
from mlflow.server import handlers

from mlflow_deploy_plugin.core.store.monitor_tables import MonitorWindow
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages, MonitorVerdict
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence
from tests.support.refusals import mentions

DAY = datetime(2026, 11, 20, tzinfo=UTC)


def window(state="judged", start=DAY, length=timedelta(days=1), by_hand=False, **more):
    return MonitorWindow(
        1, "judged", "hits", start, start + length, 1, by_hand, state, DAY, DAY, **more
    )


@pytest.fixture
def pages(mlflow_app):
    return MlflowPages(handlers._get_tracking_store(), "/mlflow")


@pytest.mark.parametrize(
    ("start", "length", "text"),
    [
        (DAY, timedelta(days=1), "2026-11-20"),
        (DAY, timedelta(days=7), "2026-11-20 – 2026-11-26"),
        (DAY, timedelta(hours=1), "2026-11-20 00:00 – 01:00"),
        (DAY + timedelta(hours=23), timedelta(hours=2), "2026-11-20 23:00 – 2026-11-21 01:00"),
        (DAY, timedelta(), "2026-11-20 00:00 – 00:00"),
    ],
)
def test_window_text_is_short(start, length, text):
    stored = window(start=start, length=length)
    assert MonitorVerdict(stored, "drift", "alarm").window == text


def test_title_has_verdict_and_figures():
    stored = window(reason="0.84 → 0.71", figures={"labelled_share": 0.835})
    verdict = MonitorVerdict(stored, "violated", "alarm")
    assert mentions(verdict.words, "hits, 2026-11-20", "violated", "84%", "0.84 → 0.71")
    by_hand = MonitorVerdict(window(by_hand=True), "no drift", "fine")
    assert mentions(by_hand.words, "hits, 2026-11-20", "no drift", "by hand")


@pytest.mark.parametrize(
    ("verdict", "mark", "alarms", "sentence"),
    [
        ("drift", "alarm", ("a", "b", "c"), "in a, b, c"),
        ("violated", "alarm", ("a", "b", "c", "d", "e"), "in a, b, c and 2 more"),
        ("drift", "alarm", (), "a reason (p = 0.2)"),
        ("no drift", "fine", (), "there is no alarm"),
        ("kept", "fine", (), "there is no alarm"),
        ("cannot tell", "undecided", (), "the rows do not decide the requirement"),
        ("not judged", "undecided", (), "a reason (p = 0.2)"),
    ],
)
def test_verdict_has_mark_and_sentence(pages, verdict, mark, alarms, sentence):
    evidence = Evidence(alarms=alarms).to_json()
    stored = window(verdict=verdict, reason="a reason (p = 0.2)", evidence=evidence)
    (shown,) = pages.windows("nobody", [stored])
    assert (shown.state, shown.mark, shown.sentence) == (verdict, mark, sentence)


@pytest.mark.parametrize(
    ("state", "reason", "attempts", "shown", "mark"),
    [
        ("running", "", 0, "running", "waiting"),
        ("failed", "a timeout", 5, "failed", "failed"),
        ("pending", "no column", 1, "failing", "failed"),
    ],
)
def test_unjudged_window_has_its_state(pages, state, reason, attempts, shown, mark):
    (verdict,) = pages.windows("nobody", [window(state, reason=reason, attempts=attempts)])
    assert (verdict.state, verdict.mark) == (shown, mark)
    assert verdict.stored.reason == reason


def test_report_needs_an_experiment(pages):
    stored = window(verdict="violated", run_id="a-run")
    (without_experiment,) = pages.windows("reported", [stored])
    experiment = mlflow.MlflowClient().create_experiment("onnxserve/reported")
    reported, without_run = pages.windows("reported", [stored, window(verdict="kept")])
    assert without_experiment.report == without_run.report == ""
    assert reported.report == f"/mlflow/#/experiments/{experiment}/runs/a-run/artifacts/report.html"


@pytest.mark.parametrize(
    ("accepted", "state", "mark", "sentence"),
    [
        (("x",), "drift", "alarm", "in y"),
        (("y", "x"), "accepted", "fine", "all alarms are accepted: x, y"),
    ],
)
def test_accepted_alarms_are_no_alarm(pages, accepted, state, mark, sentence):
    evidence = Evidence(alarms=("x", "y"), accepted=accepted).to_json()
    (verdict,) = pages.windows("nobody", [window(verdict="drift", evidence=evidence, reason="a")])
    assert (verdict.state, verdict.mark, verdict.sentence) == (state, mark, sentence)
