"""Steps of an endpoint with requirements need an approved digest, or a signature."""

import itertools
import time
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.errors import RegistryUnavailable
from mlflow_deploy_plugin.core.registry.model_uri import registered_model_names
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.core.spec.document import apply_config, dump_spec, new_endpoint
from mlflow_deploy_plugin.core.statedir.files import (
    ANSWERS,
    COMMANDS,
    LOADING,
    LOOK,
    SPEC,
    read_state,
    served_file,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import (
    Command,
    CommandAnswer,
    LoadedVariant,
    LoadingState,
    ServedModel,
    is_same_model,
)
from mlflow_deploy_plugin.serve.agent.permitted_steps import StepsPermits
from tests.support.clocks import Clock
from tests.support.commands import done
from tests.support.fake_registry import AtOnce
from tests.support.keypairs import write_key
from tests.support.refusals import mentions

OTHER = "def before(request):\n    return {'a': [1]}\n"


@pytest.fixture
def specs(tmp_path):
    """Return a function that returns the endpoint e with a requirement and the current
    file of steps.
    """
    file = tmp_path / "steps.py"
    file.write_text("def before(request):\n    return {}\n")

    def spec(require, model="models:/tiny/1"):
        plain = new_endpoint("e", model, {"serve.steps": str(file)})
        return apply_config(plain, {"require": require})

    return spec


@pytest.fixture
def permits():
    return StepsPermits(AtOnce(), Clock(0.0), Counter())


def permitted(permits, spec, used=None):
    return permits.permitted(spec, frozenset(registered_model_names(spec)), used)


@pytest.fixture
def approve(new_mlflow):
    """Return a function that sets the steps of the policies of two models, of which
    `other` permits none.
    """
    for model in ("tiny", "other"):
        MlflowClient().create_registered_model(model)

    def approve(*digests):
        policy = f"steps: {[*digests]}"
        MlflowClient().set_registered_model_tag("tiny", GATE_POLICY_TAG, policy)

    return approve


def test_steps_are_checked_for_each_model(approve, specs, permits):
    spec = specs("gate=passed")
    assert permitted(permits, spec) is None
    assert mentions(permits.errors["e"], spec.serve.digest, "gate policy of tiny")
    approve(spec.serve.digest)
    assert permitted(permits, spec) is None
    permits.clock.now = 60.0
    assert (permitted(permits, spec), permits.errors) == (spec.serve, {})
    assert permitted(permits, specs("gate=passed", "models:/other/1"), spec.serve) is None
    assert mentions(permits.errors["e"], spec.serve.digest, "gate policy of other")


@pytest.mark.parametrize("require", ["gate=passed", "signature=KEY", "gate=passed,signature=KEY"])
def test_steps_are_checked_for_a_later_requirement(approve, specs, permits, tmp_path, require):
    plain = specs("")
    assert permitted(permits, plain, plain.serve) == plain.serve
    key = str(write_key(tmp_path).public)
    assert permitted(permits, specs(require.replace("KEY", key)), plain.serve) is None
    assert "e" in permits.errors
    assert (permitted(permits, plain), permits.errors) == (plain.serve, {})


def test_steps_are_checked_after_a_policy_changes(approve, specs, permits, tmp_path):
    spec = specs("gate=passed")
    approve(spec.serve.digest)
    assert permitted(permits, spec, spec.serve) == spec.serve
    (tmp_path / "steps.py").write_text(OTHER)
    newer = specs("gate=passed")
    assert permitted(permits, newer, spec.serve) == spec.serve
    approve()
    assert permitted(permits, newer, spec.serve) == spec.serve
    permits.check_now()
    assert permitted(permits, newer, spec.serve) is None
    approve(newer.serve.digest)
    permits.clock.now = 60.0
    assert permitted(permits, newer) == newer.serve


def test_steps_are_checked_with_the_signing_key(specs, permits, tmp_path):
    keys = write_key(tmp_path)
    require = f"signature={keys.public}"
    assert permitted(permits, specs(require)) is None
    assert mentions(permits.errors["e"], "onnxserve sign steps.py")
    done(f"sign {tmp_path}/steps.py --key {keys.key}")
    signed = specs(require)
    assert permitted(permits, signed) == signed.serve
    (tmp_path / "steps.py").write_text(OTHER)
    assert permitted(permits, specs(require), signed.serve) == signed.serve
    assert mentions(permits.errors["e"], "signature", "is refused")
    assert permitted(permits, signed, signed.serve) == signed.serve
    (tmp_path / "new").mkdir()
    keys.public.write_bytes(write_key(tmp_path / "new").public.read_bytes())
    permits.clock.now = 60.0
    assert permitted(permits, signed, signed.serve) is None
    assert mentions(permits.errors["e"], "signature", "is refused")


def test_steps_are_checked_later_without_a_registry(approve, specs, permits, monkeypatch):
    spec = specs("gate=passed")
    other = specs("gate=passed", "models:/other/1")
    approve(spec.serve.digest)
    assert permitted(permits, spec) == spec.serve
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_registered_model", Mock(side_effect=MlflowException("")))
        permits.clock.now = 60.0
        assert permitted(permits, spec, spec.serve) == spec.serve
        assert permits.errors == {}
        assert permitted(permits, other) is None  # They were never permitted.
        assert permitted(permits, other, other.serve) == other.serve
        assert "e" in permits.errors
    permits.check_now()
    assert permitted(permits, other, other.serve) is None


@pytest.fixture
def follow(case):
    """Return a function that starts a follower of the specs, whose model has a
    version.
    """
    case.world.gates["1"] = "passed"
    case.world.versions["models:/tiny/1"] = "1"

    def follow(*specs):
        (case.state_dir / SPEC).write_text("---\n".join(map(dump_spec, specs)))
        return case.follower()

    return follow


def test_steps_are_checked_while_they_are_served(approve, case, specs, follow):
    spec = specs("gate=passed")
    approve(spec.serve.digest)
    follower = follow(spec)
    assert follower.round().error == ""
    assert case.wanted.endpoints["e"].serve == spec.serve
    approve()
    (case.state_dir / LOOK).touch()
    state = follower.round()
    refused = case.wanted.endpoints["e"]
    assert (refused.variants, refused.serve.steps) == ({}, None)
    assert mentions(refused.errors["e"], spec.serve.digest, "gate policy of tiny")
    assert (state.error, state.errors, state.fatal) == (refused.errors["e"], 1, False)
    assert [(version.version, version.cause) for version in state.refused] == [("1", "steps")]
    again = follow(spec)
    assert not again.round().fatal
    assert case.wanted.endpoints["e"].variants == {}
    approve(spec.serve.digest)
    (case.state_dir / LOOK).touch()
    assert again.round().error == ""
    assert list(case.wanted.endpoints["e"].variants) == ["e"]


def test_steps_are_checked_with_the_model_in_use(
    approve, case, specs, follow, tmp_path, monkeypatch
):
    spec = specs("gate=passed")
    approve(spec.serve.digest)
    follower = follow(spec)
    follower.round()
    # The next model, whose policy permits only its own steps, cannot be fetched.
    (tmp_path / "steps.py").write_text(OTHER)
    other = specs("gate=passed", "models:/other/1")
    policy = f"steps: [{other.serve.digest}]"
    MlflowClient().set_registered_model_tag("other", GATE_POLICY_TAG, policy)
    case.world.versions["models:/other/1"] = RegistryUnavailable("down")
    (case.state_dir / SPEC).write_text(dump_spec(other))
    follower.round()
    endpoint = case.wanted.endpoints["e"]
    assert (endpoint.serve, endpoint.variants["e"].model_uri) == (spec.serve, "models:/tiny/1")
    case.world.versions["models:/other/1"] = "1"
    case.now += 600
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_registered_model", Mock(side_effect=MlflowException("")))
        follower.round()
        assert case.wanted.endpoints["e"] == endpoint
    (case.state_dir / LOOK).touch()
    follower.round()
    endpoint = case.wanted.endpoints["e"]
    assert (endpoint.serve, endpoint.variants["e"].model_uri) == (other.serve, "models:/other/1")


def die(case, digest, count):
    """Let a worker die while it imports steps."""
    loading = LoadingState(pid=2**30, folder=Path(digest))
    write_state(case.state_dir / LOADING / f"{count}.json", loading)


def test_steps_that_end_workers_are_refused(case, specs, follow):
    spec = specs("")
    follower = follow(spec)
    follower.round()
    for count in range(2):
        assert case.wanted.endpoints["e"].serve == spec.serve
        die(case, spec.serve.digest, count)
        follower.round()
    follower.round()
    assert mentions(case.wanted.endpoints["e"].errors["e"], "steps", "2 workers died")


def test_refused_steps_are_never_left_out(approve, case, specs, follow):
    refused = specs("gate=passed")
    state = follow(refused).round()
    assert state.fatal
    assert refused.serve.digest in state.error
    assert case.wanted.endpoints == {}
    served = apply_config(refused.model_copy(update={"name": "a"}), {"serve.steps": ""})
    follower = follow(refused, served)
    follower.round()
    for _ in range(2):
        endpoints = case.wanted.endpoints
        assert (endpoints["e"].variants, list(endpoints["a"].variants)) == ({}, ["e"])
        assert refused.serve.digest in endpoints["e"].errors["e"]
        assert refused.serve.digest in follower.round().error
    (case.state_dir / SPEC).write_text(dump_spec(served))
    assert follower.round().error == ""


@pytest.fixture
def listing(approve, case, specs, follow):
    """Return a function that serves the models of a pattern, and a function that
    fetches the model tiny after a listing and returns its mark and the error.
    """

    def start(place):
        client = MlflowClient()
        client.create_model_version("tiny", ".", tags={"region": "eu"})
        client.set_registered_model_alias("tiny", "champion", "1")
        case.world.versions[f"models:/tiny{place}"] = "1"
        spec = apply_config(specs("gate=passed"), {"variants.e.model": f"models:/*{place}"})
        follower = follow(spec)
        numbers = itertools.count()

        def fetch(mark=""):
            case.now += 60
            state = follower.round()
            mark = mark or case.wanted.listed.models["tiny"]
            command = Command(
                action="fetch", endpoint="tiny", mark=mark, created_at=time.monotonic()
            )
            name = f"{next(numbers)}.json"
            write_state(case.state_dir / COMMANDS / name, command)
            follower.round()
            answer = read_state(case.state_dir / ANSWERS / name, CommandAnswer)
            assert answer is not None
            return mark, answer.error, state

        return spec.serve.digest, fetch

    return start


@pytest.mark.parametrize("place", ["@champion", "/tag:region=eu"])
def test_steps_are_checked_at_each_listing(approve, listing, case, place):
    digest, fetch = listing(place)
    refused, error, state = fetch()
    assert (digest in error, state.error) == (True, "")
    assert not served_file(case.state_dir, "tiny").exists()
    approve(digest)
    permitted, error, _ = fetch()
    assert error == ""
    assert not is_same_model(permitted, refused)
    approve()
    withdrawn, error, state = fetch()
    assert (withdrawn, digest in error) == (refused, True)
    assert "tiny" in state.error
    approve(digest)
    # A server with a list from before must not keep a version under this mark.
    assert mentions(fetch(refused)[1], "being checked")
    assert fetch()[:2] == (permitted, "")


def test_steps_of_listed_models_that_end_workers(approve, listing, case):
    digest, fetch = listing("@champion")
    approve(digest)
    mark, _, _ = fetch()
    for count in range(2):
        die(case, digest, count)
    assert "2 workers died" in fetch(mark)[1]
    saved = read_state(served_file(case.state_dir, "tiny"), ServedModel)
    assert saved is not None
    assert (saved.endpoint.variants, saved.previous) == ({}, None)


def test_error_of_steps_keeps_the_version(case):
    follower = case.serving("1")
    error = LoadedVariant(version="1", error="the steps do not import", is_error_of_steps=True)
    case.worker_says(v1=error)
    state = follower.round()
    assert mentions(state.error, "endpoint e", "the steps do not import")
    assert (case.versions, case.world.failures, state.fatal) == ({"v1": "1"}, [], False)
