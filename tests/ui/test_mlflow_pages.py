"""A window of a monitor in words, and its verdict from a run of MLflow."""

from datetime import UTC, datetime, timedelta
from typing import Any

import mlflow
import pytest

from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages, MonitorVerdict

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
def test_a_window_is_written_as_short_as_it_can_be(start: datetime, length: timedelta, said: str) -> None:
    assert MonitorVerdict("drift", start, start + length, "drift", "alarm").window == said


def test_a_window_in_words() -> None:
    one = MonitorVerdict(
        "accuracy", DAY, DAY + timedelta(days=1), "violated", "alarm", "0.84 → 0.71", labelled_share=0.835
    )
    assert one.words == "accuracy, 2026-11-20: violated, labels for 84% of its rows. 0.84 → 0.71"


def test_the_verdicts_are_the_runs_that_say_so_the_newest_window_first(mlflow_app: Any) -> None:
    from mlflow.server import handlers

    client = mlflow.MlflowClient()
    experiment = client.create_experiment("onnxserve/judged")
    for monitor, state, start in (
        ("accuracy", "kept", "2026-11-19T00:00:00+00:00"),
        ("accuracy", "violated", "2026-11-20T00:00:00+00:00"),
        ("odd", "cannot tell", "yesterday"),
    ):
        tags = {"monitor": monitor, "verdict": state, "window.start": start, "window.end": "2026-11-21T01:00:00+01:00"}
        run = client.create_run(experiment, tags={f"onnxserve.{key}": tag for key, tag in tags.items()})
        client.log_metric(run.info.run_id, "labelled_share", 0.5)
    client.create_run(experiment)  # the run of a series, say

    found = MlflowPages(handlers._get_tracking_store(), "/mlflow").verdicts("judged", DAY, 20)

    odd, new, old = found
    assert (odd.window, odd.mark) == ("?", "undecided")
    assert (new.state, new.mark, new.window, new.labelled_share) == ("violated", "alarm", "2026-11-20", 0.5)
    assert old.window == "2026-11-19 – 2026-11-20"
    assert new.report.startswith(f"/mlflow/#/experiments/{experiment}/runs/")
    assert new.report.endswith("/artifacts/report.html")
