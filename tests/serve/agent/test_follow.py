"""`Follower` round by round: the choice of the wanted versions, and the times of the
registry polls.
"""

import subprocess
from collections import Counter

from mlflow_deploy_plugin.core.errors import InvalidArtifact, NotFound, OnnxserveError
from mlflow_deploy_plugin.core.statedir.files import (
    AGENT,
    LOADING,
    LOOK,
    SPEC,
    WANTED,
    read_state,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import (
    AgentState,
    LoadedVariant,
    LoadingState,
    ShippingState,
    Wanted,
)
from tests.support.fake_registry import STAGE, Later
from tests.support.refusals import mentions


def test_move_is_noticed_at_the_next_poll(case, follower):
    assert case.wanted.generation == 1
    case.world.versions[STAGE] = "2"
    for seconds, generation, version in ((1.9, 1, "1"), (0.2, 2, "2"), (2, 2, "2")):
        case.now += seconds
        assert not follower.round().fatal
        assert case.wanted.generation == generation
        assert case.versions == {"v1": version}
    assert case.world.fetched == ["1", "2"]


def test_look_file_triggers_a_poll(case):
    case.spec(STAGE, "models:/tiny/3")
    case.world.versions |= {STAGE: "1", "models:/tiny/3": "3"}
    follower = case.follower()
    follower.round()

    case.world.versions[STAGE] = "2"
    (case.state_dir / LOOK).touch()
    follower.round()
    assert case.versions == {"v1": "2", "v2": "3"}
    assert Counter(case.world.resolved) == {STAGE: 2, "models:/tiny/3": 1}


def test_unfollowed_stage_is_resolved_once(case):
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower(follow=False)
    for _ in range(5):
        follower.round()
        case.now += 100
    assert case.world.resolved == [STAGE]


def test_changed_spec_is_read_again(case):
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


def test_agent_state_contains_the_shipping_state(case, follower):
    shipping = ShippingState(error="the log is down", torn_segments=1)
    follower.shipping = lambda: shipping
    follower.round()
    written = read_state(case.state_dir / AGENT, AgentState) or AgentState(pid=0)
    assert written.shipping == shipping
    assert written.error == ""


def test_clock_changes_do_not_affect_polls(case, follower):
    for number, jump in enumerate((1e9, -1e9, 3600.0), 2):
        case.jumped += jump
        case.world.versions[STAGE] = str(number)
        case.now += 1.9
        follower.round()
        assert case.versions == {"v1": str(number - 1)}
        case.now += 0.2
        follower.round()
        assert case.versions == {"v1": str(number)}


def test_variant_keeps_its_model_until_the_next_loads(case):
    case.spec(STAGE)
    case.world.versions = {STAGE: "1", "models:/tiny/9": NotFound("no version 9")}
    follower = case.follower()
    follower.round()
    case.spec("models:/tiny/9")
    assert mentions(follower.round().error, "models:/tiny/9", "no version 9")
    assert case.versions == {"v1": "1"}
    case.world.versions["models:/tiny/9"] = "9"
    case.now += 2
    assert follower.round().error == ""
    assert case.versions == {"v1": "9"}


def test_followed_pyfunc_needs_permission(case):
    case.world.pyfuncs = {"2"}
    follower = case.serving("1")
    case.move("2")
    assert "-C variants.v1.allow_pyfunc=true" in follower.round().error
    assert case.versions == {"v1": "1"}

    (case.state_dir / SPEC).write_text(
        f"name: e\nvariants: {{v1: {{model: '{STAGE}', allow_pyfunc: true}}}}"
    )
    assert follower.round().error == ""
    assert case.versions == {"v1": "2"}


def test_failed_pyfunc_env_keeps_the_version(case):
    case.world.pyfuncs = {"2"}
    case.world.environments["2"] = OnnxserveError("no tiny==3.0")
    follower = case.serving("1")
    (case.state_dir / SPEC).write_text(
        "{name: e, server: {pyfunc_env: uv}, "
        f"variants: {{v1: {{model: '{STAGE}', allow_pyfunc: true}}}}}}"
    )
    case.move("2")
    assert mentions(follower.round().error, "no tiny==3.0", "version 1 is still served")
    assert case.versions == {"v1": "1"}

    case.world.environments["2"] = "/e/bin/python"
    case.now += 60
    assert follower.round().error == ""
    wanted = read_state(case.state_dir / WANTED, Wanted)
    assert wanted is not None
    assert wanted.endpoints["e"].variants["v1"].python


def test_unloadable_version_is_rolled_back(case, follower):
    case.worker_says(v1=LoadedVariant(version="1"))
    case.move("2")
    follower.round()
    assert case.versions == {"v1": "2"}

    case.worker_says(v1=LoadedVariant(version="1", error="bad graph"))
    for _ in range(3):
        case.now += 2
        state = follower.round()
        assert mentions(state.error, STAGE, "version 2", "bad graph", "version 1 is still served")
        assert not state.fatal
    assert case.wanted.generation == 3
    assert case.versions == {"v1": "1"}
    assert case.world.failures == [("models:/tiny/2", "bad graph")]

    case.move("3")
    assert follower.round().error == ""
    assert case.versions == {"v1": "3"}


def test_unloadable_first_version_is_fatal(case, follower):
    case.worker_says(v1=LoadedVariant(error="bad graph"))
    state = follower.round()
    assert state.fatal
    assert mentions(state.error, STAGE, "version 1", "cannot be loaded", "bad graph")


class _OneAtOnce(Later):
    """An executor that fetches version 1 immediately, and the others later."""

    def submit(self, function, /, *arguments, **named):
        submitted = super().submit(function, *arguments, **named)
        if "models:/tiny/1" in arguments:
            future, work = self.waiting.pop()
            future.set_result(work())
        return submitted


def test_unloadable_endpoint_waits_for_the_others(case, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.serve.agent.follow._FIRST_POLL_SECONDS", 0.1)
    case.world.versions = {STAGE: "1", "models:/tiny/2": "2"}
    specs = [
        f"name: {name}\nvariants: {{v1: {{model: '{uri}'}}}}\n"
        for name, uri in zip("ef", case.world.versions, strict=True)
    ]
    (case.state_dir / SPEC).write_text("---\n".join(specs))
    fetches = _OneAtOnce()
    follower = case.follower(fetches=fetches)
    assert not follower.round().fatal
    case.worker_says(v1=LoadedVariant(error="bad graph"))
    assert not follower.round().fatal
    assert not follower.round().fatal
    fetches.waiting[0][0].set_exception(InvalidArtifact("no model"))
    state = follower.round()
    assert state.fatal
    assert mentions(state.error, "bad graph", "no model")


def test_unloadable_second_variant_is_not_fatal(case):
    case.spec(STAGE, "models:/tiny/3")
    case.world.versions = {STAGE: "1", "models:/tiny/3": "3"}
    follower = case.follower()
    follower.round()
    case.worker_says(v1=LoadedVariant(version="1"), v2=LoadedVariant(error="bad graph"))
    state = follower.round()
    assert not state.fatal
    assert mentions(state.error, "models:/tiny/3", "version 3", "cannot be loaded", "bad graph")


def test_rollback_survives_a_killed_agent(case, follower):
    case.move("2")
    follower.round()
    case.worker_says(v1=LoadedVariant(version="1", error="bad graph"))
    state = case.follower().round()
    assert mentions(state.error, STAGE, "version 2", "cannot be loaded", "bad graph", "version 1")
    assert case.versions == {"v1": "1"}


def test_version_that_kills_workers_is_rolled_back(case, follower):
    case.move("2")
    follower.round()
    for death in (1, 2):
        dead = subprocess.Popen(["true"])
        dead.wait()
        write_state(
            case.state_dir / LOADING / f"{dead.pid}.json",
            LoadingState(pid=dead.pid, folder=case.world.root / "2"),
        )
        state = follower.round()
        assert case.versions == {"v1": str(3 - death)}
    assert mentions(state.error, "2 workers", "died")
