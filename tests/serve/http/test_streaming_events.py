"""A model that streams its response, whose parts are sent as server-sent events."""

import json
import re
import socket
from collections.abc import Callable

import pytest
import requests

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import SPOOL
from tests.support.models import write_pyfunc
from tests.support.refusals import mentions
from tests.support.servers import gunicorn, variant
from tests.support.spool import read_spool
from tests.support.waiting import wait_until

CODE = """
import time
from pathlib import Path
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_EXHAUSTED

class Agent:
    def predict(self, data, params=None):
        (message,) = data["messages"][0]  # a table
        if message["content"] == "busy":
            raise MlflowException("the quota is used up", RESOURCE_EXHAUSTED)
        return {"whole": message["content"]}

    def predict_stream(self, data, params=None):
        task, *words = data["messages"][0]["content"].split()
        if task == "busy":
            raise MlflowException("the quota is used up", RESOURCE_EXHAUSTED)
        if task == "refuse":
            raise ValueError("no such tool")
        try:
            for number, word in enumerate(words):
                yield {"word": word, "score": float("nan")}
                if task == "fail":
                    raise ValueError("no such tool")
                while task == "wait" and not Path(words[0]).exists():
                    time.sleep(0.01)
                    yield {"tick": True}
        finally:
            Path(words[0] + ".ended").touch()

def _load_pyfunc(path):
    return Agent()
"""
Post = Callable[..., requests.Response]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    fields = {
        name: {"type": "string", "required": name == "content"} for name in ("role", "content")
    }
    messages = {
        "type": "array",
        "items": {"type": "object", "properties": fields},
        "name": "messages",
        "required": True,
    }
    write_pyfunc(folder, "agent_in_parts", CODE, [messages], streamable=True)
    state_dir = folder / "state"
    with gunicorn(state_dir, {"agent": {"v": variant(folder)}}, ServerSpec(threads=2)) as running:
        yield running


@pytest.fixture
def post(running):
    def post(content, stream=True, path="/invocations"):
        body = {"messages": [{"role": "user", "content": content}], "stream": stream}
        return running.post(path, json=body, stream=True, timeout=60)

    return post


def captured(running):
    """Return the captured requests in order."""
    return read_spool(running.state_dir / SPOOL)


def count(running, sample):
    lines = running.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(sample, line))


def events(response):
    """Yield the data of each event when it arrives."""
    for line in response.iter_lines(chunk_size=1, decode_unicode=True):
        if line:
            assert line.startswith("data: ")
            yield line.removeprefix("data: ")


def test_the_parts_of_an_answer_are_events(post, tmp_path):
    response = post(f"say {tmp_path}/a b", path="/endpoints/agent/invocations")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["X-Model-Name"]
    assert response.headers["X-Accel-Buffering"] == "no"
    *parts, last = events(response)
    assert [json.loads(part) for part in parts] == [
        {"word": f"{tmp_path}/a", "score": None},
        {"word": "b", "score": None},
    ]
    assert last == "[DONE]"


def test_a_streamed_answer_is_captured_as_one_output(running, post, tmp_path):
    response = post(f"say {tmp_path}/a b")
    *parts, _ = events(response)
    request = captured(running)[-1]
    assert request.record.prediction_id == response.headers["X-Prediction-Id"]
    assert json.loads(request.feeds["messages"][0])[0]["content"] == f"say {tmp_path}/a b"
    assert json.loads(request.outputs["stream"][0]) == [json.loads(part) for part in parts]


def test_a_stream_that_its_client_leaves_is_captured_as_far_as_it_came(running, post, tmp_path):
    abandoned = 'onnxserve_stream_parts_count.*outcome="abandoned"'
    before = count(running, abandoned)
    response = post(f"wait {tmp_path}/never")
    first = next(events(response))
    response.close()
    wait_until(lambda: count(running, abandoned) == before + 1, what="the end of the stream")
    request = captured(running)[-1]
    assert request.record.prediction_id == response.headers["X-Prediction-Id"]
    assert json.loads(request.outputs["stream"][0])[0] == json.loads(first)


@pytest.mark.parametrize("task", ["fail", "refuse"])
def test_a_stream_that_fails_is_captured_once_as_a_failure(running, post, tmp_path, task):
    before = len(captured(running))
    assert post(f"{task} {tmp_path}/a").text
    (request,) = captured(running)[before:]
    assert request.record.status == 400
    # No part of the stream is captured.
    assert request.outputs.keys() == {"_error_code", "_message", "_column"}


def test_streams_are_counted_by_their_end_and_until_their_first_part(running, post, tmp_path):
    samples = ["count.*complete", "sum.*complete", "count.*failed"]
    before = [count(running, f"onnxserve_stream_parts_{sample}") for sample in samples]
    streams = "onnxserve_stream_first_part_seconds_count"
    seconds = "onnxserve_stream_first_part_seconds_sum"
    streams_before = count(running, streams)
    list(events(post(f"say {tmp_path}/a b c")))
    list(events(post(f"fail {tmp_path}/a")))
    after = [count(running, f"onnxserve_stream_parts_{sample}") for sample in samples]
    assert [value - other for value, other in zip(after, before, strict=True)] == [1, 3, 1]
    assert count(running, streams) == streams_before + 2
    assert count(running, seconds) > 0


def test_each_part_is_sent_when_it_is_made_and_others_are_answered_meanwhile(post, tmp_path):
    signal_file = tmp_path / "told"
    coming = events(post(f"wait {signal_file}"))
    assert json.loads(next(coming))["word"] == str(signal_file)
    assert post("anything", stream=False).json() == {"whole": "anything"}
    signal_file.touch()
    assert list(coming)[-1] == "[DONE]"


def test_a_client_of_http_1_0_gets_each_part_too_as_nginx_asks_by_default(running, tmp_path):
    signal_file = tmp_path / "told"
    body = json.dumps({"messages": [{"content": f"wait {signal_file}"}], "stream": True}).encode()
    head = (
        "POST /invocations HTTP/1.0\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
    )
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(head.encode() + b"Connection: keep-alive\r\n\r\n" + body)
        came = b""
        while b"data: " not in came:
            came += client.recv(1000)
        signal_file.touch()
        while piece := client.recv(1000):
            came += piece
    fields, content = came.split(b"\r\n\r\n", 1)
    assert b"\r\nConnection: close" in fields
    assert b"Transfer-Encoding" not in fields
    assert content.startswith(b"data: {")
    assert content.endswith(b"\n\ndata: [DONE]\n\n")


def test_a_model_is_notified_when_its_client_disconnects(post, tmp_path):
    # There are more requests than threads, so that each must release its place.
    for number in range(4):
        signal_file = tmp_path / str(number)
        response = post(f"wait {signal_file}")
        next(events(response))
        response.close()
        wait_until((tmp_path / f"{number}.ended").exists, what="the end of the stream")
    assert post("anything", stream=False).json() == {"whole": "anything"}


def test_an_error_in_the_first_part_is_one_as_any_other(post):
    response = post("refuse")
    assert response.status_code == 400
    assert mentions(response.json()["message"], "ValueError: no such tool")


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_that_asks_for_later_is_answered_so(post, stream):
    response = post("busy", stream=stream)
    assert response.status_code == 429
    assert response.json()["message"] == "the quota is used up"


def test_a_later_error_is_the_last_event_but_one(post, tmp_path):
    first, error, last = events(post(f"fail {tmp_path}/a"))
    assert json.loads(first)["word"] == f"{tmp_path}/a"
    message = "the model cannot compute this input: ValueError: no such tool"
    assert json.loads(error) == {"error": {"code": "BAD_REQUEST", "message": message}}
    assert last == "[DONE]"


@pytest.mark.parametrize("stream", [False, None, "true"])
def test_without_stream_true_the_answer_is_whole(post, stream):
    assert post("anything", stream=stream).json() == {"whole": "anything"}
