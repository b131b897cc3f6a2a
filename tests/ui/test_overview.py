"""Endpoints and rollouts on the page."""

from typing import Any

from mlflow_deploy_plugin.spec import new_endpoint
from mlflow_deploy_plugin.store.tables import EndpointRow
from tests.support.console import PAGE


def test_a_rollout_is_shown_with_its_step_and_its_reason(mlflow_app: Any, endpoint: str) -> None:
    spec = {"to_uri": "models:/m/2", "steps": [1, 10, 50, 100]}
    mlflow_app.store.add_rollout(endpoint, spec, "stepping")
    html = " ".join(mlflow_app.client.get(PAGE).get_data(as_text=True).split())
    assert f'<th scope="row">{endpoint}</th><td>models:/m/2</td>' in html
    assert '<td><span class="mark mark-stepping">stepping</span></td> <td>1 of 4</td>' in html


def test_an_endpoint_whose_spec_cannot_be_read_is_shown_with_the_reason(mlflow_app: Any, endpoint: str) -> None:
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint("spoilt", "models:/m/1"))
    with mlflow_app.store.transaction() as session:
        session.get(EndpointRow, "spoilt").spec += "sampling: often\n"

    html = mlflow_app.client.get(PAGE).get_data(as_text=True)

    mlflow_app.store.remove_endpoint("spoilt")
    assert '<span class="mark mark-unreadable">unreadable</span>' in html
    assert "cannot be read: unknown field &#39;sampling&#39;" in html
    assert endpoint in html
