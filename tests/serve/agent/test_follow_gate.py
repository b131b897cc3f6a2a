"""`Follower` round by round: an endpoint may require versions that have passed their
gate.
"""

import pytest

from mlflow_deploy_plugin.core.errors import GateRefused, SignatureRefused
from tests.support.fake_registry import STAGE
from tests.support.refusals import mentions


def test_a_version_without_its_gate_is_not_served_until_the_tag_appears(case):
    case.require_gate(STAGE)
    case.world.versions[STAGE] = "1"
    case.world.gates["1"] = "forced"
    follower = case.follower()
    follower.round()
    for gate in ("", "failed"):
        case.world.versions[STAGE] = "2"
        case.world.gates |= {"2": gate} if gate else {}
        case.now += 2
        state = follower.round()
        assert case.versions == {"v1": "1"}
        assert case.world.fetched == ["1"]
        assert mentions(state.error, STAGE, "version 2", "is not served")
        assert state.error.endswith(
            "but this endpoint requires gate=passed; version 1 is still served"
        )
        assert [(refusal.variant, refusal.version, refusal.cause) for refusal in state.refused] == [
            ("v1", "2", "gate")
        ]
        assert case.world.failures[-1] == ("models:/tiny/2", state.refused[0].reason)
    case.world.gates["2"] = "passed"
    case.now += 2
    state = follower.round()
    assert case.versions == {"v1": "2"}
    assert state.error == ""
    assert state.refused == ()
    assert case.world.failures[-1] == ("models:/tiny/2", "")


@pytest.mark.parametrize("uri", [STAGE, "models:/tiny/2"])
def test_a_version_with_other_files_than_the_judged_ones_is_fetched_once_and_not_served(case, uri):
    follower = case.serving("1")
    case.require_gate(uri)
    case.world.versions[uri] = "2"
    case.world.gates["2"] = "passed"
    case.world.judged["2"] = "others"
    for _ in range(3):
        case.now += 2
        state = follower.round()
    assert case.versions == {"v1": "1"}
    assert case.world.fetched == ["1", "2"]
    assert [(refusal.version, refusal.cause) for refusal in state.refused] == [("2", "gate")]
    assert "onnxserve gate" in state.error
    del case.world.judged["2"]  # The version gets a new verdict.
    case.now += 2
    state = follower.round()
    assert case.versions == {"v1": "2"}
    assert state.error == ""
    assert state.refused == ()


def test_an_endpoint_without_the_requirement_serves_files_that_were_not_judged(case):
    case.world.gates["1"] = "passed"
    case.world.judged["1"] = "others"
    assert case.serving("1").round().error == ""
    assert case.versions == {"v1": "1"}


def test_a_pinned_version_without_its_gate_is_refused_at_the_start_in_one_line(case):
    case.require_gate("models:/tiny/7")
    case.world.versions["models:/tiny/7"] = "7"
    state = case.follower().round()
    assert state.fatal
    assert mentions(state.error, "models:/tiny/7", "version 7", "gate=passed")


def test_a_served_version_survives_a_restart_without_a_gate_verdict(case):
    case.require_gate(STAGE)
    case.world.versions[STAGE] = "1"
    case.world.gates["1"] = "passed"
    case.follower().round()
    case.world.gates.clear()
    case.world.versions[STAGE] = "1"
    state = case.follower().round()
    assert (state.fatal, state.error, case.versions) == (False, "", {"v1": "1"})


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_demand_that_comes_later_takes_nothing_away(case, is_restarted):
    follower = case.serving("1")
    case.require_gate(STAGE)
    follower = case.follower() if is_restarted else follower
    state = follower.round()
    assert (state.fatal, state.error, case.versions) == (False, "", {"v1": "1"})
    case.move("2")
    assert mentions(follower.round().error, "version 2", "is not served")
    assert case.versions == {"v1": "1"}


def test_a_version_without_its_approvals_is_not_served_from_a_gated_stage(case):
    follower = case.serving("1")
    case.world.unapproved.add("2")
    case.move("2")
    state = follower.round()
    assert case.versions == {"v1": "1"}
    assert [(refusal.version, refusal.cause) for refusal in state.refused] == [("2", "gate")]
    assert mentions(
        state.error, "version 2", "no record of approved files", "version 1 is still served"
    )
    case.world.unapproved.clear()
    case.now += 61
    state = follower.round()
    assert case.versions == {"v1": "2"}
    assert state.error == ""
    assert state.refused == ()


@pytest.mark.parametrize(
    ("error_class", "cause"), [(GateRefused, "gate"), (SignatureRefused, "signature")]
)
def test_other_files_than_the_approved_or_signed_ones_are_not_served_until_they_are_back(
    case, error_class, cause
):
    follower = case.serving("1")
    case.world.unusable["2"] = error_class("its files differ from the files that were approved")
    case.move("2")
    state = follower.round()
    assert case.versions == {"v1": "1"}
    assert [refusal.cause for refusal in state.refused] == [cause]
    assert mentions(state.error, "version 2", "differ", "version 1 is still served")
    del case.world.unusable["2"]
    case.now += 61
    state = follower.round()
    assert case.versions == {"v1": "2"}
    assert state.error == ""
    assert state.refused == ()


def test_a_signed_version_has_its_own_name_and_a_digest_for_workers(case):
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
