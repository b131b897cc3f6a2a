"""The verdicts of monitors on the page."""

from typing import Any

import mlflow
import pytest

from mlflow_deploy_plugin.spec import new_endpoint
from tests.support.console import PAGE


@pytest.mark.parametrize(
    ("state", "mark"),
    [
        ("violated", "alarm"),
        ("drift", "alarm"),
        ("cannot tell", "undecided"),
        ("not judged", "undecided"),
        ("kept", "fine"),
        ("no drift", "fine"),
    ],
)
def test_a_monitor_s_verdict_is_an_alarm_or_fine_or_undecided(
    mlflow_app: Any, endpoint: str, state: str, mark: str
) -> None:
    client, name = mlflow.MlflowClient(), f"onnxserve/{endpoint}"
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    reason = f"accuracy: 0.84 (the window before) → 0.71, lower; {state} <since> 2013-07-09"
    tags = {"verdict": state, "monitor": "hits", "window.start": "2013-07-09T00:00:00+00:00", "reason": reason}
    run = client.create_run(experiment_id, tags={f"onnxserve.{key}": value for key, value in tags.items()})

    html = " ".join(mlflow_app.client.get(PAGE).get_data(as_text=True).split())
    client.delete_run(run.info.run_id)

    assert "<h3>Monitors</h3>" in html
    assert f'<span class="mark mark-{mark}">{state}</span></a> <span class="muted">accuracy: 0.84 (the' in html
    assert f"lower; {state} &lt;since&gt; 2013-07-09" in html


def test_verdicts_on_a_deleted_endpoint_of_the_name_are_not_shown(mlflow_app: Any) -> None:
    name = "made-anew"
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint(name, "models:/m/1"))
    created = mlflow_app.store.require_endpoint(name).created_at.isoformat()
    client = mlflow.MlflowClient()
    experiment_id = client.create_experiment(f"onnxserve/{name}")
    for monitor, of in (("of-the-gone", "2020-01-01T00:00:00+00:00"), ("of-this", created)):
        tags = {"verdict": "drift", "monitor": monitor, "endpoint.created": of}
        client.create_run(experiment_id, tags={f"onnxserve.{key}": value for key, value in tags.items()})

    html = mlflow_app.client.get(PAGE).get_data(as_text=True)
    mlflow_app.store.remove_endpoint(name)

    assert "of-this" in html
    assert "of-the-gone" not in html
