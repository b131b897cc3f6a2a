"""Explanations of a real server and its real side process, compared with known Shapley
values.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import requests
from sklearn.ensemble import GradientBoostingClassifier

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from tests.support import page_models
from tests.support.bodies import arrow_stream
from tests.support.models import columns, graph_tensor, mixed_model, write_model
from tests.support.servers import gunicorn, variant, write_spec
from tests.support.waiting import EXPLAINER_SECONDS, wait_until

WEIGHTS = (2.0, -3.0, 0.5)
LINEAR = """
linear (float[N,3] X) => (float[N] y) <float[3,1] w = {2.0, -3.0, 0.5}, int64[1] axis = {1}> {
  product = MatMul(X, w)
  y = Squeeze(product, axis)
}"""
WIDE = "wide (float[N,3] X) => (float[N,3] y) <float two = {2.0}> { y = Mul(X, two) }"
LABELS = "labels (float[N,3] X) => (int64[N,3] y) { y = Cast<to=7>(X) }"
CARRIERS = ("AA", "UA", "DL")
MOST_ROWS = 5


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


def numbers_model(folder, graph, output):
    section = {
        "inputs": [graph_tensor("X", "float32", -1, 3, columns=["a", "b", "c"])],
        "outputs": [{"name": "y", **output}],
        "prediction": ["y"],
    }
    return write_model(folder, graph, columns(a="double", b="double", c="double"), section)


TREE_ROWS = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")


def trees():
    model = GradientBoostingClassifier(n_estimators=5, random_state=0)
    return model.fit(TREE_ROWS, (TREE_ROWS[:, 0] > TREE_ROWS[:, 1]).astype(int))


def save_trees(folder):
    mlflow_deploy_plugin.save_model(trees(), folder, input_example=TREE_ROWS)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, model_folders):
    root = tmp_path_factory.mktemp("explained")
    state_dir = root / "state"
    state_dir.mkdir()
    number = {"dtype": "float32", "shape": [-1], "role": "values"}
    wide = {"dtype": "float32", "shape": [-1, 3], "role": "values"}
    label = {"dtype": "int64", "shape": [-1, 3], "role": "label"}
    example = {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1.0, 2.0, 3.0]]}}
    folders = {
        "flights": page_models.with_reference(mixed_model(root / "flights"), FLIGHTS),
        "linear": page_models.with_reference(
            numbers_model(root / "linear", LINEAR, number), NUMBERS
        ),
        "wide": page_models.with_example(numbers_model(root / "wide", WIDE, wide), example),
        "labels": page_models.with_example(numbers_model(root / "labels", LABELS, label), example),
        "bare": mixed_model(root / "bare"),
        "stock": page_models.with_example(
            write_model(root / "stock", LINEAR), {"inputs": [[1.0, 2.0, 3.0]]}
        ),
        "images": model_folders["tensor"],
        "trees": save_trees(root / "trees"),
    }
    wanted = {name: {"v": variant(folder)} for name, folder in folders.items()}
    wanted["sticky"] = {
        name: variant(folders["linear"], str(version), weight=50)
        for version, name in enumerate(("old", "new"))
    }
    endpoints: dict[str, Any] = {name: {"variants": variants} for name, variants in wanted.items()}
    endpoints["sticky"]["sticky"] = {"key": "a"}
    write_state(
        state_dir / WANTED, Wanted.model_validate({"generation": 1, "endpoints": endpoints})
    )
    spec = ServerSpec(explain_max_rows=MOST_ROWS, request_timeout_seconds=EXPLAINER_SECONDS)
    write_spec(state_dir, "flights", spec)
    with gunicorn(state_dir, spec=spec) as running:
        yield running


def explain(server, endpoint, **more):
    return server.post(f"/endpoints/{endpoint}/explain", timeout=EXPLAINER_SECONDS, **more)


def split(columns):
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return {"dataframe_split": {"columns": list(columns), "data": rows}}


def message(response):
    return response.status_code, response.json()["message"]


def test_the_contributions_of_a_linear_model_are_its_weights_times_the_distance_from_the_mean(
    server,
):
    rows = np.array([[1.0, 2.0, 3.0], [-4.0, 0.5, 0.0]], dtype="float32")

    answer = explain(server, "linear", json={"inputs": rows.tolist()})

    assert answer.status_code == 200, answer.text
    document = answer.json()
    mean = np.array([np.mean(NUMBERS[name]) for name in "abc"])
    np.testing.assert_allclose(document["values"], (rows - mean) * WEIGHTS, atol=1e-5)
    np.testing.assert_allclose(document["base_values"], [mean @ WEIGHTS] * 2, atol=1e-5)
    np.testing.assert_allclose(document["predictions"], rows @ WEIGHTS, atol=1e-5)
    assert document["columns"] == ["a", "b", "c"]
    assert document["outputs"] == ["y"]
    assert document["background"] == {"source": "reference", "rows": 30}
    assert document["max_evals"] == 70
    assert document["method"] == "permutation"
    assert document["link"] == "identity"
    assert answer.headers["X-Model-Name"] == "m"
    assert answer.headers["X-Model-Version"] == "1"


def test_the_log_odds_of_trees_are_explained_exactly(server):
    rows = TREE_ROWS[:4]
    answer = explain(server, "trees", json={"inputs": rows.tolist()})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    totals = np.sum(document["values"], axis=1) + document["base_values"]
    assert totals == pytest.approx(trees().decision_function(rows), abs=1e-6)
    assert document["outputs"] == [1]
    assert document["method"] == "tree"
    assert document["link"] == "logit"
    assert document["max_evals"] is None


def test_kserves_client_asks_by_its_own_path(server):
    def ask(endpoint):
        url = f"{server.url}/v1/models/{endpoint}:explain"
        rows = {"instances": [[1.0, 2.0, 3.0]]}
        return requests.post(url, json=rows, timeout=EXPLAINER_SECONDS)

    assert (
        ask("linear").json()
        == explain(server, "linear", json={"instances": [[1.0, 2.0, 3.0]]}).json()
    )
    assert ask("nobody").status_code == 404
    assert list(ask("nobody").json()) == ["error"]


def test_columns_of_all_types_share_out_the_probability_of_each_class(server, tmp_path):
    rows = rows_of_flights(3, 7)
    rows["carrier"][0] = "AA"

    document = server.post("/explain", json=split(rows), timeout=EXPLAINER_SECONDS).json()

    values = np.array(document["values"])
    base_values = np.array(document["base_values"])
    assert values.shape == (3, 4, 2)
    assert document["columns"] == list(rows)
    assert document["outputs"] == ["no", "yes"]
    probabilities = probabilities_of(OnnxModel.load(mixed_model(tmp_path / "flights")), rows)
    np.testing.assert_allclose(base_values + values.sum(axis=1), probabilities, atol=1e-5)
    assert document["predictions"] == [["no", "yes"][int(p)] for p in probabilities[:, 1] > 0.5]
    model = OnnxModel.load(tmp_path / "flights")
    exact = np.array(
        [shapley(model, {name: column[row] for name, column in rows.items()}) for row in range(3)]
    )
    np.testing.assert_allclose(values[:, :, 1], exact, atol=0.01)
    np.testing.assert_allclose(values[:, :, 0], -values[:, :, 1], atol=1e-6)


def probabilities_of(model, columns):
    return model.run(
        model.schema.from_columns({name: list(column) for name, column in columns.items()})
    )["probabilities"]


def shapley(model, row):
    """Return Shapley values by their definition, over all sets of columns; other
    columns are from the reference.
    """
    names = list(row)
    count = len(FLIGHTS["carrier"])
    value = {
        coalition: probabilities_of(
            model,
            {name: [row[name]] * count if name in coalition else FLIGHTS[name] for name in names},
        )[:, 1].mean(dtype="float64")
        for size in range(len(names) + 1)
        for coalition in itertools.combinations(names, size)
    }
    contributions = []
    for name in names:
        total = 0.0
        for coalition in value:
            if name in coalition:
                without = tuple(other for other in coalition if other != name)
                weight = math.factorial(len(without)) * math.factorial(len(names) - len(coalition))
                total += weight / math.factorial(len(names)) * (value[coalition] - value[without])
        contributions.append(total)
    return contributions


def test_an_explanation_is_reproducible_and_independent_of_the_other_rows(server):
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


def test_rows_come_in_every_form_of_invocations(server):
    table = pa.table({name: [1.0, 0.5] for name in "abc"})
    bodies = {
        "text/csv": b"a,b,c\n1,1,1\n.5,.5,.5\n",
        "application/x-ndjson": b'{"a":1,"b":1,"c":1}\n{"a":0.5,"b":0.5,"c":0.5}\n',
        "application/vnd.apache.arrow.stream": arrow_stream(table),
    }
    wanted = explain(server, "linear", json={"dataframe_records": table.to_pylist()}).json()[
        "values"
    ]

    for kind, body in bodies.items():
        answer = explain(server, "linear", data=body, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text
        assert answer.json()["values"] == wanted


def test_several_numbers_a_row_are_explained_each_and_an_example_is_background_enough(server):
    document = explain(server, "wide", json={"inputs": [[2.0, 2.0, 3.0]] * MOST_ROWS}).json()

    assert document["outputs"] == [0, 1, 2]
    assert document["background"] == {"source": "input_example", "rows": 1}
    np.testing.assert_allclose(
        document["values"], [[[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]] * MOST_ROWS
    )
    assert document["base_values"] == [[2.0, 4.0, 6.0]] * MOST_ROWS


def test_a_tensor_of_rank_two_is_a_table_without_names(server):
    document = explain(server, "stock", json={"inputs": [[2.0, 2.0, 3.0]]}).json()

    assert document["columns"] == ["0", "1", "2"]
    np.testing.assert_allclose(document["values"], [[2.0, 0, 0]])


def test_a_caller_is_explained_by_the_variant_that_predicts_for_him(server):
    seen = set()
    for caller in range(8):
        rows = {"inputs": [[float(caller), 0.0, 0.0]]}
        predicted = server.post(
            "/endpoints/sticky/invocations", json=rows, timeout=EXPLAINER_SECONDS
        )
        explained = explain(server, "sticky", json=rows)
        assert explained.headers["X-Model-Variant"] == predicted.headers["X-Model-Variant"]
        assert explained.headers["X-Model-Version"] == predicted.headers["X-Model-Version"]
        seen.add(explained.headers["X-Model-Variant"])
    assert seen == {"old", "new"}


def test_the_version_that_gave_a_prediction_can_be_named(server):
    for version in ("0", "1", "0"):
        answer = explain(
            server, "sticky", json={"inputs": [[1.0, 0.0, 0.0]], "params": {"version": version}}
        )
        assert answer.headers["X-Model-Version"] == version
    missing = explain(
        server, "sticky", json={"inputs": [[1.0, 0.0, 0.0]], "params": {"version": "7"}}
    )
    assert message(missing) == (404, "endpoint 'sticky' has no version '7' loaded; it has 0, 1")
    number = explain(server, "sticky", json={"inputs": [[1.0, 0.0, 0.0]], "params": {"version": 1}})
    assert message(number)[1].startswith("params.version is 1; a text is expected")


@pytest.mark.parametrize(
    ("endpoint", "document", "said"),
    [
        (
            "images",
            {"inputs": [[[1, 2], [3, 4]]]},
            "the input 'image' has 3 dimensions; only tables can be explained",
        ),
        ("labels", {"inputs": [[1, 2, 3]]}, "the model returns only labels"),
        ("bare", split(rows_of_flights(1, 0)), "the model has no sample rows"),
        ("linear", {"inputs": [[1, 2, 3]] * (MOST_ROWS + 1)}, "6 rows; at most 5 can be explained"),
        ("linear", {"inputs": [[1, 2]]}, "row 0 is"),
        (
            "linear",
            {"inputs": [[1, 2, 3]], "params": {"max_evals": 6}},
            "3 columns need at least 7",
        ),
        (
            "linear",
            {"inputs": [[1, 2, 3]], "params": {"max_evals": 10**9}},
            "a whole number from 1 to 20000",
        ),
        (
            "linear",
            {"inputs": [[1, 2, 3]], "params": {"max_evals": 9.5}},
            "max_evals is 9.5; a whole number from 1",
        ),
        (
            "linear",
            {"inputs": [[1, 2, 3]], "params": {"evals": 9}},
            "params has 'evals'; an explanation may have",
        ),
    ],
)
def test_a_request_that_cannot_be_explained_gets_a_reason(server, endpoint, document, said):
    status, reason = message(explain(server, endpoint, json=document))
    assert (status, said in reason) == (400, True), reason


def test_the_workers_stay_light_and_the_request_is_counted_by_its_own_name(server):
    assert explain(server, "linear", json={"inputs": [[1, 2, 3]]}).status_code == 200

    metrics = server.get("/metrics", timeout=EXPLAINER_SECONDS).text
    (counted,) = [
        line
        for line in metrics.splitlines()
        if line.startswith("onnxserve_requests_total{")
        and all(
            label in line for label in ('endpoint="linear"', 'protocol="explain"', 'status="200"')
        )
    ]
    assert float(counted.split()[-1]) >= 1
    (worker,) = psutil.Process(server.process.pid).children()
    (side,) = [child for child in worker.children() if "explain" in child.cmdline()]
    mapped = Path(f"/proc/{worker.pid}/maps").read_text()
    assert not [
        package for package in ("pandas", "shap", "numba", "scipy") if f"/{package}/" in mapped
    ]
    assert side.nice() > worker.nice()


@pytest.mark.long
def test_a_process_that_is_killed_is_started_anew(server):
    (worker,) = psutil.Process(server.process.pid).children()
    for side in worker.children():
        side.kill()

    def status():
        return explain(server, "linear", json={"inputs": [[1, 2, 3]]}).status_code

    wait_until(lambda: status() == 200, EXPLAINER_SECONDS, "another process")
