"""A server with many small models serves all of them; a broken model or a change
affects only its endpoint.
"""

import json

import pytest

from mlflow_deploy_plugin.serve.models.loading import load_warm
from mlflow_deploy_plugin.serve.models.repository import Repository
from mlflow_deploy_plugin.serve.runtime.session import Placement
from tests.support import servers
from tests.support.handling import ask
from tests.support.waiting import wait_until

COUNT = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Create different models: number n adds n."""
    root = tmp_path_factory.mktemp("many")
    return [servers.single_model(root / f"m{number}", float(number)) for number in range(COUNT)]


@pytest.fixture(scope="module")
def served(tmp_path_factory, folders):
    """Serve all models, including a missing folder and a broken graph."""
    root = tmp_path_factory.mktemp("served")
    broken = root / "broken"
    broken.mkdir()
    (broken / "MLmodel").write_text((folders[0] / "MLmodel").read_text())
    (broken / "model.onnx").write_bytes(b"not a graph")
    names = [*folders, root / "missing", broken]
    endpoints = {folder.name: {"v": servers.variant(folder)} for folder in names}
    with servers.opened(root / "state", endpoints) as server:
        wait_until(lambda: len(server.repository.table) == len(names), 60, "the last endpoint")
        yield server


def test_broken_endpoints_affect_no_others(served):
    index = json.loads(ask(served, "/v2/repository/index", body=b"").body)
    states = {entry["name"]: entry["state"] for entry in index}
    assert {name for name, state in states.items() if state != "READY"} == {"missing", "broken"}
    assert len(states) == COUNT + 2
    for path in ("/ping", "/v2/health/ready", "/v2/models/m7/ready"):
        assert ask(served, path, "GET").status == 200
    for name, error in (("missing", "missing"), ("broken", "cannot load model.onnx")):
        answer = ask(served, f"/v2/models/{name}/ready", "GET")
        assert answer.status == 503
        assert error in json.loads(answer.body)["error"]
    for number in (0, 7):
        answer = ask(served, f"/endpoints/m{number}/invocations")
        assert json.loads(answer.body) == {"predictions": [[6.0 + number]]}


def test_unknown_endpoint_lists_some_names(served):
    answer = ask(served, "/v2/models/nobody", "GET")
    assert answer.status == 404
    assert f"and {COUNT + 2 - 10} more" in json.loads(answer.body)["error"]


def test_changed_endpoint_loads_nothing_else(tmp_path, folders):
    loads = []
    tables = []

    def load(folder, python=""):
        loads.append(folder.name)
        return load_warm(folder, placement=Placement(), intra_op_num_threads=1)

    def want(generation, names, changed):
        served = {name: folders[int(name[1:])] for name in names} | {"m3": tmp_path / "nothing"}
        variants = {name: {"v": servers.variant(served[name])} for name in names}
        variants[changed] = {"v": servers.variant(folders[11], "2")}
        servers.want(tmp_path, generation, variants)
        repository.poll()

    repository = Repository(tmp_path, load)
    repository.add_listener(lambda table: tables.append(len(table)))
    names = [f"m{number}" for number in range(10)]
    want(1, names, "m9")
    assert len(loads) == 10
    loads.clear()
    tables.clear()
    want(2, names, "m5")
    # The failed load is repeated; m9 had the version that m5 has now.
    assert loads == ["nothing", "m9"]
    assert len(tables) == 3
    want(3, ["m9", *names[:-1]], "m5")
    assert repository.select_variant(None).endpoint == "m9"
    repository.stop()
