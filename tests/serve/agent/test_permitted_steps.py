"""Steps of an endpoint with requirements need an approved digest, or a signature."""

import time

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.core.spec.document import apply_config, dump_spec, new_endpoint
from mlflow_deploy_plugin.core.statedir.files import (
    ANSWERS,
    COMMANDS,
    SPEC,
    read_state,
    served_file,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import Command, CommandAnswer, LoadedVariant
from mlflow_deploy_plugin.serve.agent import model_list
from mlflow_deploy_plugin.serve.agent.permitted_steps import StepsPermits
from tests.support.clocks import Clock
from tests.support.commands import done
from tests.support.fake_registry import AtOnce
from tests.support.keypairs import write_key
from tests.support.refusals import mentions


@pytest.fixture
def specs(tmp_path):
    """Return a function that returns the endpoint e with a requirement and the current
    file of steps.
    """
    file = tmp_path / "steps.py"
    file.write_text("def before(request):\n    return {}\n")

    def spec(require):
        plain = new_endpoint("e", "models:/tiny/1", {"serve.steps": str(file)})
        return apply_config(plain, {"require": require})

    return spec


@pytest.fixture
def permits():
    return StepsPermits(AtOnce(), Clock(0.0))


def test_gate_needs_an_approved_digest(new_mlflow, specs, permits, tmp_path):
    client = MlflowClient()
    client.create_registered_model("tiny")
    spec = specs("gate=passed")
    digest = spec.serve.digest
    assert permits.permitted(spec, None) is None
    assert mentions(permits.errors["e"], digest, "gate policy of tiny")
    client.set_registered_model_tag("tiny", GATE_POLICY_TAG, f"steps: ['{digest}']")
    assert permits.permitted(spec, None) is None
    permits.clock.now = 60.0
    assert permits.permitted(spec, None) == spec.serve
    assert permits.errors == {}
    (tmp_path / "steps.py").write_text("def before(request):\n    return {'a': [1]}\n")
    assert permits.permitted(specs("gate=passed"), spec.serve) == spec.serve
    assert "e" in permits.errors
    assert permits.permitted(spec, spec.serve) == spec.serve
    assert permits.errors == {}


def test_signature_covers_the_steps(specs, permits, tmp_path):
    keys = write_key(tmp_path)
    require = f"signature={keys.public}"
    assert permits.permitted(specs(require), None) is None
    assert mentions(permits.errors["e"], "onnxserve sign steps.py")
    done(f"sign {tmp_path}/steps.py --key {keys.key}")
    signed = specs(require)
    assert permits.permitted(signed, None) == signed.serve
    (tmp_path / "steps.py").write_text("def before(request):\n    return {'a': [1]}\n")
    assert permits.permitted(specs(require), signed.serve) == signed.serve
    assert mentions(permits.errors["e"], "signature", "is refused")


def test_refused_steps_are_never_left_out(new_mlflow, case, specs):
    MlflowClient().create_registered_model("tiny")
    case.world.gates["1"] = "passed"
    case.world.versions["models:/tiny/1"] = "1"
    refused = specs("gate=passed")
    (case.state_dir / SPEC).write_text(dump_spec(refused))
    state = case.follower().round()
    assert state.fatal
    assert refused.serve.digest in state.error
    assert case.wanted.endpoints == {}
    served = apply_config(refused.model_copy(update={"name": "a"}), {"serve.steps": ""})
    (case.state_dir / SPEC).write_text("---\n".join(map(dump_spec, [refused, served])))
    follower = case.follower()
    follower.round()
    for _ in range(2):
        endpoints = case.wanted.endpoints
        assert (endpoints["e"].variants, list(endpoints["a"].variants)) == ({}, ["e"])
        assert refused.serve.digest in endpoints["e"].errors["e"]
        assert refused.serve.digest in follower.round().error
    (case.state_dir / SPEC).write_text(dump_spec(served))
    assert follower.round().error == ""


def test_refused_steps_of_a_listed_model_are_answered(new_mlflow, case, specs, monkeypatch):
    MlflowClient().create_registered_model("tiny")
    case.world.gates["1"] = "passed"
    case.world.versions["models:/tiny@champion"] = "1"
    monkeypatch.setattr(model_list, "selected_models", lambda pattern: iter([{"tiny": "1 5"}]))
    pattern = apply_config(specs("gate=passed"), {"variants.e.model": "models:/*@champion"})
    (case.state_dir / SPEC).write_text(dump_spec(pattern))
    follower = case.follower()
    follower.round()
    command = Command(action="fetch", endpoint="tiny", mark="m", created_at=time.monotonic())
    write_state(case.state_dir / COMMANDS / "1.json", command)
    state = follower.round()
    answer = read_state(case.state_dir / ANSWERS / "1.json", CommandAnswer)
    assert answer is not None
    assert pattern.serve.digest in answer.error
    assert state.error == ""
    assert not served_file(case.state_dir, "tiny").exists()


def test_error_of_steps_keeps_the_version(case):
    follower = case.serving("1")
    error = LoadedVariant(version="1", error="the steps do not import", is_error_of_steps=True)
    case.worker_says(v1=error)
    state = follower.round()
    assert mentions(state.error, "endpoint e", "the steps do not import")
    assert (case.versions, case.world.failures, state.fatal) == ({"v1": "1"}, [], False)
