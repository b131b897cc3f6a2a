"""Tests of the conversion of the server's refusals to exceptions, and of retries for an
overloaded server.
"""

import io
import time
from urllib.parse import urlsplit

import orjson
import pytest
import requests

from mlflow_deploy_plugin.core.errors import (
    InvalidRequest,
    NotReady,
    OnnxserveError,
    TooManyRequests,
)
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import LOCAL_KEY, SERVER, write_state
from mlflow_deploy_plugin.core.statedir.models import ServerState
from mlflow_deploy_plugin.ship.deployments.backends.served_state import MachineBackend
from mlflow_deploy_plugin.ship.deployments.server_client import ServerSession, post, post_for_events
from tests.support.refusals import refused
from tests.support.services.listener import answering


class Scripted(ServerSession):
    """A session that returns prepared responses and counts them."""

    def __init__(self, *answers):
        super().__init__()
        self._answers = iter(answers)
        self.posts = 0

    def request(self, *_, **__):
        self.posts += 1
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        response = requests.Response()
        response.status_code, response._content = answer
        response.raw = io.BytesIO(answer[1])
        response.headers["Retry-After"] = "3"
        return response


def send(session, tries=1):
    return post(session, "http://here/invocations", b"{}", "application/json", 1.0, tries)[0]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((400, b'{"message": "row 0 is bad"}'), InvalidRequest, "row 0 is bad"),
        ((429, b"{}"), TooManyRequests, "the server answered with status 429"),
        ((599, b'{"message": "odd"}'), OnnxserveError, "odd"),
        (
            (200, b"<html>"),
            OnnxserveError,
            "the server answered with status 200 and without a JSON object",
        ),
        (
            requests.ConnectionError(),
            NotReady,
            "the server at http://here/invocations does not answer",
        ),
        (
            requests.ReadTimeout(),
            NotReady,
            "the server did not answer http://here/invocations in 6 s",
        ),
    ],
)
def test_status_and_message_become_an_error(answer, error, message):
    with pytest.raises(error) as raised:
        post(Scripted(answer), "http://here/invocations", b"{}", "application/json", 1.0)
    assert type(raised.value) is error
    assert raised.value.message == message


class Events(Scripted):
    """A session that returns one response of server-sent events."""

    def request(self, *_, **__):
        response = super().request()
        response.headers["Content-Type"] = "text/event-stream"
        return response


def test_events_are_yielded():
    session = Events((200, b'data: {"n": 1}\n\ndata: "two"\n\ndata: [DONE]\n\n'))
    assert list(post_for_events(session, "http://here/invocations", b"{}", 1.0)) == [
        {"n": 1},
        "two",
    ]


def test_error_event_is_raised():
    session = Events(
        (
            200,
            b'data: 1\n\ndata: {"error": {"code": "C", "message": "no tool"}}\n\ndata: [DONE]\n\n',
        )
    )
    events = post_for_events(session, "http://here/invocations", b"{}", 1.0)
    assert next(events) == 1
    with pytest.raises(OnnxserveError, match="no tool"):
        next(events)


def test_answer_without_events_names_the_other_method():
    with refused(InvalidRequest, "predict_stream", "predict"):
        list(post_for_events(Scripted((200, b"{}")), "http://here/invocations", b"{}", 1.0))


def test_overloaded_server_is_retried_after_its_time(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    session = Scripted(
        (429, b"{}"), requests.ConnectionError(), (200, orjson.dumps({"predictions": []}))
    )

    assert send(session, tries=3) == {"predictions": []}
    assert pauses == [3, 0.2]


def test_only_overload_is_retried(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    busy = Scripted((429, b"{}"), (429, b"{}"))
    wrong = Scripted((400, b"{}"))

    with pytest.raises(TooManyRequests):
        send(busy, tries=2)
    with pytest.raises(InvalidRequest):
        send(wrong, tries=2)
    assert busy.posts == 2
    assert wrong.posts == 1


def ask_for_a_key(request, _):
    status = 200 if request.headers["Authorization"] == "Bearer of-team-a" else 401
    return status, "text/plain", "figures"


def test_server_key_is_of_the_settings_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    settings = load_settings()
    # A thread of an MLflow server that handles a request for team-a does not have this
    # variable.
    monkeypatch.delenv("MLFLOW_WORKSPACE")
    with answering(ask_for_a_key) as url:
        folder = settings.state_dir("flights")
        port = urlsplit(url).port
        write_state(
            folder / SERVER, ServerState(pid=1, host="127.0.0.1", port=port, started_at=0.0)
        )
        (folder / LOCAL_KEY).write_text("of-team-a")
        spec = new_endpoint("flights", "models:/m/1", {"server.port": port})
        assert MachineBackend(settings).server_pages(spec, "/metrics", 5.0) == {
            "flights": b"figures"
        }
