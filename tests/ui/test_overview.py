"""Endpoints and rollouts on the page."""

import re
from typing import Any

import pytest

from mlflow_deploy_plugin.controller.snapshot import take_snapshot
from mlflow_deploy_plugin.deployments import Deployments, Observation, ObservedEndpoint
from mlflow_deploy_plugin.spec import new_endpoint
from mlflow_deploy_plugin.statedir import LoadedVariant, WorkerState
from mlflow_deploy_plugin.store.tables import EndpointRow
from tests.support.console import PAGE
from tests.support.metrics_page import PAGE as METRICS
from tests.support.metrics_page import serving


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


def test_the_page_and_a_rollout_count_the_same_requests_and_errors(
    mlflow_app: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = mlflow_app.store.endpoint(endpoint)
    model = stored.spec.variants["champion"].model.split("/")[1]
    page = METRICS.replace(
        'endpoint="f",variant="main",model="X"', f'endpoint="{endpoint}",variant="champion",model="{model}"'
    )
    worker = WorkerState(pid=1, generation=1, endpoints={endpoint: {"champion": LoadedVariant(version="6")}})
    with serving({"/metrics": page}) as url:
        one = ObservedEndpoint(stored, Observation("running", url=url, workers=(worker,)))
        monkeypatch.setattr(Deployments, "list_endpoints", lambda self: [one])
        html = mlflow_app.client.get(PAGE).get_data(as_text=True)
        counters = take_snapshot(one).counters

    assert counters is not None
    counted = counters["champion", "6"]
    numbers = re.findall(r'<td class="number">(.*?)</td>', html)
    assert numbers == [f"{counted.requests:.0f}", f"{counted.errors:.0f}", "inf ms"] == ["100", "5", "inf ms"]


def test_a_server_that_does_not_answer_is_silent(
    mlflow_app: Any, endpoint: str, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{free_port}"
    one = ObservedEndpoint(mlflow_app.store.endpoint(endpoint), Observation("running", url=url))
    monkeypatch.setattr(Deployments, "list_endpoints", lambda self: [one])

    html = mlflow_app.client.get(PAGE).get_data(as_text=True)

    assert '<span class="mark mark-silent">silent</span>' in html
    assert f"{url}: nothing answers there" in html
