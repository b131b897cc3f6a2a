"""`Sinks`: captured requests are sent to other systems."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from asyncio import CancelledError
from types import ModuleType
from urllib.parse import unquote

import pytest

from mlflow_deploy_plugin.core.errors import InvalidRequest, RequestTimeout
from mlflow_deploy_plugin.core.spec.document import dump_spec, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec, SinkSpec
from mlflow_deploy_plugin.core.statedir.files import SPEC, WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint
from mlflow_deploy_plugin.serve.agent import sinks
from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.agent.sinks import DEAD, Sink, Sinks
from mlflow_deploy_plugin.serve.spool.captured_model import exclude_columns
from mlflow_deploy_plugin.serve.spool.frames import segments
from tests.support import shipping
from tests.support.names import WITHOUT_SURROGATES
from tests.support.services.listener import answering
from tests.support.shipping import write

INPUTS = [
    {"name": "carrier", "datatype": "BYTES", "shape": [2], "data": ["AA", "UA"]},
    {"name": "distance", "datatype": "FP64", "shape": [2], "data": [0.0, 1.0]},
]
OUTPUTS = [
    {"name": "prediction", "datatype": "BYTES", "shape": [2], "data": ["late", "late"]},
    {"name": "output.probabilities", "datatype": "FP32", "shape": [2, 2], "data": [0.5] * 4},
]
IDENTITY = {"id": "p-a", "parameters": {"request_id": "a"}}
ANSWER = {**IDENTITY, "model_name": "tiny", "model_version": "3", "outputs": OUTPUTS}
ATTRIBUTES = {
    "specversion": "1.0",
    "id": "p-a",
    "source": "/endpoints/flights",
    "time": "2026-06-01T12:00:00.000000Z",
    "inferenceservicename": "flights",
    "namespace": "default",
    "component": "predictor",
    "endpoint": "champion",
}


class Destination:
    """A receiver that answers with `status`; `answer` may compute it from the ids of
    the events.
    """

    def __init__(self):
        self.url = ""
        self.posts = []
        self.headers = []
        self.answer = lambda ids: 202

    def take(self, request, body):
        content = json.loads(body)
        self.posts.append((dict(request.headers), content))
        status = self.answer(self.ids(content))
        return status, "text/plain", "no", *self.headers

    def ids(self, content):
        return [event["id"] for event in ([content] if isinstance(content, dict) else content)]

    @property
    def received(self):
        return [self.ids(content) for _, content in self.posts]


@pytest.fixture
def destination():
    destination = Destination()
    with answering(destination.take) as destination.url:
        yield destination


@pytest.fixture
def start(tmp_path, destination, clock):
    """Return a function that makes a sink, as each start of the agent does."""

    def start(**options):
        specs = {"audit": SinkSpec(**{"url": destination.url, **options})}
        return Sink("audit", tmp_path, lambda endpoint: specs, threading.Event(), clock)

    return start


@pytest.fixture
def send(tmp_path, writer, start):
    """Return a function that sends the captured requests, and returns the state."""

    def send(sink, max_bytes=math.inf):
        sink.hold(segments(tmp_path / "spool"), max_bytes)
        sink.round()
        return sink.hold([], max_bytes)

    return send


def test_event_has_the_request_and_answer(writer, start, send, destination):
    write(writer, "a", ["AA", "UA"])
    write(writer, "b", ["AA"])
    state = send(start())
    ((headers, (event, other)),) = destination.posts
    assert headers["content-type"] == "application/cloudevents-batch+json"
    assert event == {
        **ATTRIBUTES,
        "type": "org.kubeflow.serving.inference.response",
        "datacontenttype": "application/json",
        "data": {**ANSWER, "inputs": INPUTS},
    }
    assert other["id"] == "p-b"
    assert (state.events, state.waiting_bytes) == ({"sent": 2}, 0)


@pytest.mark.parametrize(
    ("options", "bodies"),
    [
        ({"batch": 1}, {"response": {**ANSWER, "inputs": INPUTS}}),
        ({"kserve": True}, {"request": {**IDENTITY, "inputs": INPUTS}, "response": ANSWER}),
    ],
)
def test_single_events_have_headers(writer, start, send, destination, options, bodies):
    write(writer, "a", ["AA", "UA"])
    send(start(**options))
    for (headers, content), (kind, body) in zip(destination.posts, bodies.items(), strict=True):
        sent = {name[3:]: value for name, value in headers.items() if name.startswith("ce-")}
        assert sent == {**ATTRIBUTES, "type": f"org.kubeflow.serving.inference.{kind}"}
        assert content == body


@pytest.mark.parametrize("name", WITHOUT_SURROGATES)
@pytest.mark.parametrize("options", [{"batch": 1}, {"kserve": True}, {}])
def test_name_outside_latin_1_is_sent(writer, start, send, destination, options, name):
    write(writer, "a", ["AA"], endpoint=name)
    write(writer, "b", ["AA"])
    state = send(start(**options))
    assert (state.error, state.waiting_bytes) == ("", 0)
    headers, content = destination.posts[0]
    if options:
        event = {key[3:]: unquote(headers[key]) for key in headers if key.startswith("ce-")}
        assert not any(set(' "') & {*headers[key]} for key in headers if key.startswith("ce-"))
    else:
        event = content[0]
    assert event["inferenceservicename"] == name
    assert event["source"].isascii()
    assert unquote(event["source"]) == f"/endpoints/{name}"
    assert destination.received[-1][-1] == "p-b"


@pytest.mark.parametrize(
    ("status", "header"),
    [(503, ("Retry-After", "90")), (429, None), (401, None), (302, ("Location", "/else"))],
)
def test_requests_wait_for_the_destination(
    writer, start, send, destination, tmp_path, clock, status, header
):
    destination.answer = lambda ids: status
    destination.headers = [header] if header else []
    sink = start()
    shipper = Shipper(
        tmp_path / "spool", str(tmp_path / "log"), hold=lambda listed: sink.hold(listed, math.inf)
    )
    for request in "ab":
        write(writer, request, ["AA"])
        writer.close()
        assert shipper.ship() == 1  # The log does not wait.
    state = send(sink)
    assert state.waiting_bytes
    assert str(status) in state.error
    destination.answer = lambda ids: 200
    clock.now += 80 if status == 503 else 1
    assert send(sink).error  # The pause is not over.
    clock.now += 15
    assert send(sink).error == ""
    assert not [*sink.folder.iterdir()]
    assert destination.received == [["p-a"], ["p-a"], ["p-b"]]


@pytest.mark.parametrize("status", [400, 413, 415, 431])
def test_rejected_event_is_set_aside(writer, start, send, destination, status):
    for request in "abcde":
        write(writer, request, ["AA"])
    destination.answer = lambda ids: status if "p-c" in ids else 200
    sink = start()
    assert send(sink).events == {"sent": 4, "rejected": 1}
    (line,) = (sink.folder / DEAD).read_text().splitlines()
    dead = json.loads(line)
    assert (dead["status"], dead["answer"], dead["event"]["id"]) == (status, "no", "p-c")


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 4}])
@pytest.mark.parametrize("status", [403, 500])
def test_failing_event_stops_others_only_shortly(
    writer, start, send, destination, clock, options, status
):
    for request in "abcdef":
        write(writer, request, ["AA"])
    destination.answer = lambda ids: status if {"p-a", "p-b", "p-d"} & {*ids} else 200
    sink = start(**options)
    for _ in range(10):
        assert str(status) in send(sink).error
        clock.now += 61
    assert send(sink).events == {"sent": 3, "rejected": 3}
    dead = map(json.loads, (sink.folder / DEAD).read_text().splitlines())
    assert [line["event"]["id"] for line in dead] == ["p-a", "p-b", "p-d"]


@pytest.mark.parametrize("path", ["", "/other"])
def test_outage_loses_no_event(tmp_path, writer, send, destination, clock, path):
    """Another destination of the queue may work."""
    urls = {"flights": destination.url, "prices": f"{destination.url}{path}"}
    specs = {name: {"audit": SinkSpec(url=url, batch=1)} for name, url in urls.items()}
    sink = Sink("audit", tmp_path, specs.__getitem__, threading.Event(), clock)
    for request in "abc":
        write(writer, request, ["AA"])
    write(writer, "d", ["AA"], endpoint="prices")
    destination.answer = lambda ids: 200 if path and "p-d" in ids else 403
    for _ in range(12):
        assert send(sink).error
        clock.now += 61
    destination.answer = lambda ids: 200
    assert send(sink).events == {"sent": 4}


def test_halves_of_a_batch_are_sent_once(writer, start, send, destination, clock):
    for request in "abcd":
        write(writer, request, ["AA"])
    answers = iter([413, 200, 429, 200])
    destination.answer = lambda ids: next(answers)
    sink = start()
    assert "429" in send(sink).error
    clock.now += 60
    assert send(sink).events == {"sent": 4}
    first = ["p-a", "p-b"]
    last = ["p-c", "p-d"]
    assert destination.received == [first + last, first, last, last]


def test_excluded_columns_are_not_sent(writer, start, send, destination, monkeypatch):
    hidden = exclude_columns(shipping.TABULAR, ("distance",), ("carrier", "prediction"))
    monkeypatch.setattr(shipping, "TABULAR", hidden)
    write(writer, "a", ["AA"])
    send(start())
    ((_, (event,)),) = destination.posts
    (carrier,) = event["data"]["inputs"]
    assert (carrier["name"], len(carrier["data"][0])) == ("carrier", 32)
    assert "late" not in json.dumps(event)


def test_oldest_requests_are_dropped_at_the_limit(writer, start, send, destination, tmp_path):
    destination.answer = lambda ids: 503
    sink = start()
    for request in "ab":
        write(writer, request, ["AA"])
        writer.close()
        assert not send(sink).events
        for segment in (tmp_path / "spool").iterdir():
            segment.unlink()
        limit = sum(segment.stat().st_size for segment in segments(sink.folder)) - 1
    assert send(sink, limit).events == {"dropped": 1}
    assert len([*sink.folder.iterdir()]) == 2  # A segment and its position.


@pytest.mark.parametrize(
    ("secret", "error"), [("", "ONNXSERVE_SINK_A"), ("se\ncret", "ValueError")]
)
def test_secret_is_only_in_the_header(
    writer, start, send, destination, monkeypatch, caplog, secret, error
):
    write(writer, "a", ["AA"])
    sink = start(authorization="ONNXSERVE_SINK_A")
    monkeypatch.setenv("ONNXSERVE_SINK_A", secret)
    assert error in send(sink).error
    assert "cret" not in caplog.text
    monkeypatch.setenv("ONNXSERVE_SINK_A", "Bearer secret\n")
    send(start(authorization="ONNXSERVE_SINK_A"))
    ((headers, _),) = destination.posts
    assert headers["authorization"] == "Bearer secret"


@pytest.fixture
def toy_sink(tmp_path, monkeypatch):
    """Install a sink for toy://, and return its module."""
    (tmp_path / "toy-1.0.dist-info").mkdir()
    (tmp_path / "toy-1.0.dist-info" / "entry_points.txt").write_text(
        "[onnxserve.sinks]\ntoy = toy_sink:send\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = ModuleType("toy_sink")
    monkeypatch.setitem(sys.modules, "toy_sink", module)
    yield module
    sinks._sender.cache_clear()


def test_sink_of_a_distribution_receives_events(writer, start, send, toy_sink, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_SINK_A", "secret")
    received = []
    toy_sink.send = lambda *sent: received.append(sent)
    for request in "ab":
        write(writer, request, ["AA", "UA"])
    sink = start(url="toy://host/path", authorization="ONNXSERVE_SINK_A")
    assert send(sink).events == {"sent": 2}
    ((url, authorization, events),) = received
    assert (url, authorization) == ("toy://host/path", "secret")
    assert [event["id"] for event in events] == ["p-a", "p-b"]
    assert events[0]["data"] == {**ANSWER, "inputs": INPUTS}


@pytest.mark.parametrize(
    ("scheme", "failure", "counted", "error"),
    [
        ("toy", InvalidRequest("no"), {"rejected": 1}, ""),
        ("toy", RequestTimeout("no"), {"rejected": 1}, ""),
        ("toy", FileNotFoundError("down"), {}, "down"),
        ("toy", SystemExit(), {}, "SystemExit"),
        ("toy", CancelledError(), {}, "CancelledError"),
        ("toy", None, {}, "toy_sink:send"),
        ("other", None, {}, "'other'"),
    ],
)
def test_failing_sink_rejects_or_waits(
    writer, start, send, toy_sink, scheme, failure, counted, error
):
    def fail(*sent):
        raise failure

    if failure is not None:
        toy_sink.send = fail
    write(writer, "a", ["AA"])
    state = send(start(url=f"{scheme}://host/"))
    assert state.events == counted
    assert error in state.error
    assert bool(state.waiting_bytes) is bool(error)


def test_new_sink_starts_after_the_log(writer, shipper, tmp_path, start, send, destination):
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1
    write(writer, "b", ["AA"])
    send(start())
    assert destination.received == [["p-b"]]


@pytest.fixture
def wanted(tmp_path, destination):
    """Make the sink wanted, as the agent does for the endpoint's spec."""
    capture = CaptureSpec(sinks={"audit": SinkSpec(url=destination.url, batch=2)})
    endpoint = WantedEndpoint(capture=capture)
    write_state(tmp_path / WANTED, Wanted(generation=1, endpoints={"flights": endpoint}))


def test_threads_send_at_the_end(tmp_path, writer, destination, wanted):
    write(writer, "a", ["AA"])
    running = Sinks(tmp_path)
    running.hold(segments(tmp_path / "spool"))
    running.end()
    assert destination.received == [["p-a"]]


def test_sinks_of_all_registered_models(tmp_path, writer, destination):
    write(writer, "a", ["AA"])
    url = {"capture.sinks.audit.url": destination.url}
    (tmp_path / SPEC).write_text(dump_spec(new_endpoint("all", "models:/*@champion", url)))
    running = Sinks(tmp_path)
    running.hold(segments(tmp_path / "spool"))
    running.end()
    assert destination.received == [["p-a"]]


@pytest.mark.long
def test_killed_agent_continues_at_its_position(tmp_path, writer, destination, wanted):
    for request in "abcde":
        write(writer, request, ["AA"])
    writer.close()
    command = [sys.executable, "-m", "mlflow_deploy_plugin.serve.agent", str(tmp_path), "--ship"]
    environment = os.environ | {"ONNXSERVE_LOG_URI": str(tmp_path / "log")}
    agents = [subprocess.Popen(command, env=environment)]

    def kill_at_second(ids):
        if "p-c" in ids and len(agents) == 1:
            agents[0].kill()
        return 200

    destination.answer = kill_at_second
    assert agents[0].wait(60) == -signal.SIGKILL
    agents.append(subprocess.Popen(command, env=environment))
    assert agents[1].wait(60) == 0
    assert destination.received == [["p-a", "p-b"], *2 * [["p-c", "p-d"]], ["p-e"]]
    assert not [*(tmp_path / "sinks" / "audit").iterdir()]
