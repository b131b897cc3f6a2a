"""Tests of canary and shadow variants, in this process and on a server whose spec is
changed while it answers.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from tritonclient.grpc import InferenceServerClient, InferInput

from mlflow_deploy_plugin.core.statedir.files import (
    SPEC,
    WANTED,
    read_state,
    read_workers,
    write_atomically,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import Wanted
from tests.support.handling import ask
from tests.support.models import write_model
from tests.support.servers import opened, variant
from tests.support.serving import servers_below
from tests.support.waiting import free_port, wait_until

SUM = """sum (float[N,2] X) => (float[N,1] y) <float[1] more = MORE, int64[1] axis = {1}> {
  s = ReduceSum(X, axis) y = Add(s, more) }"""
WORKERS = 2
SECONDS = 60.0


def sums(folder, more):
    """Write the model y = user + amount + `more`."""
    signature = [{"name": name, "type": "double", "required": True} for name in ("user", "amount")]
    return write_model(folder, SUM.replace("MORE", f"{{{more}}}"), signature)


class Canary:
    """The server, its spec, and the metrics on its page `/metrics`."""

    def __init__(self, served, documents):
        self.served = served
        self._documents = {document["name"]: document for document in documents}
        self.grpc_port = documents[0]["server"].get("grpc_port")

    def weigh(self, endpoint, **weights):
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

    def _wanted(self):
        wanted = read_state(self.served.state_dir / WANTED, Wanted)
        assert wanted is not None
        return wanted

    def ask(self, endpoint, rows, **headers):
        http_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.served.url}/endpoints/{endpoint}/invocations"
        response = requests.post(
            url, json={"dataframe_records": rows}, headers=http_headers, timeout=SECONDS
        )
        assert response.status_code == 200, response.text
        return response

    def variant(self, user):
        answer = self.ask("by-header", [{"user": 0, "amount": 1.0}], X_User_Id=user)
        return answer.headers["X-Model-Variant"]

    def metric(self, name, **labels):
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
    """Start two workers with two endpoints, whose models add 0 or 1000 to the sum of a
    row.
    """
    first = str(sums(home / "first", 0.0))
    second = str(sums(home / "second", 1000.0))
    halves = {"first": {"model": first, "weight": 50}, "second": {"model": second, "weight": 50}}
    documents: list[dict[str, Any]] = [
        {
            "name": "by-header",
            "variants": halves,
            "sticky": {"header": "X-User-Id"},
            "server": {"workers": WORKERS, "grpc_port": free_port()},
        },
        {
            "name": "watched",
            "variants": {
                "main": {"model": first},
                "equal": {"model": str(sums(home / "equal", 0.001)), "shadow": True},
                "other": {"model": second, "shadow": True},
            },
        },
    ]
    (home / "spec.yaml").write_text(yaml.safe_dump_all(documents))
    with pytest.MonkeyPatch.context() as patch, servers_below(home) as start:
        patch.setenv("ONNXSERVE_HOME", str(home / "home"))
        served = start("--spec", str(home / "spec.yaml")).wait_ready()
        wait_until(lambda: len(read_workers(served.state_dir)) == WORKERS, SECONDS, "the workers")
        yield Canary(served, documents)


@pytest.mark.parametrize("sticky", [{"header": "X-User-Id"}, {"key": "user"}])
def test_callers_keep_their_variant(tmp_path, sticky):
    variants = {
        "first": variant(sums(tmp_path / "first", 0.0), "1"),
        "second": variant(sums(tmp_path / "second", 1000.0), "2"),
    }
    state_dir = tmp_path / "state"
    users = range(1, 41)

    def weigh(generation, **weights):
        weighted = {name: variants[name] | {"weight": weight} for name, weight in weights.items()}
        endpoints = {"e": {"variants": weighted, "sticky": sticky}}
        wanted = {"generation": generation, "endpoints": endpoints}
        write_state(state_dir / WANTED, Wanted.model_validate(wanted))
        server.repository.poll()

    def chosen(user):
        body = {"dataframe_records": [{"user": user, "amount": 1.0}]}
        return ask(server, body=body, x_user_id=f"user-{user}").headers["X-Model-Variant"]

    with opened(state_dir, {"e": variants}) as server:
        weigh(2, first=50, second=50)
        before = {user: chosen(user) for user in users}
        again = {user: chosen(user) for user in users}
        weigh(3, first=1, second=9)
        after = {user: chosen(user) for user in users}
    assert 8 <= Counter(before.values())["second"] <= 32
    assert again == before
    assert Counter(after.values())["second"] > Counter(before.values())["second"]
    assert all(after[user] == "second" for user in users if before[user] == "second")


@pytest.mark.long
def test_grpc_callers_have_their_http_variant(canary):
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
        assert called == {user: canary.variant(user) for user in users}
        canary.weigh("by-header", first=0, second=100)
        assert {over_grpc(user) for user in users} == {"second"}


@pytest.mark.long
def test_shadow_answers_are_compared(canary):
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
