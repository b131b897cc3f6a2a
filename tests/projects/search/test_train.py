"""Tests that the best model of a search is rolled out, and that a search without a
possible rollout is refused.
"""

import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotReady
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from projects.search.train import MODEL, Search, deployed_model
from tests.support.deployments import empty_home
from tests.support.mlflow_runs import mlflow_run, parameter_options
from tests.support.refusals import refused
from tests.support.tracking import tracking_at

ROOT = Path(__file__).parents[3]
SMALL = {
    "trials": 2,
    "rows": 1500,
    "months": 1,
    "deploy": "flights",
    "every": "1s",
    "min_requests": 5,
}


@contextmanager
def traffic(url):
    """Send the flight of the README again and again; yield the number of answers by
    version and status.
    """
    match = re.search(r"-d '(\{.*\})'", (ROOT / "projects" / "search" / "README.md").read_text())
    assert match is not None
    flight = json.loads(match[1])
    ended = threading.Event()
    answers = Counter[tuple[str, int]]()

    def send():
        session = requests.Session()
        while not ended.wait(0.02):
            response = session.post(url, json=flight, timeout=30)
            answers[response.headers["X-Model-Version"], response.status_code] += 1

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield answers
    finally:
        ended.set()
        sender.join()


@pytest.fixture
def client(tmp_path, new_database, monkeypatch):
    store = new_database(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with empty_home(tmp_path) as opened, tracking_at(store):
        yield opened


@pytest.fixture
def deployments(client):
    """Deployments with the endpoint `flights`, whose server is stopped, and `files`,
    which serves a folder.
    """
    MlflowClient().create_registered_model("late")
    MlflowClient().create_registered_model(
        "strict", {GATE_POLICY_TAG: "evaluation: {margin: wide}"}
    )
    with open_deployments(lambda line: None) as opened:
        opened.store.add_endpoint("onnxserve", new_endpoint("flights", "models:/late@champion"))
        opened.store.add_endpoint("onnxserve", new_endpoint("files", "/models/late"))
        yield opened


@pytest.mark.usefixtures("deployments")
@pytest.mark.parametrize(
    ("options", "kind", "names"),
    [
        (
            Search(deploy="flights"),
            NotReady,
            ("deploy flights", "not running", "`onnxserve start flights`"),
        ),
        (
            Search(deploy="flights", registered_model="early"),
            InvalidConfig,
            ("early", "'flights'", "late", "omit"),
        ),
        (
            Search(deploy="files"),
            InvalidConfig,
            ("deploy files", "/models/late", "registered model"),
        ),
        (
            Search(deploy="new", registered_model="strict"),
            InvalidConfig,
            ("strict", "evaluation.margin"),
        ),
        (Search(registered_model="a\nb"), InvalidConfig, ("registered_model", r"'a\nb'")),
    ],
)
def test_impossible_rollout_is_refused_before_search(options, kind, names):
    with refused(kind, *names):
        deployed_model(options)


@pytest.mark.long
def test_search_deploys_and_rolls_out_better_model(client, tmp_path):
    def search(**options):
        arguments = ["-e", "search", "--env-manager", "local", "--experiment-name", "search"]
        arguments += parameter_options({**SMALL, **options})
        return mlflow_run(ROOT / "projects" / "search", *arguments, cwd=tmp_path)

    MlflowClient().create_experiment("search", tmp_path.as_uri())
    created = search()
    assert created.returncode == 0, created.stdout + created.stderr
    url = client.get_deployment("flights")["url"]
    assert f"flights serves version 1 at {url}" in created.stdout
    assert str(MlflowClient().get_model_version_by_alias(MODEL, "champion").version) == "1"

    with traffic(f"{url}/predict") as answers:
        rolled_out = search()
    assert rolled_out.returncode == 0, rolled_out.stdout + rolled_out.stderr
    assert list(dict.fromkeys(re.findall(r"stepping (\d+) %", rolled_out.stdout))) == [
        "10",
        "50",
        "100",
    ]
    assert client.get_deployment("flights")["version"] == "2"
    assert {status for _, status in answers} == {200}
    assert {version for version, _ in answers} == {"1", "2"}

    MlflowClient().set_registered_model_tag(
        MODEL, "onnxserve.gate.policy", "budget: {max_p99_ms: 0.000001}"
    )
    worse = search()
    assert worse.returncode == 1
    (line,) = [line for line in worse.stderr.splitlines() if line.startswith("Error")]
    assert "version 3 is not deployed" in line
    assert client.get_deployment("flights")["version"] == "2"
