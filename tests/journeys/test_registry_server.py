"""`onnxserve serve --registry @champion` serves each model with the alias."""

import os
import shutil
from urllib.parse import quote

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from tests.support.browser import CHROMIUM, accessibility_findings, chromium
from tests.support.commands import done
from tests.support.servers import single_model
from tests.support.tracking import pass_gate
from tests.support.waiting import wait_until

HOSTILE = ["Sales Forecast 2024", "50% off?#&=", "größe-価格", "x" * 250]
PATHS = ["~x", ".hidden"]
"""The names that URIs of models cannot contain."""
NAMES = ["team-a", "team-b", *HOSTILE]


@pytest.fixture
def registry(tmp_path, new_mlflow, monkeypatch):
    """Register models with version 1 as champion; number n of a list adds n."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.get_tracking_uri())
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.3")
    client = MlflowClient()

    def register(names, tag=None):
        for number, name in enumerate(names):
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            folder = single_model(tmp_path / f"m{len(os.listdir(tmp_path))}", float(number))
            version = client.create_model_version(name, folder.as_uri(), tags=tag).version
            client.set_registered_model_alias(name, "champion", version)
        return client

    return register


def ask(served, name, **headers):
    path = f"{served.url}/models/{quote(name, safe='')}/invocations"
    return requests.post(path, json={"inputs": [[1.0, 2.0, 3.0]]}, headers=headers, timeout=30)


def index(served, **headers):
    entries = requests.post(f"{served.url}/v2/repository/index", headers=headers, timeout=30).json()
    return {entry["name"]: (entry["state"], entry["reason"]) for entry in entries}


@pytest.mark.long
def test_each_model_is_served_and_followed(registry, serve, tmp_path):
    client = registry([*NAMES, *PATHS])
    client.create_registered_model("without")
    served = serve("--registry", "@champion").wait_ready()
    assert {state for state, _ in index(served).values()} == {"UNAVAILABLE"}
    for number, name in enumerate(NAMES):
        answer = ask(served, name)
        assert answer.json() == {"predictions": [[6.0 + number]]}, name
        assert answer.headers["X-Model-Version"] == "1"
    assert ask(served, "without").status_code == 404
    for name in PATHS:
        assert ask(served, name).status_code == 503
        assert "folder" in index(served)[name][1]
    infer = {"inputs": [{"name": "X", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    answer = requests.post(f"{served.url}/v2/models/team-b/infer", json=infer, timeout=30)
    assert answer.json()["outputs"][0]["data"] == [7.0]
    folders = ("endpoint=Sales%20Forecast%202024", "endpoint=team-b")
    captured = lambda: all([*tmp_path.glob(f"home/**/{folder}")] for folder in folders)  # noqa: E731
    wait_until(captured, 20, "captured")
    # The alias moves, is set and is deleted.
    registry(["other", "team-b", "team-a"])
    wait_until(lambda: ask(served, "team-a").headers["X-Model-Version"] == "2", 20, "moved")
    assert ask(served, "team-a").json() == {"predictions": [[8.0]]}
    assert ask(served, "other").json() == {"predictions": [[6.0]]}
    client.delete_registered_model_alias("other", "champion")
    wait_until(lambda: ask(served, "other").status_code == 404, 20, "deleted")
    assert "other" not in index(served)


@pytest.mark.long
@pytest.mark.chromium
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_front_page_is_accessible_and_leads_to_models(registry, serve):
    name = "<img src=x onerror=alert(1)>"
    registry([name, *HOSTILE])
    served = serve("--registry", "@champion").wait_ready()
    with chromium() as browser:
        page = browser.new_page()
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.goto(served.url)
        assert accessibility_findings(page) == []
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("tbody tr").count() == 1 + len(HOSTILE)
        page.get_by_role("link", name=name).click()
        assert page.get_by_role("button", name="Predict").is_visible()
        page.goto(served.url)
        assert "in memory" in page.locator("tbody tr").first.inner_text()


@pytest.mark.long
def test_broken_version_affects_no_other(registry, serve, tmp_path):
    client = registry(["team-a", "team-b", "elsewhere"])
    broken = shutil.copytree(single_model(tmp_path / "good"), tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"not a graph")
    for name in ("team-a", "team-c"):
        if name == "team-c":
            client.create_registered_model(name)
        version = client.create_model_version(name, broken.as_uri()).version
        client.set_registered_model_alias(name, "champion", version)
    served = serve("--registry", "@champion", "--only", "team-*").wait_ready()
    for name in ("team-a", "team-c"):
        answer = ask(served, name)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "model.onnx" in answer.json()["message"]
        assert "model.onnx" in index(served)[name][1]
    assert ask(served, "team-b").json() == {"predictions": [[7.0]]}
    assert ask(served, "elsewhere").status_code == 404
    registry(["team-a"])
    wait_until(lambda: ask(served, "team-a").status_code == 200, 20, "repaired")
    # A version that cannot be loaded does not replace the version in memory.
    version = client.create_model_version("team-b", broken.as_uri()).version
    client.set_registered_model_alias("team-b", "champion", version)
    wait_until(lambda: index(served)["team-b"][1], 20, "reason")
    assert ask(served, "team-b").headers["X-Model-Version"] == "1"


@pytest.mark.long
def test_keys_and_gate_hold_for_each_model(registry, serve):
    registry(["team-a", "team-b"])
    key = done("keys create shop --endpoint team-a --scope infer --scope read").strip()
    reader = {"Authorization": f"Bearer {done('keys create reader --scope read').strip()}"}
    options = ("-C", "server.api_keys=true", "-C", "require=gate=passed")
    served = serve("--registry", "@champion", *options).wait_ready()
    assert ask(served, "team-a").status_code == 401
    mine = {"Authorization": f"Bearer {key}"}
    wait_until(lambda: ask(served, "team-a", **mine).status_code == 503, 20, "the key is known")
    assert "gate" in ask(served, "team-a", **mine).json()["message"]
    assert ask(served, "team-b", **mine).status_code == 403
    html = {"Accept": "text/html"}
    seen = [requests.get(served.url, headers={**key, **html}, timeout=30) for key in (mine, reader)]
    assert [page.status_code for page in seen] == [403, 200]
    assert ["team-b" in page.text for page in seen] == [False, True]
    pass_gate("team-a", "1")
    wait_until(lambda: ask(served, "team-a", **mine).status_code == 200, 60, "passed")
    page = requests.get(f"{served.url}/metrics", headers=reader, timeout=30).text
    assert 'endpoint="other"' in page
    assert 'endpoint="team-a"' not in page
