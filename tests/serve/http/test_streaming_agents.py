"""MLflow's agents answer at `/invocations`, with their tools."""

import warnings

import mlflow
import pytest
from mlflow.pyfunc import ResponsesAgent
from mlflow.types.responses import ResponsesAgentResponse

from tests.support import servers

USER = [{"role": "user", "content": "hello you"}]


class Responses(ResponsesAgent):
    def predict(self, request):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        text = request.tools[0].name if request.tools else request.input[-1].content
        return ResponsesAgentResponse(output=[self.create_text_output_item(text, "1")])


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
