"""`Follower` round by round: the registry or the files are missing, and the agent is
restarted.
"""

import itertools
import time
from pathlib import Path
from threading import Thread
from unittest.mock import Mock

import pytest

from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    NotFound,
    RegistryRefused,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import (
    AGENT,
    ANSWERS,
    COMMANDS,
    FOLLOWED,
    SPEC,
    WANTED,
    read_state,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.models import (
    AgentState,
    Command,
    CommandAnswer,
)
from mlflow_deploy_plugin.serve.agent.keys import KeyFetcher
from tests.support.fake_registry import STAGE, Later
from tests.support.refusals import mentions
from tests.support.waiting import wait_until


def test_outage_keeps_the_version_and_slows_polls(case, follower):
    case.world.versions[STAGE] = RegistryUnavailable("MLflow is down")
    polls = []
    for _ in range(240):
        case.now += 0.5
        before = len(case.world.resolved)
        state = follower.round()
        if len(case.world.resolved) > before:
            polls.append(case.now)
    assert (state.error, state.fatal) == ("MLflow is down", False)
    pauses = [round(later - earlier) for earlier, later in itertools.pairwise(polls)]
    assert pauses[:4] == [4, 8, 16, 30]
    assert case.wanted.generation == 1
    assert case.versions == {"v1": "1"}

    case.world.versions[STAGE] = "2"
    case.now += 30
    assert follower.round().error == ""
    assert case.versions == {"v1": "2"}


@pytest.mark.parametrize("error", [NotFound("no model"), RegistryRefused("no permission")])
def test_user_errors_do_not_slow_polls(case, follower, error):
    case.world.versions[STAGE] = error
    before = len(case.world.resolved)
    for _ in range(120):
        case.now += 0.5
        state = follower.round()
    assert error.message in state.error
    assert len(case.world.resolved) - before >= 25
    assert case.versions == {"v1": "1"}


@pytest.mark.parametrize(
    "error", [NotFound("no such model"), RegistryUnavailable("MLflow is down")]
)
def test_nothing_to_serve_at_the_start_is_fatal(case, error):
    case.spec(STAGE, "models:/tiny/3")
    case.world.versions = {STAGE: error, "models:/tiny/3": "3"}
    state = case.follower().round()
    assert state.fatal
    assert error.message in state.error
    assert read_state(case.state_dir / AGENT, AgentState) == state
    assert case.wanted.generation == 0


def test_restart_during_an_outage_keeps_the_version(case):
    case.serving("1")
    case.world.versions[STAGE] = RegistryUnavailable("MLflow is down")
    state = case.follower().round()
    assert (state.fatal, state.error) == (False, "MLflow is down")
    assert case.wanted.generation == 1
    assert case.versions == {"v1": "1"}


@pytest.mark.parametrize(
    "lose",
    [Path.unlink, lambda file: file.write_text("{"), lambda file: file.chmod(0)],
    ids=["gone", "damaged", "unreadable"],
)
@pytest.mark.parametrize("name", [WANTED, AGENT, FOLLOWED])
def test_lost_state_file_is_written_again(case, follower, name, lose):
    file = case.state_dir / name
    content = file.read_bytes()
    lose(file)
    follower.round()
    assert file.read_bytes() == content


def test_lost_keys_are_written_again(follower):
    fetcher = Mock(spec=KeyFetcher, fetched_at=1.0)
    follower.key_fetchers = [fetcher]
    follower.round()
    fetcher.assert_file.assert_called_once_with()


def test_restart_with_another_model_forgets_the_version(case):
    case.serving("1")
    case.spec("models:/other/Production")
    case.world.versions["models:/other/Production"] = NotFound("no model other")
    assert case.follower().round().fatal


def test_failed_fetches_are_retried_with_backoff(case, follower):
    case.world.versions[STAGE] = "2"
    case.world.unusable["2"] = NotFound("the files are gone")
    for _ in range(100):
        case.now += 1
        state = follower.round()
    assert mentions(state.error, STAGE, "version 2", "the files are gone", "version 1")
    assert state.refused[0].cause == "fetch"
    assert case.world.failures == [("models:/tiny/2", "the files are gone")]
    assert 4 <= case.world.fetched.count("2") <= 8
    case.world.unusable.clear()
    for version in "32":  # Another version is not delayed.
        case.world.versions[STAGE] = version
        case.now += 2.1
        assert follower.round().error == ""
        assert case.versions == {"v1": version}
    assert case.world.failures[1:] == [("models:/tiny/2", "")]


def test_failure_is_reported_once(case):
    case.world.unusable["2"] = InvalidArtifact("no onnx here")
    follower = case.serving("1")
    case.world.is_deaf = True
    case.move("2")
    follower.round()
    case.world.is_deaf = False
    for _ in range(3):
        case.now += 5
        assert mentions(follower.round().error, STAGE, "version 2", "no onnx here", "version 1")
    assert case.world.failures == [("models:/tiny/2", "no onnx here")]
    assert case.world.fetched == ["1", "2"]
    assert case.versions == {"v1": "1"}


def test_weights_change_while_the_registry_hangs(case):
    looks = Later()
    case.serving("1")
    follower = case.follower(looks=looks)
    looks.go_on_once_asked()
    follower.round()
    for _ in range(10):
        case.now += 100
        follower.round()
    assert len(looks.waiting) == 1
    (case.state_dir / SPEC).write_text(
        f"name: e\nvariants: {{v1: {{model: '{STAGE}', weight: 7}}}}"
    )
    follower.round()
    assert case.wanted.endpoints["e"].variants["v1"].weight == 7


def test_missing_model_delays_no_other_endpoint(case, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.serve.agent.follow._FIRST_POLL_SECONDS", 0.1)
    fetches = Later()
    (case.state_dir / SPEC).write_text(
        "---\n".join(
            f"name: e{version}\nvariants: {{v: {{model: 'models:/tiny/{version}'}}}}\n"
            for version in "12"
        )
    )
    case.world.versions = {f"models:/tiny/{version}": version for version in "12"}
    follower = case.follower(fetches=fetches)

    def fetch_the_second():
        wait_until(lambda: len(fetches.waiting) == 2)
        del fetches.waiting[0]
        fetches.go_on()

    fetching = Thread(target=fetch_the_second)
    fetching.start()
    assert not follower.round().fatal
    fetching.join()
    assert [list(endpoint.variants) for endpoint in case.wanted.endpoints.values()] == [[], ["v"]]


def test_stalled_first_download_is_fatal(case, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.serve.agent.follow._FIRST_POLL_SECONDS", 0.1)
    fetches = Later()
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower(fetches=fetches)

    def let_time_go_by():
        wait_until(lambda: fetches.waiting)
        case.now += 601

    passing = Thread(target=let_time_go_by)
    passing.start()
    state = follower.round()
    passing.join()
    assert state.fatal
    assert mentions(state.error, "version 1", "cannot be fetched", "stalls", "0 bytes")


def test_hanging_fetch_is_abandoned_after_a_move(case):
    fetches = Later()
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower(fetches=fetches)
    fetches.go_on_once_asked()
    follower.round()
    assert case.versions == {"v1": "1"}
    for version in ("2", "1"):
        case.move(version)
        assert follower.round().error == ""
    fetches.go_on()
    follower.round()
    assert case.versions == {"v1": "1"}
    assert case.wanted.generation == 1


NO_MODEL = NotFound("there is no registered model x, in MLflow at http://db:5000")


def test_error_without_a_version_hides_the_address(case):
    documents = [
        f"name: {name}\nvariants: {{v: {{model: 'models:/{name}/1'}}}}\n" for name in ("good", "x")
    ]
    (case.state_dir / SPEC).write_text("---\n".join(documents))
    case.world.versions = {"models:/good/1": "1", "models:/x/1": NO_MODEL}
    case.follower().round()
    assert case.wanted.endpoints["x"].errors == {"v": "models:/x/1: there is no registered model x"}


def test_error_of_a_load_hides_the_address(case):
    (case.state_dir / SPEC).write_text(
        f"name: e\nvariants: {{v1: {{model: '{STAGE}'}}}}\nserver: {{model_control_mode: explicit}}"
    )
    case.world.versions = {STAGE: "1", "models:/x/1": NO_MODEL}
    follower = case.follower()
    follower.round()
    added = new_endpoint("n", "models:/x/1")
    command = Command(action="load", endpoint="n", added=added, created_at=time.monotonic())
    write_state(case.state_dir / COMMANDS / "1.json", command)
    for _ in range(2):
        follower.round()
    answer = read_state(case.state_dir / ANSWERS / "1.json", CommandAnswer)
    message = "models:/x/1: there is no registered model x"
    assert answer == CommandAnswer(error=message, kind="NotFound")
    assert list(case.wanted.endpoints) == ["e"]


def test_resolved_error_is_withdrawn_after_a_restart(case):
    case.require_gate(STAGE)
    case.world.versions[STAGE] = "1"
    case.world.gates["1"] = "passed"
    follower = case.follower()
    follower.round()
    case.move("2")
    follower.round()
    follower.round()
    case.world.gates["2"] = "passed"
    again = case.follower()
    again.round()
    again.round()
    assert case.versions == {"v1": "2"}
    assert case.world.failures[-1] == ("models:/tiny/2", "")
