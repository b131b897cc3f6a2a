"""Tests that callers keep their variant, also with gRPC."""

import numpy as np
import pytest
import yaml
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.support.models import write_model

SUM = """sum (float[N,2] X) => (float[N,1] y) <float[1] more = MORE, int64[1] axis = {1}> {
  s = ReduceSum(X, axis) y = Add(s, more) }"""
SECONDS = 60.0


def sums(folder, more):
    """Write the model y = user + amount + `more`."""
    signature = [{"name": name, "type": "double", "required": True} for name in ("user", "amount")]
    return write_model(folder, SUM.replace("MORE", f"{{{more}}}"), signature)


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
