"""Explanations of a real server and its real side process, compared with known Shapley
values.
"""

from pathlib import Path

import numpy as np
import psutil
import pytest
from sklearn.ensemble import GradientBoostingClassifier

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from tests.support import page_models
from tests.support.models import columns, graph_tensor, mixed_model, numbers_section, write_model
from tests.support.servers import gunicorn, variant, write_spec
from tests.support.waiting import EXPLAINER_SECONDS

WEIGHTS = (2.0, -3.0, 0.5)
LINEAR = """
linear (float[N,3] X) => (float[N] y) <float[3,1] w = {2.0, -3.0, 0.5}, int64[1] axis = {1}> {
  product = MatMul(X, w)
  y = Squeeze(product, axis)
}"""
WIDE = "wide (float[N,3] X) => (float[N,3] y) <float two = {2.0}> { y = Mul(X, two) }"
CARRIERS = ("AA", "UA", "DL")
MOST_ROWS = 5
WORKER = "mlflow_deploy_plugin.core.processes.worker"


def rows_of_flights(count, seed):
    draw = np.random.default_rng(seed)
    return {
        "carrier": [CARRIERS[place] for place in draw.integers(0, 3, count)],
        "distance": draw.normal(0, 1500, count).tolist(),
        "hour": draw.integers(0, 24, count).tolist(),
        "late": [bool(value) for value in draw.integers(0, 2, count)],
    }


FLIGHTS = rows_of_flights(40, 1)
NUMBERS = {
    name: np.random.default_rng(2).normal(size=30).astype("float32").tolist() for name in "abc"
}


def numbers_model(folder, graph, *shape):
    section = numbers_section(
        graph_tensor("X", "float32", -1, 3, columns=["a", "b", "c"]), shape=shape
    )
    return write_model(folder, graph, columns(a="double", b="double", c="double"), section)


TREE_ROWS = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")


def trees():
    model = GradientBoostingClassifier(n_estimators=5, random_state=0)
    return model.fit(TREE_ROWS, (TREE_ROWS[:, 0] > TREE_ROWS[:, 1]).astype(int))


def save_trees(folder):
    mlflow_deploy_plugin.save_model(trees(), folder, input_example=TREE_ROWS)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("explained")
    state_dir = root / "state"
    state_dir.mkdir()
    example = {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1.0, 2.0, 3.0]]}}
    linear = page_models.with_reference(numbers_model(root / "linear", LINEAR), NUMBERS)
    folders = {
        "flights": page_models.with_reference(mixed_model(root / "flights"), FLIGHTS),
        "linear": linear,
        "wide": page_models.with_example(numbers_model(root / "wide", WIDE, 3), example),
        "bare": mixed_model(root / "bare"),
        "trees": save_trees(root / "trees"),
    }
    endpoints = {name: {"variants": {"v": variant(folder)}} for name, folder in folders.items()}
    versions = {
        name: variant(linear, number, weight=50) for name, number in (("old", "0"), ("new", "1"))
    }
    endpoints["sticky"] = {"variants": versions, "sticky": {"key": "a"}}
    wanted = Wanted.model_validate({"generation": 1, "endpoints": endpoints})
    write_state(state_dir / WANTED, wanted)
    spec = ServerSpec(explain_max_rows=MOST_ROWS, request_timeout_seconds=EXPLAINER_SECONDS)
    write_spec(state_dir, "flights", spec)
    with gunicorn(state_dir, spec=spec) as running:
        yield running


def explain(server, endpoint, rows=None, path="", **more):
    """Explain rows of numbers, or another body."""
    if rows is not None:
        more["json"] = {"inputs": rows, "params": more.pop("params", {})}
    path = path or f"/endpoints/{endpoint}/explain"
    return server.post(path, timeout=EXPLAINER_SECONDS, **more)


def split(columns):
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return {"dataframe_split": {"columns": list(columns), "data": rows}}


def test_linear_contributions_are_exact(
    server,
):
    rows = np.array([[1.0, 2.0, 3.0], [-4.0, 0.5, 0.0]], dtype="float32")

    answer = explain(server, "linear", rows.tolist())

    assert answer.status_code == 200, answer.text
    document = answer.json()
    mean = np.array([np.mean(NUMBERS[name]) for name in "abc"])
    numbers = {
        "values": (rows - mean) * WEIGHTS,
        "base_values": [mean @ WEIGHTS] * 2,
        "predictions": rows @ WEIGHTS,
    }
    for name, expected in numbers.items():
        np.testing.assert_allclose(document.pop(name), expected, atol=1e-5)
    assert document == {
        "columns": ["a", "b", "c"],
        "outputs": ["y"],
        "background": {"source": "reference", "rows": 30},
        "max_evals": 70,
        "method": "permutation",
        "link": "identity",
    }
    assert answer.headers["X-Model-Name"] == "m"
    assert answer.headers["X-Model-Version"] == "1"


def test_tree_contributions_are_exact(server):
    rows = TREE_ROWS[:4]
    answer = explain(server, "trees", rows.tolist())
    assert answer.status_code == 200, answer.text
    document = answer.json()
    totals = np.sum(document["values"], axis=1) + document["base_values"]
    assert totals == pytest.approx(trees().decision_function(rows), abs=1e-6)
    told = {name: document[name] for name in ("outputs", "method", "link", "max_evals")}
    assert told == {"outputs": [1], "method": "tree", "link": "logit", "max_evals": None}


def test_kserve_path_is_answered(server):
    rows = {"instances": [[1.0, 2.0, 3.0]]}
    answers = [
        explain(server, "linear", json=rows, path=path)
        for path in ("", "/v1/models/linear:explain", "/v1/models/nobody:explain")
    ]
    assert answers[0].json() == answers[1].json()
    assert answers[2].status_code == 404
    assert list(answers[2].json()) == ["error"]


def test_contributions_sum_to_class_probabilities(server, tmp_path):
    rows = rows_of_flights(3, 7)
    document = explain(server, "", json=split(rows), path="/explain").json()

    values = np.array(document["values"])
    assert values.shape == (3, 4, 2)
    assert document["columns"] == list(rows)
    assert document["outputs"] == ["no", "yes"]
    model = OnnxModel.load(mixed_model(tmp_path / "flights"))
    probabilities = model.run(model.schema.from_columns(rows))["probabilities"]
    total = values.sum(axis=1) + document["base_values"]
    np.testing.assert_allclose(total, probabilities, atol=1e-5)
    assert document["predictions"] == [["no", "yes"][int(p)] for p in probabilities[:, 1] > 0.5]
    np.testing.assert_allclose(values[:, :, 0], -values[:, :, 1], atol=1e-6)


def test_explanation_is_reproducible_for_each_row(server):
    rows = rows_of_flights(3, 9)
    alone = {name: column[1:2] for name, column in rows.items()}

    first, again, single = (
        explain(server, "flights", json=split(batch)) for batch in (rows, rows, alone)
    )
    other = explain(server, "flights", json={**split(rows), "params": {"seed": 5, "max_evals": 9}})

    assert first.content == again.content
    assert single.json()["values"][0] == first.json()["values"][1]
    assert other.json()["values"] != first.json()["values"]
    assert other.json()["max_evals"] == 9


def test_several_outputs_are_explained_by_an_example(server):
    document = explain(server, "wide", [[2.0, 2.0, 3.0]] * MOST_ROWS).json()

    assert document["outputs"] == [0, 1, 2]
    assert document["background"] == {"source": "input_example", "rows": 1}
    first = np.zeros((3, 3))
    first[0, 0] = 2.0
    np.testing.assert_allclose(document["values"], [first] * MOST_ROWS)
    assert document["base_values"] == [[2.0, 4.0, 6.0]] * MOST_ROWS


def test_sticky_caller_is_explained_by_its_variant(server):
    seen = set()
    for caller in range(8):
        rows = [[float(caller), 0.0, 0.0]]
        path = "/endpoints/sticky/invocations"
        headers = [explain(server, "sticky", rows, path=place).headers for place in (path, "")]
        for name in ("X-Model-Variant", "X-Model-Version"):
            assert headers[0][name] == headers[1][name]
        seen.add(headers[0]["X-Model-Variant"])
    assert seen == {"old", "new"}


@pytest.mark.parametrize("version", ["0", "1"])
def test_explained_version_can_be_chosen(server, version):
    answer = explain(server, "sticky", [[1.0, 0.0, 0.0]], params={"version": version})
    assert answer.headers["X-Model-Version"] == version


@pytest.mark.parametrize(
    ("endpoint", "rows", "params", "status", "said"),
    [
        ("bare", [["AA", 0.0, 0, True]], {}, 400, "no sample rows"),
        ("linear", [[1, 2, 3]] * (MOST_ROWS + 1), {}, 400, "6 rows; at most 5"),
        ("linear", [[1, 2]], {}, 400, "row 0 is"),
        ("linear", [[1, 2, 3]], {"max_evals": 6}, 400, "3 columns need at least 7"),
        ("linear", [[1, 2, 3]], {"max_evals": 10**9}, 400, "from 1 to 20000"),
        ("linear", [[1, 2, 3]], {"max_evals": 9.5}, 400, "max_evals is 9.5"),
        ("linear", [[1, 2, 3]], {"evals": 9}, 400, "'evals'"),
        ("sticky", [[1, 2, 3]], {"version": 1}, 400, "version is 1"),
        ("sticky", [[1, 2, 3]], {"version": "7"}, 404, "'7'"),
    ],
)
def test_unexplainable_request_is_refused(server, endpoint, rows, params, status, said):
    answer = explain(server, endpoint, rows, params=params)
    assert answer.status_code == status
    assert said in answer.json()["message"]


def test_explanation_is_counted_and_computed_aside(server):
    assert explain(server, "linear", [[1, 2, 3]]).status_code == 200

    labels = ('endpoint="linear"', 'protocol="explain"', 'status="200"')
    lines = server.get("/metrics", timeout=EXPLAINER_SECONDS).text.splitlines()
    assert [
        line
        for line in lines
        if line.startswith("onnxserve_requests_total{") and all(label in line for label in labels)
    ]
    (worker,) = psutil.Process(server.process.pid).children()
    (side,) = [child for child in worker.children() if WORKER in child.cmdline()]
    maps = Path(f"/proc/{worker.pid}/maps").read_text()
    assert not [name for name in ("pandas", "shap", "numba", "scipy") if f"/{name}/" in maps]
    assert side.nice() > worker.nice()
