"""MLflow's agents answer `/invocations`, with their tools."""

import json
import warnings

import mlflow
import pytest
from mlflow.pyfunc import ResponsesAgent
from mlflow.types.responses import ResponsesAgentResponse

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.pyfunc.scorer import load_scorer
from tests.support.refusals import refused

USER = [{"role": "user", "content": "hello you"}]


class Responses(ResponsesAgent):
    def predict(self, request):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        text = request.tools[0].name if request.tools else request.input[-1].content
        return ResponsesAgentResponse(output=[self.create_text_output_item(text, "1")])


@pytest.fixture
def scorer(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(tmp_path / "model", python_model=Responses(), pip_requirements=[])
    return load_scorer(tmp_path / "model")


def ask(scorer, *tools):
    body = json.dumps({"input": USER, "tools": tools}).encode()
    return json.loads(scorer.invoke("application/json", body).body)


@pytest.mark.long
def test_responses_agent_accepts_tools(scorer):
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
    assert ask(scorer, tool)["output"][0]["content"][0]["text"] == "weather"
    with refused(OnnxserveError, "tools.0.type") as caught:
        ask(scorer, {"name": "weather"})
    assert caught.value.http_status == 400
