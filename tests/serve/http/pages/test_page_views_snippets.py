"""The code on the docs page, run without changes."""

import html
import json
import re
import shutil
import subprocess
import sys

import pytest

from mlflow_deploy_plugin.core.statedir.models import Listed
from mlflow_deploy_plugin.serve.http.pages.page_views import snippets
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.models.lazy_models import LazyModels
from mlflow_deploy_plugin.serve.protocols.examples import Example
from mlflow_deploy_plugin.serve.runtime.schemas.pyfunc_schema import UndescribedSchema
from tests.support.handling import ask, handle
from tests.support.refusals import mentions
from tests.support.servers import opened, variant


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("endpoint", "answer"),
    [("flights", "yes"), ("digits", "1"), ("hostile", "script"), ("wide", "0")],
)
def test_snippets_run_unchanged(pages_server, endpoint, answer):
    page = pages_server.get(f"/endpoints/{endpoint}/docs").text
    examples = page[page.index("<h2>Example requests</h2>") : page.index("<h2>Routes</h2>")]
    codes = re.findall(r"<code>(.*?)</code>", examples, re.DOTALL)
    curl, python, triton = map(html.unescape, codes)
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
def test_snippet_of_chat_prints_whole_answer(document, shown):
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
def test_snippets_use_https_behind_tls(serve_here, model_folders, spec, headers, url):
    server = serve_here({"mixed": {"v": variant(model_folders["mixed"])}}, spec)
    assert url in ask(server, "/docs", "GET", host="flights:1", **headers).body


@pytest.fixture(scope="module")
def server(tmp_path_factory, model_folders):
    endpoints = {name: {"v": variant(model_folders["mixed"])} for name in ("mixed", "other")}
    with opened(tmp_path_factory.mktemp("pages"), endpoints) as server:
        yield server


def ask_from(server, path, client, **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = RawRequest("GET", path, {"host": "models:1", **fields}, b"", client)
    return handle(server, request).body.decode()


def test_front_page_lists_registered_models(serve_here, model_folders):
    server = serve_here({"a": {"v": variant(model_folders["mixed"])}})
    repository = server.repository
    loaded = dict(repository.table)
    repository.lazy = lazy = LazyModels(repository, lambda *_: None, 2**21, 1.0, 4, server.metrics)
    starting = ask_from(server, "/", "127.0.0.1", x_forwarded_prefix="/m")
    models = {"<b>": "7 x", "a": "3 x"} | {f"m{number}": "1 x" for number in range(600)}
    lazy.follow(Listed(uri="models:/*@x", models=models))
    repository.exchange(loaded)
    page = ask_from(server, "/", "127.0.0.1", x_forwarded_prefix="/m")
    rows = re.findall(r"<tr>\s*<th scope=\"row\">(.*?)</tr>", page, re.DOTALL)
    texts = [re.sub(r"\s+", " ", re.sub("<.*?>", "", row)).strip() for row in rows]

    assert "Not ready yet" in starting
    assert len(rows) == 500
    assert '<a href="/m/endpoints/%3Cb%3E">' in rows[1]
    assert mentions(texts[0], "a", "1", "in memory")
    assert mentions(texts[1], html.escape("<b>"), "7", "not in memory")
    assert mentions(page, "models:/*@x", "602 models", "102 more", "2.0 MiB")


@pytest.mark.parametrize("path", ["/", "/docs", "/endpoints/nope", "/pages/try.js"])
def test_pages_forbid_foreign_scripts(server, path):
    answer = ask(server, path, "GET", accept="text/html, */*")
    assert answer.status == (404 if path.endswith("nope") else 200)
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


def local_links(page):
    return set(re.findall(r'(?:href|src)="(/[^"]*)"', page))


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/requests", "/endpoints/mixed", "/endpoints/mixed/requests", "/endpoints/x"],
)
def test_links_have_prefix_of_proxy(server, path):
    plain = ask_from(server, path, "127.0.0.1")
    prefixed = ask_from(server, path, "127.0.0.1", x_forwarded_prefix="/models/flights/")
    expected = {f"/models/flights{link}" for link in local_links(plain)}
    assert expected == local_links(prefixed)
    assert "/" in local_links(plain)
    for attribute in ('data-root="', '"predictionPath":"', "http://models:1"):
        assert prefixed.count(attribute + "/models/flights") == plain.count(attribute)


@pytest.mark.parametrize(
    ("client", "trusted", "prefix", "root"),
    [
        ("127.0.0.1", None, "/a/b-1.x/", "/a/b-1.x"),
        ("127.0.0.1", None, "", "/"),
        ("127.0.0.1", None, "//evil.example", "/"),
        ("127.0.0.1", None, "/\\evil.example", "/"),
        ("127.0.0.1", None, '/"><script>', "/"),
        ("127.0.0.1", None, "/a/../b", "/"),
        ("10.1.2.3", None, "/flights", "/"),
        ("::ffff:10.1.2.3", "10.1.2.3", "/flights", "/flights"),
        ("10.1.2.3", "192.168.0.1, 10.0.0.0/8", "/flights", "/flights"),
        ("11.1.2.3", "192.168.0.1, 10.0.0.0/8", "/flights", "/"),
        ("127.0.0.1", "", "/flights", "/"),
        ("2001:db8::1", "*", "/flights", "/flights"),
    ],
)
def test_only_trusted_proxy_sets_prefix(server, monkeypatch, client, trusted, prefix, root):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if trusted is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    document = json.loads(ask_from(server, "/openapi.json", client, x_forwarded_prefix=prefix))
    assert document["servers"] == [{"url": root}]
