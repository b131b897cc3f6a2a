"""Bad requests to every route are refused in the form of its protocol, and valid
requests are answered after them.
"""

import json

import pytest

from tests.serve.corpus import bodies, paths, tables, values
from tests.serve.corpus.routes import ALL
from tests.serve.http.listener import worker_app

CASES = [*paths.CASES, *bodies.CASES, *values.CASES, *tables.CASES]
_SECRETS = (
    "Traceback",
    'File "',
    "site-packages",
    "/python3",
    ".py",
    "mlflow_deploy_plugin",
    "onnxserve-",
)
"""Texts that must not be in the answer to a bad request, unless the request contains
them.
"""
_CODES = {404: ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST")}
"""MLflow's error code by status; other statuses have BAD_REQUEST."""


@pytest.fixture(scope="module")
def app(server):
    """Return the worker's application, with its plans."""
    return worker_app(server)


def check_valid(app, route):
    answer = app.handle(route.request())
    assert answer.status == route.status, (route.name, answer)
    assert route.right in answer.body, (route.name, answer)


@pytest.mark.parametrize("route", ALL, ids=lambda route: route.name)
def test_valid_request_is_answered(app, route):
    check_valid(app, route)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_request_is_refused_on_every_route(app, caplog, case):
    for route in case.on:
        request = case.sent(route)
        answer = app.handle(request)
        shown = (route.name, answer)
        assert answer.status == case.status, shown
        document = json.loads(answer.body)
        forms = [{"error"} if route.has_short_errors else {"error_code", "message"}]
        if case.has_any_form:
            forms = [{"error"}, {"error_code", "message"}]
        assert document.keys() in forms, shown
        expected = (None, *_CODES.get(answer.status, ("BAD_REQUEST",)))
        assert document.get("error_code") in expected, shown
        message = str(document.get("message", document.get("error")))
        assert 8 < len(message) < 3000, shown
        assert "\n" not in message, shown
        assert [word for word in case.words if word not in message] == [], shown
        sent = str((request.path, request.headers, request.body))
        secrets = (*_SECRETS, str(app.server.repository.state_dir))
        assert not [text for text in secrets if text in message and text not in sent], shown
        check_valid(app, route)
    assert not [record for record in caplog.records if record.exc_info]
