"""OpenAI's own client calls MLflow's agents by its routes."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow.pyfunc import ChatModel, PythonModel, ResponsesAgent
from mlflow.types.llm import (
    ChatChoice,
    ChatChoiceDelta,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatMessage,
)
from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import SPOOL
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.protocols.openai import CHAT_COMPLETIONS
from tests.support import servers
from tests.support.keys import write_keys
from tests.support.spool import read_spool

openai = pytest.importorskip("openai")
USER = [{"role": "user", "content": "hello you"}]


class Chat(ChatModel):
    def predict(self, context, messages, params):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        message = ChatMessage(role="assistant", content=messages[-1].content)
        return ChatCompletionResponse(
            choices=[ChatChoice(index=0, message=message, finish_reason="stop")],
        )

    def predict_stream(self, context, messages, params):  # type: ignore[no-untyped-def]
        for word in messages[-1].content.split():
            yield ChatCompletionChunk(
                choices=[ChatChunkChoice(delta=ChatChoiceDelta(content=word))],
            )


class Responses(ResponsesAgent):
    def predict(self, request):  # type: ignore[no-untyped-def]
        text = request.tools[0].name if request.tools else request.input[-1].content
        return ResponsesAgentResponse(output=[self.create_text_output_item(text, "1")])

    def predict_stream(self, request):  # type: ignore[no-untyped-def]
        for word in request.input[-1].content.split():
            if word == "raise":
                raise ValueError("no such tool")
            yield ResponsesAgentStreamEvent(**self.create_text_delta(word, "1"))


class ListedChat(PythonModel):
    """Answers like MLflow's transformers with the task `llm/v1/chat`, with a list of
    one response.
    """

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        message = {
            "role": "assistant",
            "content": list(model_input["messages"])[-1]["content"],
        }
        return [
            {
                "id": "1",
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message}],
            },
        ]


class Embedder(PythonModel):
    """Answers like MLflow's sentence transformers with the task `llm/v1/embeddings`,
    from the first column only.
    """

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        (texts,) = (list(model_input[name]) for name in model_input)
        data = [
            {"object": "embedding", "index": at, "embedding": [len(text), 0.5]}
            for at, text in enumerate(texts)
        ]
        return {"object": "list", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
    bias_folders: dict[str, Path],
) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("agents")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, model in {"responses": Responses(), "chat": Chat()}.items():
            mlflow.pyfunc.save_model(root / name, python_model=model, pip_requirements=[])
        for name, model, task in (
            ("listed", ListedChat(), "llm/v1/chat"),
            ("embedder", Embedder(), "llm/v1/embeddings"),
        ):
            mlflow.pyfunc.save_model(
                root / name,
                python_model=model,
                pip_requirements=[],
                metadata={"task": task},
            )
    folders = {name: root / name for name in ("responses", "chat", "listed", "embedder")} | {
        "bias": bias_folders["1"],
    }
    state_dir = root / "state"
    write_keys(
        state_dir,
        {"sk-mine": KeyEntry(name="mine", scopes=("infer", "read"))},
    )
    endpoints = {name: {"v": servers.variant(folder)} for name, folder in folders.items()}
    with servers.gunicorn(state_dir, endpoints, ServerSpec(api_keys=True)) as running:
        yield running


@pytest.fixture
def client(running: Any) -> Callable[..., Any]:
    def client(path: str = "", api_key: str = "sk-mine") -> Any:
        return openai.OpenAI(base_url=running.url + path, api_key=api_key, max_retries=0)

    return client


@pytest.mark.parametrize("path", ["", "/v1", "/endpoints/responses"])
@pytest.mark.parametrize("given", ["hello you", USER])
def test_a_responses_agent_answers(
    client: Callable[..., Any],
    path: str,
    given: Any,
) -> None:
    assert client(path).responses.create(model="any", input=given).output_text == "hello you"


def test_a_responses_agent_takes_tools(client: Callable[..., Any]) -> None:
    tool = {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object"},
        "strict": True,
    }
    assert (
        client()
        .responses.create(
            model="any",
            input="hello",
            tools=[tool],
        )
        .output_text
        == "weather"
    )
    with pytest.raises(openai.BadRequestError, match=r"tools\.0\.type Field required"):
        client().responses.create(
            model="any",
            input="hello",
            tools=[{"name": "weather"}],
        )


@pytest.mark.parametrize("path", ["/v1", "/endpoints/responses"])
def test_a_responses_agent_answers_in_events(
    running: Any,
    client: Callable[..., Any],
    path: str,
) -> None:
    events = client(path).responses.create(
        model="any",
        input="hello you",
        stream=True,
    )
    assert [(event.type, event.delta) for event in events] == [
        ("response.output_text.delta", "hello"),
        ("response.output_text.delta", "you"),
    ]
    request = read_spool(running.state_dir / SPOOL)[-1]
    assert json.loads(request.feeds["input"][0]) == USER
    assert [part["delta"] for part in json.loads(request.outputs["stream"][0])] == ["hello", "you"]


def test_a_chat_model_answers(client: Callable[..., Any]) -> None:
    completions = client("/endpoints/chat").chat.completions
    answer = completions.create(model="any", messages=USER, temperature=0.5)
    assert answer.choices[0].message.content == "hello you"
    parts = completions.create(model="any", messages=USER, stream=True)
    assert [part.choices[0].delta.content for part in parts] == ["hello", "you"]


@pytest.mark.parametrize("path", ["", "/v1"])
def test_the_model_of_a_request_is_the_endpoint_that_answers(
    client: Callable[..., Any],
    path: str,
) -> None:
    answer = client(path).chat.completions.create(model="chat", messages=USER)
    assert answer.choices[0].message.content == "hello you"
    assert client(path).embeddings.create(model="embedder", input="hello").data[0].embedding == [
        5,
        0.5,
    ]


def test_the_client_lists_the_endpoints(client: Callable[..., Any]) -> None:
    listed = client("/v1").models.list()
    assert [model.id for model in listed] == ["responses", "chat", "listed", "embedder", "bias"]
    assert listed.models == [model.id for model in listed]  # KServe's form


def test_the_one_answer_of_a_list_is_the_answer(client: Callable[..., Any]) -> None:
    answer = client("/endpoints/listed").chat.completions.create(model="any", messages=USER)
    assert answer.choices[0].message.content == "hello you"


@pytest.mark.parametrize("given", ["hello", ["hello", "you"]])
def test_a_model_of_embeddings_answers(client: Callable[..., Any], given: Any) -> None:
    answer = client("/endpoints/embedder").embeddings.create(model="any", input=given)
    assert [item.embedding for item in answer.data] == [
        [5, 0.5],
        [3, 0.5],
    ][: len(answer.data)]
    with pytest.raises(openai.BadRequestError, match="without dimensions"):
        client("/endpoints/embedder").embeddings.create(model="any", input=given, dimensions=64)


def test_an_agent_is_described_with_the_route_of_its_task_alone(running: Any) -> None:
    headers = {"Authorization": "Bearer sk-mine"}
    paths = running.get("/openapi.json", headers=headers).json()["paths"]
    routes = [path for path in paths if path.endswith(("/responses", "/chat/completions"))]
    assert set(routes) >= {"/endpoints/responses/responses", "/endpoints/chat/chat/completions"}
    assert not {"/endpoints/responses/chat/completions", "/endpoints/chat/responses"} & {*routes}
    assert not [path for path in routes if path.startswith("/endpoints/bias/")]


def test_an_error_has_the_words_that_the_client_shows(client: Callable[..., Any]) -> None:
    responses = client().responses
    message = "the model cannot compute this input: ValueError: no such tool"
    with pytest.raises(openai.BadRequestError, match=f"400 - {message}"):
        responses.create(model="any", input="raise", stream=True)
    with pytest.raises(openai.APIError, match=message) as raised:
        list(responses.create(model="any", input="hello raise", stream=True))
    assert raised.value.code == "BAD_REQUEST"
    with pytest.raises(openai.AuthenticationError, match=r"401 - .*key"):
        client(api_key="sk-other").responses.create(model="any", input="hello")


@pytest.mark.parametrize(
    ("path", "task", "own_route"),
    [
        ("/endpoints/bias", "missing", "/invocations"),
        ("/endpoints/responses", "'agent/v1/responses'", "/responses"),
    ],
)
def test_a_model_of_another_form_says_where_to_ask(
    client: Callable[..., Any],
    path: str,
    task: str,
    own_route: str,
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"/chat/completions .*{task}.*{own_route}"):
        client(path).chat.completions.create(model="any", messages=USER)


def test_a_whole_answer_is_not_taken_for_an_empty_stream() -> None:
    artifact = SimpleNamespace(task="llm/v1/chat", is_streamable=False)
    variant: Any = SimpleNamespace(
        loaded=SimpleNamespace(predictor=SimpleNamespace(artifact=artifact)),
    )
    with pytest.raises(InvalidRequest, match=r"no predict_stream.*without stream"):
        CHAT_COMPLETIONS.decode(
            {"content-type": "application/json"},
            b'{"messages": [], "stream": true}',
            variant,
            100,
        )
