"""Tests of a short replay: flights are answered, labelled a day late, judged and
learned, and no request is lost.
"""

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from projects.flight_delay.loop.setup import ReplaySettings
from projects.flight_delay.replay import replay
from tests.support.commands import done
from tests.support.deployments import empty_home
from tests.support.tracking import DEFAULT_EXPERIMENT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

POLICY = "evaluation: {margin: 0.5}\nskip: [robustness, budget]"
"""A policy that passes every version that answers, because few flights and trees do not
make a version reliably better.
"""


def test_replay_retrains_and_promotes(tracking, tmp_path, monkeypatch):
    folder = tmp_path / "outcome"
    folder.mkdir()
    # No model is correct for 99 of 100 flights, so that the first window raises an
    # alarm, and only this window trains.
    setting = ReplaySettings(every="7d", at_least=0.99, max_iter=10, min_requests=3, cooldown="1h")
    MlflowClient().create_registered_model(setting.model, tags={GATE_POLICY_TAG: POLICY})
    with empty_home(tmp_path), mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
        result = replay(setting, "6", None, batch=5, every_day=6, folder=folder)
        story = done("audit history", setting.endpoint)
    assert result.counts.lost == 0
    assert result.counts.labels_lost == 0
    assert result.counts.labels == result.counts.flights == sum(result.counts.by_version.values())
    assert len(result.counts.by_version) >= 2  # A new version has answered.
    assert any(state.endswith("promoted") for state in result.states)
    assert {week.verdict for week in result.weeks if week.monitor == "accuracy"} >= {"violated"}
    actions = [line.split()[3] for line in story.splitlines() if not line.startswith(" ")]
    links = [
        "retrain.start",
        "retrain.run",
        "retrain.version",
        "gate",
        "rollout.start",
        "alias",
        "rollout.end",
    ]
    places = [actions.index(link, actions.index("retrain.start")) for link in links]
    assert places == sorted(places)
    assert (folder / "accuracy_by_month.png").stat().st_size < 200_000
    version = MlflowClient().get_model_version_by_alias(setting.model, "champion")
    assert version.tags["onnxserve.parent"].startswith(f"models:/{setting.model}/")
    assert version.tags["onnxserve.cause"].startswith("monitor accuracy, ")
