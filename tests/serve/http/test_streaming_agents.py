"""MLflow's agents answer at `/invocations`, as a whole and in events."""

import json
import warnings

import mlflow
import pytest
from mlflow.pyfunc import ChatModel, ResponsesAgent
from mlflow.types.llm import (
    ChatChoice,
    ChatChoiceDelta,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatMessage,
)
from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent

from mlflow_deploy_plugin.core.statedir.files import SPOOL
from tests.support import servers
from tests.support.spool import read_spool

USER = [{"role": "user", "content": "hello you"}]
CHAT = "/endpoints/chat/invocations"
RESPONSES = "/endpoints/responses/invocations"


class Chat(ChatModel):
    def predict(self, context, messages, params):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        message = ChatMessage(role="assistant", content=messages[-1].content)
        return ChatCompletionResponse(
            choices=[ChatChoice(index=0, message=message, finish_reason="stop")]
        )

    def predict_stream(self, context, messages, params):  # type: ignore[no-untyped-def]
        for word in messages[-1].content.split():
            choice = ChatChunkChoice(delta=ChatChoiceDelta(content=word))
            yield ChatCompletionChunk(choices=[choice])


class Responses(ResponsesAgent):
    def predict(self, request):  # type: ignore[no-untyped-def]
        text = request.tools[0].name if request.tools else request.input[-1].content
        return ResponsesAgentResponse(output=[self.create_text_output_item(text, "1")])

    def predict_stream(self, request):  # type: ignore[no-untyped-def]
        for word in request.input[-1].content.split():
            yield ResponsesAgentStreamEvent(**self.create_text_delta(word, "1"))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    root = tmp_path_factory.mktemp("agents")
    endpoints = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, model in {"responses": Responses(), "chat": Chat()}.items():
            mlflow.pyfunc.save_model(root / name, python_model=model, pip_requirements=[])
            endpoints[name] = {"v": servers.variant(root / name)}
    with servers.gunicorn(root / "state", endpoints) as running:
        yield running


def events(running, path, body):
    lines = running.post(path, json={**body, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_responses_agent_accepts_tools(running):
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
    answer = running.post(RESPONSES, json={"input": USER, "tools": [tool]}).json()
    assert answer["output"][0]["content"][0]["text"] == "weather"
    refused = running.post(RESPONSES, json={"input": USER, "tools": [{"name": "weather"}]})
    assert refused.status_code == 400
    assert "tools.0.type" in refused.json()["message"]


def test_responses_agent_streams_and_is_captured(running):
    deltas = [event["delta"] for event in events(running, RESPONSES, {"input": USER})]
    assert deltas == ["hello", "you"]
    request = read_spool(running.state_dir / SPOOL)[-1]
    assert json.loads(request.feeds["input"][0]) == USER
    assert [part["delta"] for part in json.loads(request.outputs["stream"][0])] == deltas


def test_chat_model_answers_and_streams(running):
    body = {"messages": USER, "temperature": 0.5}
    answer = running.post(CHAT, json=body).json()
    assert answer["choices"][0]["message"]["content"] == "hello you"
    parts = events(running, CHAT, body)
    assert [part["choices"][0]["delta"]["content"] for part in parts] == ["hello", "you"]
