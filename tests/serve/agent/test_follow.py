"""`Follower` round by round: the choice of the wanted versions, and the times of the
registry polls.
"""

from collections import Counter

from mlflow_deploy_plugin.core.statedir.files import AGENT, LOOK, SPEC, read_state
from mlflow_deploy_plugin.core.statedir.models import AgentState, ShippingState
from tests.support.fake_registry import STAGE


def test_the_registry_version_is_wanted_and_a_move_is_noticed_at_the_next_poll(case):
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    assert not follower.round().fatal
    assert case.wanted.generation == 1
    assert case.versions == {"v1": "1"}

    case.world.versions[STAGE] = "2"
    case.now += 1.9
    follower.round()
    assert case.versions == {"v1": "1"}
    case.now += 0.2
    follower.round()
    assert case.wanted.generation == 2
    assert case.versions == {"v1": "2"}
    case.now += 2
    follower.round()
    assert case.wanted.generation == 2
    assert case.world.fetched == ["1", "2"]


def test_whoever_has_moved_a_reference_may_ask_for_a_look_at_once(case):
    case.spec(STAGE, "models:/tiny/3")
    case.world.versions |= {STAGE: "1", "models:/tiny/3": "3"}
    follower = case.follower()
    follower.round()

    case.world.versions[STAGE] = "2"
    (case.state_dir / LOOK).touch()
    follower.round()
    assert case.versions == {"v1": "2", "v2": "3"}
    assert Counter(case.world.resolved) == {STAGE: 2, "models:/tiny/3": 1}


def test_a_pinned_version_is_looked_up_once(case):
    case.spec("models:/tiny/3")
    case.world.versions["models:/tiny/3"] = "3"
    follower = case.follower()
    for _ in range(5):
        follower.round()
        case.now += 100
    assert case.world.resolved == ["models:/tiny/3"]


def test_without_following_a_stage_is_looked_up_once(case):
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower(follow=False)
    for _ in range(5):
        follower.round()
        case.now += 100
    assert case.world.resolved == [STAGE]


def test_a_spec_that_changes_is_read_again(case):
    case.spec(STAGE)
    case.world.versions = {STAGE: "1", "models:/tiny/3": "3"}
    follower = case.follower()
    follower.round()
    case.spec(STAGE, "models:/tiny/3")
    follower.round()
    assert case.wanted.generation == 2
    assert case.versions == {"v1": "1", "v2": "3"}

    (case.state_dir / SPEC).write_text("name: [")
    assert "not valid YAML" in follower.round().error
    assert case.wanted.generation == 2

    case.spec("models:/tiny/3")
    assert follower.round().error == ""
    assert case.versions == {"v1": "3"}


def test_the_agent_state_contains_the_shipping_state(case):
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    for state in (ShippingState(error="the log is down"), ShippingState(torn_segments=1)):
        follower.shipping = lambda state=state: state  # type: ignore[misc]
        follower.round()
        written = read_state(case.state_dir / AGENT, AgentState)
        assert written is not None
        assert written.shipping == state
        assert written.error == ""


def test_each_followed_reference_is_asked_for_once_per_interval_and_pinned_ones_once(case):
    alias = "models:/tiny@live"
    tag = "models:/tiny/tag:a=b"
    pinned = "models:/tiny/3"
    case.spec(STAGE, alias, tag, pinned)
    case.world.versions = {STAGE: "1", alias: "2", tag: "2", pinned: "3"}
    follower = case.follower()
    follower.round()
    case.world.calls = 0
    case.world.resolved.clear()
    for _ in range(100):
        case.now += 0.1
        follower.round()
    assert Counter(case.world.resolved) == {STAGE: 5, alias: 5, tag: 5}


def test_a_clock_that_is_set_does_not_matter(case):
    follower = case.serving("1")
    for number, jump in enumerate((1e9, -1e9, 3600.0), 2):
        case.jumped += jump
        case.world.resolved.clear()
        case.now += 1.9
        follower.round()
        assert case.world.resolved == []
        case.world.versions[STAGE] = str(number)
        case.now += 0.2
        follower.round()
        assert case.versions == {"v1": str(number)}
