"""MLflow's agents answer at `/invocations`, as a whole and in events."""

import json
import warnings

import mlflow
import pytest
from mlflow.pyfunc import ResponsesAgent
from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent

from mlflow_deploy_plugin.core.statedir.files import SPOOL
from tests.support import servers
from tests.support.spool import read_spool

USER = [{"role": "user", "content": "hello you"}]


class Responses(ResponsesAgent):
    def predict(self, request):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        text = request.tools[0].name if request.tools else request.input[-1].content
        return ResponsesAgentResponse(output=[self.create_text_output_item(text, "1")])

    def predict_stream(self, request):  # type: ignore[no-untyped-def]
        for word in request.input[-1].content.split():
            yield ResponsesAgentStreamEvent(**self.create_text_delta(word, "1"))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    root = tmp_path_factory.mktemp("agents")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(root / "model", python_model=Responses(), pip_requirements=[])
    with servers.gunicorn(root / "state", servers.one_endpoint(root / "model")) as running:
        yield running


def test_responses_agent_accepts_tools(running):
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
    answer = running.post(json={"input": USER, "tools": [tool]}).json()
    assert answer["output"][0]["content"][0]["text"] == "weather"
    refused = running.post(json={"input": USER, "tools": [{"name": "weather"}]})
    assert refused.status_code == 400
    assert "tools.0.type" in refused.json()["message"]


def test_responses_agent_streams_and_is_captured(running):
    *lines, done, end = running.post(json={"input": USER, "stream": True}).text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    deltas = [json.loads(line.removeprefix("data: "))["delta"] for line in lines]
    assert deltas == ["hello", "you"]
    request = read_spool(running.state_dir / SPOOL)[-1]
    assert json.loads(request.feeds["input"][0]) == USER
    assert [part["delta"] for part in json.loads(request.outputs["stream"][0])] == deltas
