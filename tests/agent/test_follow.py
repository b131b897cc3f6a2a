"""`Follower` round by round, with a clock in the hand and a registry that says what the test wants."""

import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.agent.follow import Follower
from mlflow_deploy_plugin.agent.pursuit import Pace, Pursuit
from mlflow_deploy_plugin.agent.tracked import Tracked, Wish
from mlflow_deploy_plugin.agent.version import FetchedVersion
from mlflow_deploy_plugin.errors import InvalidArtifact, NotFound, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.registry.lookup import Answer
from mlflow_deploy_plugin.registry.resolve import ResolvedModel
from mlflow_deploy_plugin.registry.tags import standing_of
from mlflow_deploy_plugin.server.state import (
    AGENT,
    ANSWERS,
    COMMANDS,
    LOADING,
    LOOK,
    SPEC,
    WANTED,
    AgentState,
    Command,
    CommandAnswer,
    LoadedVariant,
    LoadingState,
    ShippingState,
    Wanted,
    WorkerState,
    read_state,
    worker_file,
    write_state,
)
from mlflow_deploy_plugin.spec import new_endpoint

STAGE = "models:/tiny/Production"


class AtOnce(Executor):
    """Does in the caller's thread what a pool would do in another."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except OnnxserveError as error:
            future.set_exception(error)
        return future


class Later(Executor):
    """Does nothing until it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        self.waiting.append((Future(), lambda: function(*arguments, **named)))
        return self.waiting[-1][0]

    def go_on(self) -> None:
        waiting, self.waiting = self.waiting, []
        for future, work in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(work())


@dataclass
class World:
    """A registry that answers with `versions[uri]` (or raises it), and versions that lie ready on this disk."""

    make_model: Callable[..., Path]
    root: Path
    versions: dict[str, str | OnnxserveError] = field(default_factory=dict)
    unusable: dict[str, OnnxserveError] = field(default_factory=dict)
    pyfuncs: set[str] = field(default_factory=set)
    resolved: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    gates: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    is_deaf: bool = False

    def resolve(self, model_uris: Sequence[str]) -> dict[str, Answer]:
        self.calls += 1
        return {uri: self._resolve(uri) for uri in model_uris}

    def _resolve(self, model_uri: str) -> Answer:
        self.resolved.append(model_uri)
        answer = self.versions[model_uri]
        if isinstance(answer, OnnxserveError):
            return answer
        followed = not model_uri.rpartition("/")[2].isdigit()
        standing = standing_of({"onnxserve.gate": self.gates[answer]} if answer in self.gates else {})
        return ResolvedModel(model_uri, "tiny", answer, f"models:/tiny/{answer}", followed, standing=standing)

    def fetch(self, resolved: ResolvedModel) -> FetchedVersion:
        self.fetched.append(resolved.version)
        if resolved.version in self.unusable:
            raise self.unusable[resolved.version]
        folder = self.root / resolved.version
        if not folder.exists():
            self.make_model(folder)
        runs_code = resolved.version in self.pyfuncs
        return FetchedVersion("tiny", resolved.version, folder, {}, resolved.identity, resolved.source, runs_code)

    def report_failure(self, source: str, error: str) -> bool:
        if self.is_deaf:
            return False
        self.failures.append((source, error))
        return True


@dataclass
class Case:
    state_dir: Path
    world: World
    now: float = 1000.0
    jumped: float = 0.0

    def spec(self, *variants: str) -> None:
        lines = [f"  v{number}: {{model: '{uri}'}}" for number, uri in enumerate(variants, 1)]
        (self.state_dir / SPEC).write_text("\n".join(["name: e", "variants:", *lines]))

    def follower(self, follow: bool = True, looks: Executor | None = None, fetches: Executor | None = None) -> Follower:
        clock = lambda: self.now  # noqa: E731
        pace = Pace(2.0, follow, clock, uniform=lambda low, high: 1.0)
        pursuit = Pursuit(self.world, looks or AtOnce(), fetches or AtOnce(), pace)
        return Follower(self.state_dir, pursuit, lambda: self.now + self.jumped)

    @property
    def wanted(self) -> Wanted:
        return read_state(self.state_dir / WANTED, Wanted) or Wanted()

    @property
    def versions(self) -> dict[str, str]:
        return {name: variant.version for name, variant in self.wanted.endpoints["e"].variants.items()}

    def worker_says(self, **loaded: LoadedVariant) -> None:
        state = WorkerState(pid=os.getpid(), generation=self.wanted.generation, endpoints={"e": loaded})
        write_state(worker_file(self.state_dir, os.getpid()), state)


@pytest.fixture
def case(tmp_path: Path, make_model: Callable[..., Path]) -> Case:
    (tmp_path / "state").mkdir()
    return Case(tmp_path / "state", World(make_model, tmp_path / "versions"))


def test_what_the_registry_names_is_wanted_and_a_move_is_noticed_at_the_next_poll(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    assert not follower.round().fatal
    assert (case.wanted.generation, case.versions) == (1, {"v1": "1"})

    case.world.versions[STAGE] = "2"
    case.now += 1.9
    follower.round()
    assert case.versions == {"v1": "1"}
    case.now += 0.2
    follower.round()
    assert (case.wanted.generation, case.versions) == (2, {"v1": "2"})
    case.now += 2
    follower.round()
    assert case.wanted.generation == 2
    assert case.world.fetched == ["1", "2"]


def test_whoever_has_moved_a_reference_may_ask_for_a_look_at_once(case: Case) -> None:
    case.spec(STAGE, "models:/tiny/3")
    case.world.versions |= {STAGE: "1", "models:/tiny/3": "3"}
    follower = case.follower()
    follower.round()
    assert not follower.has_work()

    case.world.versions[STAGE] = "2"
    (case.state_dir / LOOK).touch()

    assert follower.has_work()
    follower.round()
    assert case.versions == {"v1": "2", "v2": "3"}
    assert case.world.resolved == [STAGE, "models:/tiny/3", STAGE]
    assert not follower.has_work()


def test_a_look_that_is_asked_for_while_another_is_under_way_comes_after_it(case: Case) -> None:
    looks, wish = Later(), Wish(STAGE)
    pursuit = case.follower(looks=looks).pursuit
    pursuit.tracked = {wish: Tracked()}
    case.world.versions[STAGE] = "1"
    pursuit.advance()
    looks.go_on()

    case.world.versions[STAGE] = "2"
    pursuit.look_now()
    pursuit.advance()  # takes in what was asked before the move
    pursuit.advance()
    looks.go_on()
    pursuit.advance()

    version = pursuit.tracked[wish].version
    assert version is not None
    assert version.version == "2"


def test_a_pinned_version_is_looked_up_once(case: Case) -> None:
    case.spec("models:/tiny/3")
    case.world.versions["models:/tiny/3"] = "3"
    follower = case.follower()
    for _ in range(5):
        follower.round()
        case.now += 100
    assert case.world.resolved == ["models:/tiny/3"]


def test_without_following_a_stage_is_looked_up_once(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower(follow=False)
    for _ in range(5):
        follower.round()
        case.now += 100
    assert case.world.resolved == [STAGE]


def test_an_outage_is_told_and_the_version_stays_while_the_polls_become_rare(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    follower.round()
    case.world.versions[STAGE] = RegistryUnavailable("MLflow is down")
    polls = []
    for _ in range(1200):
        case.now += 0.1
        before = len(case.world.resolved)
        state = follower.round()
        if len(case.world.resolved) > before:
            polls.append(case.now)
    assert (state.error, state.fatal) == ("MLflow is down", False)
    pauses = [round(later - earlier) for earlier, later in itertools.pairwise(polls)]
    assert pauses[:4] == [4, 8, 16, 30]
    assert (case.wanted.generation, case.versions) == (1, {"v1": "1"})

    case.world.versions[STAGE] = "2"
    case.now += 30
    assert follower.round().error == ""
    assert case.versions == {"v1": "2"}


@pytest.mark.parametrize("error", [NotFound("no such model"), RegistryUnavailable("MLflow is down")])
def test_at_a_first_start_nothing_to_serve_is_fatal(case: Case, error: OnnxserveError) -> None:
    case.spec(STAGE, "models:/tiny/3")
    case.world.versions = {STAGE: error, "models:/tiny/3": "3"}
    state = case.follower().round()
    assert state.fatal
    assert error.message in state.error
    assert read_state(case.state_dir / AGENT, AgentState) == state
    assert case.wanted.generation == 0


def test_after_a_restart_what_was_served_is_served_on_without_the_registry(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    case.follower().round()
    case.world.versions[STAGE] = RegistryUnavailable("MLflow is down")
    state = case.follower().round()
    assert (state.fatal, state.error) == (False, "MLflow is down")
    assert (case.wanted.generation, case.versions) == (1, {"v1": "1"})


def test_after_a_restart_with_another_model_the_old_one_does_not_count(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    case.follower().round()
    case.spec("models:/other/Production")
    case.world.versions["models:/other/Production"] = NotFound("no model other")
    assert case.follower().round().fatal


def test_a_spec_that_changes_is_read_again(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions = {STAGE: "1", "models:/tiny/3": "3"}
    follower = case.follower()
    follower.round()
    case.spec(STAGE, "models:/tiny/3")
    follower.round()
    assert (case.wanted.generation, case.versions) == (2, {"v1": "1", "v2": "3"})

    (case.state_dir / SPEC).write_text("name: [")
    assert "not valid YAML" in follower.round().error
    assert case.wanted.generation == 2

    case.spec("models:/tiny/3")
    assert follower.round().error == ""
    assert case.versions == {"v1": "3"}


def test_a_variant_that_is_given_a_model_that_cannot_be_had_keeps_the_one_it_has(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions = {STAGE: "1", "models:/tiny/9": NotFound("no version 9")}
    follower = case.follower()
    follower.round()
    case.spec("models:/tiny/9")
    assert follower.round().error == "models:/tiny/9: no version 9"
    assert case.versions == {"v1": "1"}
    case.world.versions["models:/tiny/9"] = "9"
    case.now += 2
    assert follower.round().error == ""
    assert case.versions == {"v1": "9"}


def test_a_version_without_onnx_is_refused_once_and_the_old_one_stays(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    case.world.unusable["2"] = InvalidArtifact("no onnx here")
    follower = case.follower()
    follower.round()
    case.world.versions[STAGE] = "2"
    for _ in range(3):
        case.now += 2
        assert follower.round().error == f"{STAGE}: version 2 cannot be served: no onnx here; version 1 is served on"
    assert case.world.fetched == ["1", "2"]
    assert case.world.failures == [("models:/tiny/2", "no onnx here")]
    assert case.versions == {"v1": "1"}


def test_a_stage_that_moves_to_a_pyfunc_needs_the_specs_consent(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    case.world.pyfuncs = {"2"}
    follower = case.follower()
    follower.round()
    case.world.versions[STAGE] = "2"
    case.now += 2
    assert "-C variants.NAME.allow_pyfunc=true" in follower.round().error
    assert case.versions == {"v1": "1"}

    (case.state_dir / SPEC).write_text(f"name: e\nvariants: {{v1: {{model: '{STAGE}', allow_pyfunc: true}}}}")
    assert follower.round().error == ""
    assert case.versions == {"v1": "2"}


def test_a_pyfunc_of_a_fixed_version_is_served(case: Case) -> None:
    case.spec("models:/tiny/2")
    case.world.versions["models:/tiny/2"] = "2"
    case.world.pyfuncs = {"2"}
    state = case.follower().round()
    assert (state.error, state.fatal) == ("", False)
    assert case.versions == {"v1": "2"}


def test_a_version_that_workers_cannot_load_gives_way_to_the_one_before(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    follower.round()
    case.worker_says(v1=LoadedVariant(version="1"))
    case.world.versions[STAGE] = "2"
    case.now += 2
    follower.round()
    assert case.versions == {"v1": "2"}

    case.worker_says(v1=LoadedVariant(version="1", error="bad graph"))
    for _ in range(3):
        case.now += 2
        state = follower.round()
        assert (state.error, state.fatal) == (
            f"{STAGE}: version 2 cannot be loaded: bad graph; version 1 is served on",
            False,
        )
    assert (case.wanted.generation, case.versions) == (3, {"v1": "1"})
    assert case.world.failures == [("models:/tiny/2", "bad graph")]

    case.world.versions[STAGE] = "3"
    case.now += 2
    assert follower.round().error == ""
    assert case.versions == {"v1": "3"}


def test_a_first_version_that_does_not_load_is_fatal(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    follower.round()
    case.worker_says(v1=LoadedVariant(error="bad graph"))
    state = follower.round()
    assert state.fatal
    assert state.error == f"{STAGE}: version 1 cannot be loaded: bad graph"


def test_a_second_variant_that_does_not_load_leaves_the_first_one_serving(case: Case) -> None:
    case.spec(STAGE, "models:/tiny/3")
    case.world.versions = {STAGE: "1", "models:/tiny/3": "3"}
    follower = case.follower()
    follower.round()
    case.worker_says(v1=LoadedVariant(version="1"), v2=LoadedVariant(error="bad graph"))
    state = follower.round()
    assert not state.fatal
    assert state.error == "models:/tiny/3: version 3 cannot be loaded: bad graph"


def test_how_shipping_goes_stands_beside_how_following_goes(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    for state in (ShippingState(error="the log is down"), ShippingState(torn_segments=1)):
        follower.shipping = lambda state=state: state  # type: ignore[misc]
        follower.round()
        written = read_state(case.state_dir / AGENT, AgentState)
        assert written is not None
        assert (written.shipping, written.error) == (state, "")


def require_gate(case: Case, *variants: str) -> None:
    case.spec(*variants)
    text = (case.state_dir / SPEC).read_text()
    (case.state_dir / SPEC).write_text(text + "\nrequire: gate=passed\n")


def test_a_version_without_its_gate_is_not_served_until_the_tag_appears(case: Case) -> None:
    require_gate(case, STAGE)
    case.world.versions[STAGE] = "1"
    case.world.gates["1"] = "forced"
    follower = case.follower()
    follower.round()
    for gate in ("", "failed"):
        case.world.versions[STAGE] = "2"
        case.world.gates |= {"2": gate} if gate else {}
        case.now += 2
        state = follower.round()
        assert (case.versions, case.world.fetched) == ({"v1": "1"}, ["1"])
        assert f"{STAGE}: version 2 is not served: " in state.error
        assert state.error.endswith("and this endpoint requires gate=passed; version 1 is served on")
        assert [(one.variant, one.version, one.cause) for one in state.refused] == [("v1", "2", "gate")]
        assert case.world.failures[-1] == ("models:/tiny/2", state.refused[0].reason)
    case.world.gates["2"] = "passed"
    case.now += 2
    state = follower.round()
    assert (case.versions, state.error, state.refused) == ({"v1": "2"}, "", ())
    assert case.world.failures[-1] == ("models:/tiny/2", "")


def test_a_pinned_version_without_its_gate_is_refused_at_the_start_in_one_line(case: Case) -> None:
    require_gate(case, "models:/tiny/7")
    case.world.versions["models:/tiny/7"] = "7"
    state = case.follower().round()
    assert state.fatal
    assert state.error == (
        "models:/tiny/7: version 7 is not served: it has not been through the gate, "
        "and this endpoint requires gate=passed"
    )


def test_what_is_served_when_the_gate_comes_to_be_required_is_served_on_also_across_a_restart(case: Case) -> None:
    require_gate(case, STAGE)
    case.world.versions[STAGE] = "1"
    case.world.gates["1"] = "passed"
    case.follower().round()
    case.world.gates.clear()
    case.world.versions[STAGE] = "1"
    state = case.follower().round()
    assert (state.fatal, state.error, case.versions) == (False, "", {"v1": "1"})


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_demand_that_comes_later_takes_nothing_away(case: Case, is_restarted: bool) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    follower.round()
    require_gate(case, STAGE)
    follower = case.follower() if is_restarted else follower
    state = follower.round()
    assert (state.fatal, state.error, case.versions) == (False, "", {"v1": "1"})
    case.world.versions[STAGE] = "2"
    case.now += 2
    assert "version 2 is not served" in follower.round().error
    assert case.versions == {"v1": "1"}


def test_followed_references_of_one_model_are_asked_for_together_and_pinned_ones_once(case: Case) -> None:
    alias, tag, pinned = "models:/tiny@live", "models:/tiny/tag:a=b", "models:/tiny/3"
    case.spec(STAGE, alias, tag, pinned)
    case.world.versions = {STAGE: "1", alias: "2", tag: "2", pinned: "3"}
    follower = case.follower()
    follower.round()
    case.world.calls = 0
    case.world.resolved.clear()
    for _ in range(100):
        case.now += 0.1
        follower.round()
    assert case.world.calls == 5
    assert sorted(set(case.world.resolved)) == sorted([STAGE, alias, tag])


def test_files_that_cannot_be_had_are_tried_again_and_told_and_another_version_need_not_wait(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    follower.round()
    case.world.versions[STAGE] = "2"
    case.world.unusable["2"] = NotFound("the files are gone")
    for _ in range(100):
        case.now += 1
        state = follower.round()
    assert state.error == f"{STAGE}: version 2 cannot be fetched: the files are gone; version 1 is served on"
    assert state.refused[0].cause == "fetch"
    assert case.world.failures == [("models:/tiny/2", "the files are gone")]
    assert 4 <= case.world.fetched.count("2") <= 8
    case.world.versions[STAGE] = "3"
    case.now += 2.1
    assert follower.round().error == ""
    assert case.versions == {"v1": "3"}

    case.world.versions[STAGE] = "2"
    case.world.unusable.clear()
    case.now += 2.1
    assert follower.round().error == ""
    assert case.versions == {"v1": "2"}
    assert case.world.failures[1:] == [("models:/tiny/2", "")]


def test_a_failure_is_told_to_the_registry_when_it_is_back(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    case.world.unusable["2"] = InvalidArtifact("no onnx here")
    follower = case.follower()
    follower.round()
    case.world.versions[STAGE], case.world.is_deaf = "2", True
    case.now += 2
    follower.round()
    case.world.is_deaf = False
    case.now += 5
    follower.round()
    assert case.world.failures == [("models:/tiny/2", "no onnx here")]


def test_while_the_registry_hangs_the_weights_still_change_and_nothing_is_asked_twice(case: Case) -> None:
    looks = Later()
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    case.follower().round()
    follower = case.follower(looks=looks)
    threading.Timer(0.1, looks.go_on).start()
    follower.round()
    for _ in range(10):
        case.now += 100
        follower.round()
    assert len(looks.waiting) == 1
    (case.state_dir / SPEC).write_text(f"name: e\nvariants: {{v1: {{model: '{STAGE}', weight: 7}}}}")
    follower.round()
    assert case.wanted.endpoints["e"].variants["v1"].weight == 7


def test_a_fetch_that_hangs_is_left_alone_when_the_reference_moves_back(case: Case) -> None:
    fetches = Later()
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower(fetches=fetches)
    threading.Timer(0.1, fetches.go_on).start()
    follower.round()
    assert case.versions == {"v1": "1"}
    for version in ("2", "1"):
        case.world.versions[STAGE] = version
        case.now += 2
        assert follower.round().error == ""
    fetches.go_on()
    follower.round()
    assert case.versions == {"v1": "1"}
    assert case.wanted.generation == 1


def test_an_agent_that_is_killed_in_the_middle_of_a_swap_knows_what_to_go_back_to(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    follower.round()
    case.world.versions[STAGE] = "2"
    case.now += 2
    follower.round()
    case.worker_says(v1=LoadedVariant(version="1", error="bad graph"))
    state = case.follower().round()
    assert state.error == f"{STAGE}: version 2 cannot be loaded: bad graph; version 1 is served on"
    assert case.versions == {"v1": "1"}


def test_a_version_that_workers_die_of_is_taken_back(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    follower.round()
    case.world.versions[STAGE] = "2"
    case.now += 2
    follower.round()
    for death in (1, 2):
        dead = subprocess.Popen(["true"])
        dead.wait()
        write_state(
            case.state_dir / LOADING / f"{dead.pid}.json", LoadingState(pid=dead.pid, folder=case.world.root / "2")
        )
        state = follower.round()
        assert case.versions == {"v1": str(3 - death)}
    assert "2 workers have died while they loaded it" in state.error


def test_why_an_endpoint_has_no_version_is_told_to_its_callers_without_addresses(case: Case) -> None:
    documents = [f"name: {name}\nvariants: {{v: {{model: 'models:/{name}/1'}}}}\n" for name in ("good", "bad")]
    (case.state_dir / SPEC).write_text("---\n".join(documents))
    case.world.versions = {
        "models:/good/1": "1",
        "models:/bad/1": NotFound("there is no registered model bad; registered are good, in MLflow at http://db:5000"),
    }
    case.follower().round()
    assert case.wanted.endpoints["bad"].errors == {
        "v": "models:/bad/1: there is no registered model bad; registered are good"
    }


def test_whoever_has_an_unknown_model_loaded_is_not_told_where_the_registry_is(case: Case) -> None:
    (case.state_dir / SPEC).write_text(
        f"name: e\nvariants: {{v1: {{model: '{STAGE}'}}}}\nserver: {{model_control_mode: explicit}}"
    )
    case.world.versions = {
        STAGE: "1",
        "models:/x/1": NotFound("there is no registered model x, in MLflow at http://db"),
    }
    follower = case.follower()
    follower.round()
    added = new_endpoint("n", "models:/x/1")
    command = Command(action="load", endpoint="n", added=added, created_at=time.monotonic())
    write_state(case.state_dir / COMMANDS / "1.json", command)
    for _ in range(2):
        follower.round()
    answer = read_state(case.state_dir / ANSWERS / "1.json", CommandAnswer)
    assert answer == CommandAnswer(error="models:/x/1: there is no registered model x", kind="NotFound")
    assert list(case.wanted.endpoints) == ["e"]


def test_a_clock_that_is_set_does_not_matter(case: Case) -> None:
    case.spec(STAGE)
    case.world.versions[STAGE] = "1"
    follower = case.follower()
    follower.round()
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


def test_an_error_that_was_told_before_a_restart_is_taken_back_when_it_is_no_more(case: Case) -> None:
    require_gate(case, STAGE)
    case.world.versions[STAGE] = "1"
    case.world.gates["1"] = "passed"
    follower = case.follower()
    follower.round()
    case.world.versions[STAGE] = "2"
    case.now += 2
    follower.round()
    follower.round()
    case.world.gates["2"] = "passed"
    again = case.follower()
    again.round()
    again.round()
    assert case.versions == {"v1": "2"}
    assert case.world.failures[-1] == ("models:/tiny/2", "")
