"""Tests of canary and shadow variants on a server whose spec is changed while it
answers.
"""

import sys
import threading
import warnings
from collections import Counter
from contextlib import contextmanager
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import requests
import yaml
from mlflow.models import infer_signature
from tritonclient.grpc import InferenceServerClient, InferInput

from mlflow_deploy_plugin.core.statedir.files import (
    SPEC,
    WANTED,
    read_state,
    read_workers,
    write_atomically,
)
from mlflow_deploy_plugin.core.statedir.models import Wanted
from tests.support.models import write_model
from tests.support.pyfuncs import Troubled
from tests.support.serving import Served, servers_below
from tests.support.waiting import free_port, wait_until

SUM = """sum (float[N,2] X) => (float[N,1] y) <float[1] more = MORE, int64[1] axis = {1}> {
  s = ReduceSum(X, axis) y = Add(s, more) }"""
SAME = "same (string[N,1] do) => (string[N,1] y) { y = Identity(do) }"
WORKERS = 2
SECONDS = 60.0


def sums(folder, more):
    """Write the model y = user + amount + `more`."""
    signature = [{"name": name, "type": "double", "required": True} for name in ("user", "amount")]
    return write_model(folder, SUM.replace("MORE", f"{{{more}}}"), signature)


def troubled(folder):
    """Write a model without an ONNX form that does the action in its input, or returns
    the input.
    """
    cloudpickle.register_pickle_by_value(sys.modules[Troubled.__module__])
    signature = infer_signature(pd.DataFrame({"do": ["x"]}), np.array(["x"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            folder, python_model=Troubled(), signature=signature, pip_requirements=[]
        )
    return folder


class Canary:
    """The server, its spec, and the metrics on its page `/metrics`."""

    def __init__(self, served: Served, documents: list[dict[str, Any]]) -> None:
        self.served = served
        self._documents = {document["name"]: document for document in documents}
        self.grpc_port = documents[0]["server"].get("grpc_port")

    def weigh(self, endpoint: str, **weights: int) -> None:
        """Write the spec as `update_endpoint` does, and wait until every worker has
        applied it.
        """
        before = self._wanted().generation
        variants = self._documents[endpoint]["variants"]
        changed = {name: variants[name] | {"weight": weight} for name, weight in weights.items()}
        self._documents[endpoint] |= {"variants": changed}
        text = yaml.safe_dump_all(self._documents.values())
        write_atomically(self.served.state_dir / SPEC, text.encode())
        wait_until(lambda: self._wanted().generation > before, SECONDS, "the agent")
        wanted = self._wanted().generation
        dealt = lambda: [worker.generation for worker in read_workers(self.served.state_dir)]  # noqa: E731
        wait_until(lambda: dealt() == [wanted] * WORKERS, SECONDS, "the workers")

    def _wanted(self) -> Wanted:
        wanted = read_state(self.served.state_dir / WANTED, Wanted)
        assert wanted is not None
        return wanted

    def ask(self, endpoint: str, rows: list[dict[str, Any]], **headers: str) -> requests.Response:
        http_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.served.url}/endpoints/{endpoint}/invocations"
        response = requests.post(
            url, json={"dataframe_records": rows}, headers=http_headers, timeout=SECONDS
        )
        assert response.status_code == 200, response.text
        return response

    def variant(self, endpoint: str, user: int = 0, **headers: str) -> str:
        return self.ask(endpoint, [{"user": user, "amount": 1.0}], **headers).headers[
            "X-Model-Variant"
        ]

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's values that have these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        page = requests.get(self.served.url + "/metrics", timeout=SECONDS).text.splitlines()
        samples = [
            line
            for line in page
            if line.startswith(name + "{") and all(text in line for text in wanted)
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("canary")


@pytest.fixture(scope="module")
def canary(home):
    """Start two workers with four endpoints, whose models add 0 or 1000 to the sum of a
    row.
    """
    first = str(sums(home / "first", 0.0))
    second = str(sums(home / "second", 1000.0))
    halves = {"first": {"model": first, "weight": 50}, "second": {"model": second, "weight": 50}}
    documents: list[dict[str, Any]] = [
        {
            "name": "weighted",
            "variants": {
                "first": {"model": first, "weight": 95},
                "second": {"model": second, "weight": 5},
            },
            "server": {"workers": WORKERS, "grpc_port": free_port()},
        },
        {"name": "by-header", "variants": halves, "sticky": {"header": "X-User-Id"}},
        {"name": "by-column", "variants": halves, "sticky": {"key": "user"}},
        {
            "name": "watched",
            "variants": {
                "main": {"model": first},
                "equal": {"model": str(sums(home / "equal", 0.001)), "shadow": True},
                "other": {"model": second, "shadow": True},
            },
        },
    ]
    with served_at(home, documents) as canary:
        yield canary


@contextmanager
def served_at(home, documents):
    (home / "spec.yaml").write_text(yaml.safe_dump_all(documents))
    with pytest.MonkeyPatch.context() as patch, servers_below(home) as start:
        patch.setenv("ONNXSERVE_HOME", str(home / "home"))
        served = start("--spec", str(home / "spec.yaml")).wait_ready()
        workers = documents[0]["server"]["workers"]
        wait_until(lambda: len(read_workers(served.state_dir)) == workers, SECONDS, "the workers")
        yield Canary(served, documents)


@pytest.fixture
def load(canary):
    """Send requests to the weighted endpoint from two threads, and yield the count of
    answers by variant.
    """
    answered: Counter[str] = Counter()
    errors: list[BaseException] = []
    stop = threading.Event()
    lock = threading.Lock()

    def work():
        try:
            while not stop.wait(0.002):
                name = canary.variant("weighted")
                with lock:
                    answered[name] += 1
        except BaseException as error:  # noqa: BLE001 - The main thread raises the error.
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield answered
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors


def share_of_the_next(answered, requests_=400):
    """Return the share of the second variant."""
    before = answered.copy()
    wait_until(lambda: answered.total() >= before.total() + requests_, SECONDS, "the load")
    since = answered - before
    return since["second"] / since.total()


@pytest.mark.long
def test_canary_weights_change_live_without_a_reload_or_a_failed_request(canary, load):
    loaded = canary.served.log.read_text().count("loaded ")
    assert share_of_the_next(load) < 0.15
    canary.weigh("weighted", first=50, second=50)
    assert 0.35 < share_of_the_next(load) < 0.65
    canary.weigh("weighted", first=0, second=100)
    assert share_of_the_next(load, 50) > 0.9  # One or two requests were in flight.
    assert share_of_the_next(load, 50) == 1.0

    assert canary.served.log.read_text().count("loaded ") == loaded
    for name in ("first", "second"):
        answered = load[name]
        counted = canary.metric(
            "onnxserve_requests_total", endpoint="weighted", variant=name, status="200"
        )
        assert answered <= counted <= load[name] + 2  # The two threads continue to send requests.


@pytest.mark.parametrize(
    ("endpoint", "ask"),
    [
        ("by-header", lambda canary, user: canary.variant("by-header", X_User_Id=f"user-{user}")),
        ("by-column", lambda canary, user: canary.variant("by-column", user)),
    ],
)
def test_canary_callers_stick_to_their_variant_and_move_only_when_they_must(canary, endpoint, ask):
    users = range(1, 41)
    before = {user: ask(canary, user) for user in users}
    assert 8 <= Counter(before.values())["second"] <= 32
    assert {user: ask(canary, user) for user in users} == before

    canary.weigh(endpoint, first=1, second=9)
    after = {user: ask(canary, user) for user in users}
    assert Counter(after.values())["second"] > Counter(before.values())["second"]
    assert all(after[user] == "second" for user in users if before[user] == "second")


def test_canary_callers_over_grpc_have_the_variant_that_they_have_over_http(canary):
    def over_grpc(user):
        rows = InferInput("X", [1, 2], "FP32")
        rows.set_data_from_numpy(np.zeros((1, 2), np.float32))
        answer = client.infer(
            "by-header", [rows], headers={"x-user-id": user}, client_timeout=SECONDS
        )
        return "second" if answer.as_numpy("y").item() else "first"

    users = [f"user-{number}" for number in range(40)]
    with InferenceServerClient(f"127.0.0.1:{canary.grpc_port}") as client:
        called = {user: over_grpc(user) for user in users}
    assert called == {user: canary.variant("by-header", X_User_Id=user) for user in users}


def test_canary_callers_without_the_header_come_by_chance(canary):
    assert {canary.variant("by-header") for _ in range(200)} == {"first", "second"}


@pytest.mark.long
def test_shadow_answers_are_compared_and_logged_with_the_main_ones(canary, home):
    rows = [{"user": number, "amount": 0.5} for number in range(3)]
    responses = [canary.ask("watched", rows) for _ in range(20)]
    assert {response.text for response in responses} == {
        '{"predictions":[{"y":0.5},{"y":1.5},{"y":2.5}]}'
    }
    assert {response.headers["X-Model-Variant"] for response in responses} == {"main"}

    def compared(name):
        return canary.metric("onnxserve_shadow_requests_total", variant=name, outcome="compared")

    wait_until(lambda: compared("equal") == compared("other") == 20, SECONDS, "the shadows")
    assert canary.metric("onnxserve_shadow_rows_total", variant="equal", agreement="same") == 60
    assert (
        canary.metric("onnxserve_shadow_rows_total", variant="other", agreement="different") == 60
    )
    assert canary.metric("onnxserve_shadow_difference_sum", variant="other") == pytest.approx(
        60_000
    )
    assert canary.metric("onnxserve_requests_total", endpoint="watched") == 20

    def logged():
        files = (home / "home" / "inference_log").rglob("*.parquet")
        tables = [
            pq.ParquetFile(file).read().to_pandas() for file in files if "watched" in str(file)
        ]
        if tables:
            return pd.concat(tables)
        return pd.DataFrame({"_variant": []})

    wait_until(lambda: len(logged()) == 180, SECONDS, "the inference log")
    log = logged()
    assert dict(log["_variant"].value_counts()) == {"main": 60, "equal": 60, "other": 60}
    prediction_ids = {response.headers["X-Prediction-Id"] for response in responses}
    assert all(set(rows["_prediction_id"]) == prediction_ids for _, rows in log.groupby("_variant"))


@pytest.mark.long
def test_shadow_that_hangs_raises_or_dies_does_not_disturb_callers(tmp_path):
    texts = write_model(
        tmp_path / "texts", SAME, [{"name": "do", "type": "string", "required": True}]
    )
    main = {"model": str(texts)}
    trouble = {"model": str(troubled(tmp_path / "model"))}
    server = {"workers": 1, "request_timeout_seconds": 3}
    documents = [
        {
            "name": "troubled",
            "variants": {"main": main, "trouble": trouble | {"shadow": True}},
            "server": server,
        },
        {"name": "turned", "variants": {"trouble": trouble, "texts": main | {"shadow": True}}},
    ]
    with served_at(tmp_path, documents) as canary:
        for number in range(5):  # The shadow is a pyfunc that answers from the same process.
            canary.ask("turned", [{"do": f"text {number}"}])
        agreed = lambda: canary.metric(  # noqa: E731
            "onnxserve_shadow_rows_total", endpoint="turned", agreement="same"
        )
        wait_until(lambda: agreed() == 5, SECONDS, "the shadow of a pyfunc")
        _answers_whatever_the_shadow_does(canary)


def _answers_whatever_the_shadow_does(canary):
    def ask(text):
        assert canary.ask("troubled", [{"do": text}]).json() == {"predictions": [{"y": text}]}

    def shadowed(outcome):
        return canary.metric(
            "onnxserve_shadow_requests_total", endpoint="troubled", outcome=outcome
        )

    ask("fine")
    wait_until(lambda: shadowed("compared") == 1, SECONDS, "the shadow")
    for trouble in ("hang", "raise", "exit"):
        ask(trouble)
    for number in range(100):
        ask(f"after {number}")
    wait_until(lambda: shadowed("failed") >= 3, SECONDS, "the failures")

    before = shadowed("compared")

    def compares_again():
        ask("fine again")
        return shadowed("compared") > before

    wait_until(compares_again, SECONDS, "the shadow is back")
    assert canary.metric("onnxserve_requests_total", endpoint="troubled", status="500") == 0
    assert (
        canary.metric("onnxserve_shadow_rows_total", endpoint="troubled", agreement="different")
        == 0
    )
