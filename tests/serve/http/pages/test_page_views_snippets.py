"""The code on the docs page, run without changes."""

import html
import json
import re
import shutil
import subprocess
import sys

import pytest
import requests

from mlflow_deploy_plugin.serve.http.pages.page_views import snippets
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.protocols.examples import Example
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import UndescribedSchema
from tests.support.handling import ask, handle
from tests.support.servers import variant


def shown(url, endpoint):
    """Return the snippets of an endpoint's docs page."""
    page = requests.get(f"{url}/endpoints/{endpoint}/docs", timeout=10).text
    ask = page[page.index("<h2>Example requests</h2>") : page.index("<h2>Routes</h2>")]
    return [html.unescape(code) for code in re.findall(r"<code>(.*?)</code>", ask, re.DOTALL)]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("endpoint", "answer"), [("flights", "yes"), ("digits", "1"), ("hostile", "script")]
)
def test_every_snippet_runs_and_is_answered(pages_server, endpoint, answer):
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
def test_the_answer_to_a_chat_has_no_predictions(document, shown):
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
    serve_here, model_folders, spec, headers, url
):
    server = serve_here({"mixed": {"v": variant(model_folders["mixed"])}}, spec)
    assert url in ask(server, "/docs", "GET", host="flights:1", **headers).body


def local_links(page):
    return set(re.findall(r'(?:href|src)="(/[^"]*)"', page.decode()))


def ask_from(server, path, client, **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return handle(server, RawRequest("GET", path, {"host": "models:1", **fields}, b"", client))


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/requests", "/endpoints/mixed", "/endpoints/mixed/requests", "/endpoints/x"],
)
def test_every_link_of_a_page_has_the_prefix_of_the_proxy(serve_here, model_folders, path):
    server = serve_here(
        {name: {"v": variant(model_folders["mixed"])} for name in ("mixed", "other")}
    )
    plain = ask_from(server, path, "127.0.0.1")
    prefixed = ask_from(server, path, "127.0.0.1", x_forwarded_prefix="/models/flights/")
    assert {f"/models/flights{link}" for link in local_links(plain.body)} == local_links(
        prefixed.body
    )
    assert "/" in local_links(plain.body)
    for attribute in (b'data-root="', b'"predictionPath":"', b"http://models:1"):
        assert prefixed.body.count(attribute + b"/models/flights") == plain.body.count(attribute)


@pytest.mark.parametrize(
    ("client", "trusted", "prefix", "root"),
    [
        ("127.0.0.1", None, "/flights", "/flights"),
        ("127.0.0.1", None, "/a/b-1.x/", "/a/b-1.x"),
        ("127.0.0.1", None, "", "/"),
        ("127.0.0.1", None, "/", "/"),
        ("127.0.0.1", None, "//evil.example", "/"),
        ("127.0.0.1", None, "/\\evil.example", "/"),
        ("127.0.0.1", None, "https://evil.example", "/"),
        ("127.0.0.1", None, '/"><script>', "/"),
        ("127.0.0.1", None, "/a/../b", "/"),
        ("10.1.2.3", None, "/flights", "/"),
        ("", None, "/flights", "/"),
        ("10.1.2.3", "10.1.2.3", "/flights", "/flights"),
        ("::ffff:10.1.2.3", "10.1.2.3", "/flights", "/flights"),
        ("10.1.2.3", "192.168.0.1, 10.0.0.0/8", "/flights", "/flights"),
        ("11.1.2.3", "192.168.0.1, 10.0.0.0/8", "/flights", "/"),
        ("127.0.0.1", "10.0.0.0/8", "/flights", "/"),
        ("127.0.0.1", "", "/flights", "/"),
        ("2001:db8::1", "*", "/flights", "/flights"),
    ],
)
def test_only_a_trusted_proxy_sets_the_servers_of_the_document(
    serve_here, model_folders, monkeypatch, client, trusted, prefix, root
):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if trusted is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    server = serve_here({"mixed": {"v": variant(model_folders["mixed"])}})
    document = json.loads(ask_from(server, "/openapi.json", client, x_forwarded_prefix=prefix).body)
    assert document["servers"] == [{"url": root}]
