"""Tests of the page and its store."""

import json
import re
from contextlib import closing
from functools import partial

import pytest

from mlflow_deploy_plugin.core.errors import StoreUnavailable
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store import store
from mlflow_deploy_plugin.core.store.audit import Login
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.ui import app
from tests.support.console import FIXTURE, PAGE
from tests.support.raising import raise_it
from tests.support.refusals import mentions
from tests.support.services.postgresql import postgresql_server

SCRIPT = f'<script src="{PAGE}/console.js" defer></script>'


def test_page_makes_no_external_requests(mlflow_app, endpoint):
    answer = mlflow_app.client.get(PAGE)
    html = answer.text
    assert answer.status_code == 200
    assert endpoint in html
    assert "@champion is gated" in html
    assert mentions(html, "evaluation", "accuracy 0.71", "0.80")
    assert f'<a href="/#/models/{endpoint.removeprefix("of-")}/versions/2">2</a>' in html
    assert f">created the endpoint {endpoint}<" in html
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert re.findall(r'(?:src|href)="(?:https?:)?//', html) == []
    assert re.findall("<script.*", html) == [SCRIPT]


@pytest.mark.long
@pytest.mark.postgresql
def test_postgresql_moves_a_version_to_production(mlflow_app, tmp_path):
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    with postgresql_server() as url:
        registry = SqlAlchemyStore(url)
        try:
            registry.create_registered_model("flights")
            for version in ("1", "2"):
                registry.create_model_version("flights", str(tmp_path))
                registry.transition_model_version_stage("flights", version, "Production", True)
            versions = registry.search_model_versions("name = 'flights'")
        finally:
            registry.engine.dispose()

    assert {entry.version: entry.current_stage for entry in versions} == {
        1: "Archived",
        2: "Production",
    }


@pytest.mark.parametrize(
    ("name", "kind"), [("console.css", "text/css"), ("console.js", "text/javascript")]
)
def test_style_and_script_are_served(mlflow_app, name, kind):
    answer = mlflow_app.client.get(f"{PAGE}/{name}")
    assert answer.status_code == 200
    assert answer.mimetype == kind
    assert mlflow_app.client.get(f"{PAGE}/console.py").status_code == 404


def test_html_in_reasons_is_escaped(mlflow_app):
    mlflow_app.store.record("update", endpoint="x", why="<script>alert(1)</script>")
    html = mlflow_app.client.get(PAGE).text
    assert re.findall("<script.*", html) == [SCRIPT]
    assert "&lt;script&gt;alert(1)" in html


def test_history_is_streamed_as_json_lines(mlflow_app, endpoint):
    answer = mlflow_app.client.get(f"{PAGE}/history.jsonl?endpoint={endpoint}")
    assert answer.is_streamed, "the trail may be larger than the memory"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    recorded = [(line["action"], line["endpoint"]) for line in lines if line["actor"] != FIXTURE]
    assert recorded == [("create", endpoint)]


def test_history_omits_other_registries(mlflow_app):
    own = mlflow_app.client.get(f"{PAGE}/caller").json["registry"]
    url = load_settings().store_url
    for registry in (own, "2026-01-01T00:00:00.000+00:00", ""):
        with closing(open_store(url, find_login=partial(Login, "", registry))) as shared:
            shared.record("approve", actor=f"ada of {registry}", model="shared")

    lines = mlflow_app.client.get(f"{PAGE}/history.jsonl?model=shared").text.splitlines()
    actors = [f"ada of {own}", "ada of "]
    assert [json.loads(line)["actor"] for line in lines] == actors
    page = mlflow_app.client.get(PAGE).text
    assert [actor in page for actor in (*actors, "ada of 2026-01-01")] == [True, True, False]


@pytest.mark.parametrize(
    ("query", "shown", "links"),
    [
        ("endpoint=paged", range(59, 9, -1), {"Older"}),
        ("endpoint=paged&page=1", range(9, -1, -1), {"Newer"}),
        ("endpoint=paged&page=2", [], {"Newer"}),
        ("endpoint=paged&page=junk", range(59, 9, -1), {"Older"}),
        (f"endpoint=paged&page={10**30}", [], {"Newer"}),
        ("endpoint=paged&actor=EVA", range(59, 0, -2), set()),
        ("endpoint=paged&actor=e%25a", [], set()),
        ("model=paged&action=promote", range(58, -1, -2), set()),
        ("endpoint=paged&action=alias", [], set()),
    ],
)
def test_history_page_is_filtered_and_paged(mlflow_app, query, shown, links):
    stop = {"action": "stop", "actor": "eva@desk"}
    promote = {"action": "promote", "actor": "ada", "model": "paged"}
    if not [*mlflow_app.store.events("paged")]:
        for number in range(60):
            event = stop if number % 2 else promote
            mlflow_app.store.record(endpoint="paged", why=f"step {number}", **event)
    answer = mlflow_app.client.get(f"{PAGE}/history?{query}")
    assert answer.status_code == 200
    found = re.findall(r'data-label="Why">step (\d+)<', answer.text)
    assert [*map(int, found)] == [*shown]
    assert {*re.findall(">(Newer|Older)</a>", answer.text)} == links
    if links == {"Older"}:
        assert f'href="{PAGE}/history?page=1&amp;endpoint=paged"' in answer.text


def test_console_shows_the_newest_ten_events(mlflow_app, endpoint):
    for number in range(12):
        mlflow_app.store.record("update", endpoint=endpoint, why=f"change {number}")
    html = mlflow_app.client.get(f"{PAGE}?endpoint={endpoint}").text
    assert re.findall(r'data-label="Why">change (\d+)<', html) == [*map(str, range(11, 1, -1))]
    assert html.count('data-label="What"') == 10
    assert f'href="{PAGE}/history?endpoint={endpoint}"' in html


def test_interrupted_history_ends_with_an_error(mlflow_app, endpoint, monkeypatch):
    monkeypatch.setattr(app, "_EVENTS_AT_ONCE", 1)
    monkeypatch.setattr(store, "_EVENTS_AT_ONCE", 1)
    mlflow_app.store.record("update", endpoint=endpoint)
    answer = mlflow_app.client.get(f"{PAGE}/history.jsonl?endpoint={endpoint}")
    monkeypatch.setattr(
        store.Store, "reading", lambda *_, **__: raise_it(StoreUnavailable("it is away"))
    )
    first, last = (json.loads(line) for line in answer.text.splitlines())
    assert first["action"] == "register"
    assert last == {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "it is away"}


def test_artifact_server_has_no_console(mlflow_app, monkeypatch):
    # --artifacts-only sets this variable.
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACTS_ONLY", "true")
    answer = mlflow_app.client.get(PAGE)
    assert answer.status_code == 503
    assert "--artifacts-only" in answer.text


def test_unusable_store_is_named(mlflow_app, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "sqlite:////proc/nobody/can/write/here.db")
    answer = mlflow_app.client.get(PAGE)
    assert answer.status_code == 503
    assert mentions(answer.text, "the store", "sqlite:////proc/nobody")


def test_wsgi_server_has_no_change_feed(mlflow_app):
    answer = mlflow_app.client.get("/onnxserve/changes?uri=models:/X@champion")
    assert answer.status_code == 404
    assert "uvicorn" in answer.text
