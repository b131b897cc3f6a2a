"""The wording of the errors that users of the client see most."""

from collections.abc import Callable

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.client.client import Client, Prediction, RetryPolicy
from tests.support.messages import message_of

FAST = RetryPolicy(first_pause_seconds=0.001)
ROW = {"carrier": "UA", "distance": 1400.0, "hour": 17, "late": True}
Case = tuple[Callable[[Client], object], str]
MESSAGES: dict[str, Case] = {
    "a dtype without a datatype": (
        lambda client: client.infer({"x": np.ones(1, complex)}),
        "'x' has the dtype complex128; V2 has no datatype for it",
    ),
    "an unknown endpoint": (
        lambda client: Client(client.url, "nobody").predict([ROW]),
        "endpoint 'nobody' does not exist; existing endpoints: 'flights'",
    ),
    "feedback without an id": (
        lambda client: client.feedback(Prediction(np.ones(1)), [1]),
        "the prediction has no id: its server sent no X-Prediction-Id",
    ),
    "a server that is not there": (
        lambda client: Client("http://127.0.0.1:9", retries=FAST).predict([ROW]),
        "cannot connect to http://127.0.0.1:9/invocations",
    ),
}
ANSWERS: dict[str, tuple[int, bytes, str]] = {
    "a page": (500, b"<html>", "the server answered with status 500 and no JSON object"),
    "a prediction of another form": (
        200,
        b'{"rows": []}',
        "the server answered with status 200 and an unknown form (no Content-Type)",
    ),
    "a refusal": (
        403,
        b'{"error_code": "PERMISSION_DENIED", "message": "the key is for /feedback"}',
        "the key is for /feedback",
    ),
}


@pytest.mark.parametrize(("cause", "message"), MESSAGES.values(), ids=MESSAGES)
def test_errors_name_the_mistake(served, cause, message):
    assert message_of(lambda: cause(Client(served("flights")))) == message


@pytest.mark.parametrize(("status", "body", "message"), ANSWERS.values(), ids=ANSWERS)
def test_an_unknown_answer_is_named(scripted, status, body, message):
    server = scripted((status, {}, body, 0.0))
    assert (
        message_of(lambda: Client(server.url, "e").predict([[1]])).replace(server.url, "URL")
        == message
    )
