"""The code on the docs page, run without changes."""

import html
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from mlflow_deploy_plugin.runtime.pyfunc_artifact import UndescribedSchema
from mlflow_deploy_plugin.server.http.openapi.examples import Example
from mlflow_deploy_plugin.server.http.pages.views import snippets
from mlflow_deploy_plugin.server.inference.server import Server
from tests.support.handling import ask
from tests.support.servers import variant


def shown(url: str, endpoint: str) -> list[str]:
    """Return the snippets of an endpoint's docs page."""
    page = requests.get(f"{url}/endpoints/{endpoint}/docs", timeout=10).text
    ask = page[page.index("<h2>Example requests</h2>") : page.index("<h2>Routes</h2>")]
    return [html.unescape(code) for code in re.findall(r"<code>(.*?)</code>", ask, re.DOTALL)]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize(("endpoint", "answer"), [("flights", "yes"), ("digits", "1"), ("hostile", "script")])
def test_every_snippet_runs_and_is_answered(pages_server: Any, endpoint: str, answer: str) -> None:
    curl, python, triton = shown(pages_server.url, endpoint)
    assert answer in run(sys.executable, "-c", python)
    if shutil.which("curl"):
        assert answer in run("sh", "-c", curl)
    pytest.importorskip("tritonclient.http")
    assert answer in run(sys.executable, "-c", triton)


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        ({"inputs": ["a"]}, 'print(response.json()["predictions"])'),
        ({"messages": [{"role": "user", "content": "a"}]}, "print(response.json())"),
    ],
)
def test_the_answer_to_a_chat_has_no_predictions(document: dict[str, Any], shown: str) -> None:
    schema = UndescribedSchema((), (), ())
    code = snippets("http://a:1", "/invocations", "chat", schema, Example(document=document))
    assert code["Python, requests"].endswith(shown)


@pytest.mark.parametrize(
    ("spec", "headers", "url"),
    [
        ({}, {}, b"http://flights:1/"),
        ({}, {"x_forwarded_proto": "https"}, b"https://flights:1/"),
        ({"certfile": "/c.pem", "keyfile": "/k.pem"}, {}, b"https://flights:1/"),
    ],
)
def test_the_code_asks_over_tls_where_the_server_or_its_proxy_speaks_it(
    serve_here: Callable[..., Server], model_folders: dict[str, Path], spec: dict[str, str], headers: Any, url: bytes
) -> None:
    server = serve_here({"mixed": {"v": variant(model_folders["mixed"])}}, spec)
    assert url in ask(server, "/docs", "GET", host="flights:1", **headers).body
