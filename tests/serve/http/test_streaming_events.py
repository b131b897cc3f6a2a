"""A model that streams its response, whose parts are sent as server-sent events."""

import json
import re
import socket

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import SPOOL
from tests.support.models import write_pyfunc
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


def test_parts_are_events_and_one_captured_output(running, post, tmp_path):
    response = post(f"say {tmp_path}/a b", path="/endpoints/agent/invocations")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["X-Model-Name"]
    assert response.headers["X-Accel-Buffering"] == "no"
    *parts, last = events(response)
    expected = [{"word": f"{tmp_path}/a", "score": None}, {"word": "b", "score": None}]
    assert [json.loads(part) for part in parts] == expected
    assert last == "[DONE]"
    request = captured(running)[-1]
    assert request.record.prediction_id == response.headers["X-Prediction-Id"]
    assert json.loads(request.feeds["messages"][0])[0]["content"] == f"say {tmp_path}/a b"
    assert json.loads(request.outputs["stream"][0]) == expected


def test_abandoned_stream_is_captured_in_part(running, post, tmp_path):
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
def test_failed_stream_is_captured_as_failure(running, post, tmp_path, task):
    before = len(captured(running))
    assert post(f"{task} {tmp_path}/a").text
    (request,) = captured(running)[before:]
    assert request.record.status == 400
    # No part of the stream is captured.
    assert request.outputs.keys() == {"_error_code", "_message", "_column"}


def test_streams_are_counted_by_outcome(running, post, tmp_path):
    samples = [
        "onnxserve_stream_parts_count.*complete",
        "onnxserve_stream_parts_sum.*complete",
        "onnxserve_stream_parts_count.*failed",
        "onnxserve_stream_first_part_seconds_count",
    ]
    before = [count(running, sample) for sample in samples]
    list(events(post(f"say {tmp_path}/a b c")))
    list(events(post(f"fail {tmp_path}/a")))
    after = [count(running, sample) for sample in samples]
    assert [value - other for value, other in zip(after, before, strict=True)] == [1, 3, 1, 2]
    assert count(running, "onnxserve_stream_first_part_seconds_sum") > 0


def test_parts_are_sent_as_they_are_made(post, tmp_path):
    signal_file = tmp_path / "told"
    coming = events(post(f"wait {signal_file}"))
    assert json.loads(next(coming))["word"] == str(signal_file)
    assert post("anything", stream=False).json() == {"whole": "anything"}
    signal_file.touch()
    assert list(coming)[-1] == "[DONE]"


def test_http_1_0_client_receives_parts(running, tmp_path):
    signal_file = tmp_path / "told"
    body = json.dumps({"messages": [{"content": f"wait {signal_file}"}], "stream": True}).encode()
    head = (
        b"POST /invocations HTTP/1.0\r\nContent-Type: application/json\r\n"
        b"Connection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    with socket.create_connection(running.address, timeout=30) as client:
        client.sendall(head + body)
        came = b""
        while b"data: " not in came:
            came += client.recv(1000)
        signal_file.touch()
        came += client.makefile("rb").read()
    fields, content = came.split(b"\r\n\r\n", 1)
    assert b"\r\nConnection: close" in fields
    assert b"Transfer-Encoding" not in fields
    assert content.startswith(b"data: {")
    assert content.endswith(b"\n\ndata: [DONE]\n\n")


def test_disconnect_ends_model_stream(post, tmp_path):
    # There are more requests than threads, so that each must release its place.
    for number in range(4):
        signal_file = tmp_path / str(number)
        response = post(f"wait {signal_file}")
        next(events(response))
        response.close()
        wait_until((tmp_path / f"{number}.ended").exists, what="the end of the stream")
    assert post("anything", stream=False).json() == {"whole": "anything"}


@pytest.mark.parametrize(
    ("task", "stream", "status", "words"),
    [
        ("busy", True, 429, "the quota is used up"),
        ("busy", False, 429, "the quota is used up"),
        ("refuse", True, 400, "ValueError: no such tool"),
    ],
)
def test_error_before_first_part_is_ordinary(post, task, stream, status, words):
    response = post(task, stream=stream)
    assert response.status_code == status
    assert words in response.json()["message"]


def test_later_error_is_an_event(post, tmp_path):
    first, error, last = events(post(f"fail {tmp_path}/a"))
    assert json.loads(first)["word"] == f"{tmp_path}/a"
    message = "the model cannot compute this input: ValueError: no such tool"
    assert json.loads(error) == {"error": {"code": "BAD_REQUEST", "message": message}}
    assert last == "[DONE]"


@pytest.mark.parametrize("stream", [False, None, "true"])
def test_answer_is_whole_unless_stream_is_true(post, stream):
    assert post("anything", stream=stream).json() == {"whole": "anything"}
