"""Tests that callers keep their variant, also with gRPC."""

import numpy as np
import pytest
import yaml
from tritonclient.grpc import InferenceServerClient, InferInput

from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted
from tests.support.handling import ask
from tests.support.models import write_model
from tests.support.servers import opened, variant

SUM = """sum (float[N,2] X) => (float[N,1] y) <float[1] more = MORE, int64[1] axis = {1}> {
  s = ReduceSum(X, axis) y = Add(s, more) }"""
SECONDS = 60.0


def sums(folder, more):
    """Write the model y = user + amount + `more`."""
    signature = [{"name": name, "type": "double", "required": True} for name in ("user", "amount")]
    return write_model(folder, SUM.replace("MORE", f"{{{more}}}"), signature)


def test_callers_keep_their_variant(tmp_path):
    variants = {
        "first": variant(sums(tmp_path / "first", 0.0), "1", weight=50),
        "second": variant(sums(tmp_path / "second", 1000.0), "2", weight=50),
    }
    state_dir = tmp_path / "state"

    def chosen(user):
        body = {"dataframe_records": [{"user": user, "amount": 1.0}]}
        return ask(server, body=body).headers["X-Model-Variant"]

    with opened(state_dir, {"e": variants}) as server:
        endpoints = {"e": {"variants": variants, "sticky": {"key": "user"}}}
        wanted = {"generation": 2, "endpoints": endpoints}
        write_state(state_dir / WANTED, Wanted.model_validate(wanted))
        server.repository.poll()
        first = list(map(chosen, range(1, 41)))
        again = list(map(chosen, range(1, 41)))
    assert 8 <= first.count("second") <= 32
    assert again == first


@pytest.mark.long
def test_grpc_callers_have_their_http_variant(serve, tmp_path, free_port):
    halves = {
        "first": {"model": str(sums(tmp_path / "first", 0.0)), "weight": 50},
        "second": {"model": str(sums(tmp_path / "second", 1000.0)), "weight": 50},
    }
    spec = {
        "name": "halves",
        "variants": halves,
        "sticky": {"header": "X-User-Id"},
        "server": {"grpc_port": free_port},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    served = serve("--spec", str(tmp_path / "spec.yaml")).wait_ready()

    def over_http(user):
        return served.predict(0, 1.0, X_User_Id=user).headers["X-Model-Variant"]

    def over_grpc(user):
        rows = InferInput("X", [1, 2], "FP32")
        rows.set_data_from_numpy(np.zeros((1, 2), np.float32))
        answer = client.infer("halves", [rows], headers={"x-user-id": user}, client_timeout=SECONDS)
        return "second" if answer.as_numpy("y").item() else "first"

    users = [f"user-{number}" for number in range(40)]
    with InferenceServerClient(f"127.0.0.1:{free_port}") as client:
        called = {user: over_grpc(user) for user in users}
    assert set(called.values()) == {"first", "second"}
    assert called == {user: over_http(user) for user in users}
