"""`Follower` round by round: if a version cannot be served, the previous version is
served.
"""

import subprocess

from mlflow_deploy_plugin.core.errors import InvalidArtifact, InvalidConfig, NotFound
from mlflow_deploy_plugin.core.statedir.files import LOADING, SPEC, write_state
from mlflow_deploy_plugin.core.statedir.models import LoadedVariant, LoadingState
from tests.support.fake_registry import STAGE
from tests.support.refusals import mentions


def test_a_variant_that_is_given_a_model_that_cannot_be_had_keeps_the_one_it_has(case):
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


def test_a_uri_that_names_no_model_is_shown_once(case):
    case.spec("models:/tiny")
    case.world.versions = {"models:/tiny": InvalidConfig("'models:/tiny' names no version")}
    assert mentions(case.follower().round().error, "'models:/tiny'", "no version")


def test_a_version_without_onnx_is_refused_once_and_the_old_one_stays(case):
    case.world.unusable["2"] = InvalidArtifact("no onnx here")
    follower = case.serving("1")
    case.world.versions[STAGE] = "2"
    for _ in range(3):
        case.now += 2
        assert mentions(follower.round().error, STAGE, "version 2", "no onnx here", "version 1")
    assert case.world.fetched == ["1", "2"]
    assert case.world.failures == [("models:/tiny/2", "no onnx here")]
    assert case.versions == {"v1": "1"}


def test_a_stage_that_moves_to_a_pyfunc_needs_the_specs_consent(case):
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


def test_a_pyfunc_of_a_fixed_version_is_served(case):
    case.spec("models:/tiny/2")
    case.world.versions["models:/tiny/2"] = "2"
    case.world.pyfuncs = {"2"}
    state = case.follower().round()
    assert (state.error, state.fatal) == ("", False)
    assert case.versions == {"v1": "2"}


def test_a_version_that_workers_cannot_load_gives_way_to_the_one_before(case):
    follower = case.serving("1")
    case.worker_says(v1=LoadedVariant(version="1"))
    case.move("2")
    follower.round()
    assert case.versions == {"v1": "2"}

    case.worker_says(v1=LoadedVariant(version="1", error="bad graph"))
    for _ in range(3):
        case.now += 2
        state = follower.round()
        assert (state.error, state.fatal) == (
            f"{STAGE}: version 2 cannot be loaded: bad graph; version 1 is still served",
            False,
        )
    assert case.wanted.generation == 3
    assert case.versions == {"v1": "1"}
    assert case.world.failures == [("models:/tiny/2", "bad graph")]

    case.move("3")
    assert follower.round().error == ""
    assert case.versions == {"v1": "3"}


def test_a_first_version_that_does_not_load_is_fatal(case):
    follower = case.serving("1")
    case.worker_says(v1=LoadedVariant(error="bad graph"))
    state = follower.round()
    assert state.fatal
    assert mentions(state.error, STAGE, "version 1", "cannot be loaded", "bad graph")


def test_a_second_variant_that_does_not_load_leaves_the_first_one_serving(case):
    case.spec(STAGE, "models:/tiny/3")
    case.world.versions = {STAGE: "1", "models:/tiny/3": "3"}
    follower = case.follower()
    follower.round()
    case.worker_says(v1=LoadedVariant(version="1"), v2=LoadedVariant(error="bad graph"))
    state = follower.round()
    assert not state.fatal
    assert mentions(state.error, "models:/tiny/3", "version 3", "cannot be loaded", "bad graph")


def test_an_agent_killed_during_a_swap_can_still_roll_back(case):
    follower = case.serving("1")
    case.move("2")
    follower.round()
    case.worker_says(v1=LoadedVariant(version="1", error="bad graph"))
    state = case.follower().round()
    assert mentions(state.error, STAGE, "version 2", "cannot be loaded", "bad graph", "version 1")
    assert case.versions == {"v1": "1"}


def test_a_version_that_workers_die_of_is_taken_back(case):
    follower = case.serving("1")
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
