"""The wording of the messages of the console and of MLflow's guarded requests."""

import html
import re
from typing import Any

import pytest

from tests.support.console import PAGE, form, open_page


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight:champion": "much"}, "the weight of champion is 'much'; a whole number from 0 to 100 is expected"),
        ({"weight:champion": "0"}, "flights needs a variant with traffic: set at least one weight above 0"),
        ({"endpoint": "nobody"}, "there is no endpoint 'nobody'"),
        (
            {"action": "explode"},
            "there is no action 'explode'; the actions are traffic, rollback, promote, gate, request, approve, decline",
        ),
        (
            {"action": "promote", "model": "m", "version": "1", "to": "Mars"},
            "'Mars' is neither a stage (Production, Staging, Archived, None) nor an alias; for the alias, specify "
            "'@Mars'",
        ),
        (
            {"action": "gate", "model": "m", "version": "one"},
            "a registered model and the number of its version are expected",
        ),
        ({"why": "x" * 501}, "the reason has 501 characters; at most 500 are allowed"),
        ({"csrf_token": ""}, "no action was started, because the page was out of date: repeat the action"),
    ],
)
def test_the_alert_of_a_form_that_is_refused(
    mlflow_app: Any, endpoint: str, changed: dict[str, str], message: str
) -> None:
    browser, _, token = open_page(mlflow_app)

    page = browser.post(PAGE, data={**form(endpoint, token), **changed}).text

    (alert,) = re.findall(r'role="alert">([^<]*)<', page)
    assert html.unescape(alert).replace(endpoint, "flights") == message


@pytest.mark.parametrize(
    ("gate", "reason", "message"),
    [
        (
            "",
            "",
            "version 1 of delay may not become Production: it has not been through the gate. `onnxserve promote "
            "delay 1 --to Production` runs the gate and lists the failed checks",
        ),
        (
            "failed",
            "evaluation: accuracy 0.71 against 0.80",
            "version 1 of delay may not become Production: evaluation: accuracy 0.71 against 0.80. `onnxserve "
            "promote delay 1 --to Production` runs the gate and lists the failed checks",
        ),
    ],
)
def test_the_message_of_a_move_that_the_gate_forbids(mlflow_app: Any, gate: str, reason: str, message: str) -> None:
    model = mlflow_app.model()
    if gate:
        mlflow_app.stands(model, "1", gate, reason)

    asked = {"name": model, "version": "1", "stage": "Production"}
    answer = mlflow_app.client.post("/api/2.0/mlflow/model-versions/transition-stage", json=asked)

    assert (answer.status_code, answer.json["error_code"]) == (403, "PERMISSION_DENIED")
    assert answer.json["message"].replace(model, "delay") == message
