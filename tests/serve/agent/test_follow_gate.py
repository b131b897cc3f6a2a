"""`Follower` round by round: an endpoint may require versions that have passed their
gate.
"""

import mlflow.onnx
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import GateRefused, SignatureRefused
from mlflow_deploy_plugin.core.statedir.files import SPEC
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from mlflow_deploy_plugin.serve.agent.follow import Follower
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy, VersionResolver
from tests.support.clocks import Clock
from tests.support.fake_registry import STAGE, AtOnce
from tests.support.models import adder
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at


def refused(state):
    return [(refusal.variant, refusal.version, refusal.cause) for refusal in state.refused]


def check_is_served(case, follower, version):
    state = follower.round()
    assert case.versions == {"v1": version}
    assert state.error == ""
    assert state.refused == ()


def test_version_without_its_gate_is_refused(case):
    case.require_gate(STAGE)
    case.world.versions[STAGE] = "1"
    case.world.gates["1"] = "forced"
    follower = case.follower()
    follower.round()
    assert case.wanted.endpoints["e"].variants["v1"].digest == "own"  # Workers compare it.
    for gate in ("", "failed"):
        case.world.gates |= {"2": gate} if gate else {}
        case.move("2")
        state = follower.round()
        assert case.versions == {"v1": "1"}
        assert case.world.fetched == ["1"]
        assert mentions(state.error, STAGE, "version 2", "gate=passed", "version 1 is still served")
        assert refused(state) == [("v1", "2", "gate")]
        assert case.world.failures[-1] == ("models:/tiny/2", state.refused[0].reason)
    case.world.gates["2"] = "passed"
    case.now += 2
    check_is_served(case, follower, "2")
    assert case.world.failures[-1] == ("models:/tiny/2", "")


@pytest.mark.parametrize("uri", [STAGE, "models:/tiny/2"])
def test_files_other_than_judged_are_refused(case, follower, uri):
    case.require_gate(uri)
    case.world.versions[uri] = "2"
    case.world.gates["2"] = "passed"
    case.world.judged["2"] = "others"
    for _ in range(3):
        case.now += 2
        state = follower.round()
    assert case.versions == {"v1": "1"}
    assert case.world.fetched == ["1", "2"]
    assert refused(state) == [("v1", "2", "gate")]
    del case.world.judged["2"]  # The version gets a new verdict.
    case.now += 2
    check_is_served(case, follower, "2")


def test_verdict_without_its_event_is_refused(case, follower):
    case.world.gates["2"] = "passed"
    case.world.unjudged["2"] = "the audit trail has no verdict; run `onnxserve gate`"
    case.require_gate(STAGE)
    case.move("2")
    assert mentions(follower.round().error, "version 2", "`onnxserve gate`", "gate=passed")
    assert case.versions == {"v1": "1"}
    case.spec(STAGE)
    check_is_served(case, follower, "2")


@pytest.mark.parametrize("is_restarted", [False, True])
def test_new_requirement_keeps_the_served_version(case, follower, is_restarted):
    case.require_gate(STAGE)
    follower = case.follower() if is_restarted else follower
    state = follower.round()
    assert (state.fatal, state.error, case.versions) == (False, "", {"v1": "1"})
    case.move("2")
    assert mentions(follower.round().error, "version 2", "is not served")
    assert case.versions == {"v1": "1"}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (None, "gate"),
        (GateRefused("its files differ"), "gate"),
        (SignatureRefused("its files differ"), "signature"),
    ],
    ids=["no approval", "other files than approved", "other files than signed"],
)
def test_unapproved_version_is_refused_until_corrected(case, follower, error, cause):
    if error is None:
        case.world.unapproved.add("2")
    else:
        case.world.unusable["2"] = error
    case.move("2")
    state = follower.round()
    assert case.versions == {"v1": "1"}
    assert refused(state) == [("v1", "2", cause)]
    assert mentions(state.error, "version 2", "version 1 is still served")
    case.world.unapproved.clear()
    case.world.unusable.clear()
    case.now += 61
    check_is_served(case, follower, "2")


def test_signed_version_must_match_its_name(case):
    case.require("{signature: /a.pub, name: true}", STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    follower.round()
    assert case.wanted.endpoints["e"].variants["v1"].digest == "own"
    case.world.signed_as["2"] = "models:/tiny/1"
    case.move("2")
    state = follower.round()
    assert case.versions == {"v1": "1"}
    assert state.refused[0].cause == "signature"
    assert mentions(state.error, "version 2", "signed as models:/tiny/1")


def test_plain_server_has_no_approved_versions(mlflow_server, tmp_path):
    clock = Clock(0.0)
    registry = MlflowRegistry(ModelCache(tmp_path / "cache", tmp_path))
    resolver = VersionResolver(registry, AtOnce(), AtOnce(), PollPolicy(2.0, True, clock))
    model = tmp_path.name

    def error(policy, place):
        MlflowClient().set_registered_model_tag(model, "onnxserve.gate.policy", policy)
        spec = f"name: e\nvariants: {{v1: {{model: 'models:/{model}{place}'}}}}"
        (tmp_path / SPEC).write_text(spec)
        state = Follower(tmp_path, resolver, clock).round()
        assert state.fatal is bool(state.error)
        assert len(state.error.splitlines()) == state.fatal
        return state.error

    with tracking_at(mlflow_server.url):
        mlflow.onnx.log_model(
            adder(1.0), name="model", registered_model_name=model, pip_requirements=[]
        )
        MlflowClient().set_registered_model_alias(model, "champion", "1")
        assert "requires approvals for @champion" in error("approvals: {}", "@champion")
        assert "policy" in error("approvals: [", "@champion")
        assert error("approvals: {}", "/1") == ""
