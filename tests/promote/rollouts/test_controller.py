"""The controller on a real store completes rollouts,
but only while it holds the lease.
"""

import threading
from dataclasses import replace
from typing import cast

import pytest

from mlflow_deploy_plugin.core.errors import DeploymentFailed, RegistryUnavailable
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store, utc_now
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.promote.rollouts import controller as controllers
from mlflow_deploy_plugin.promote.rollouts.commands import command_rollout
from mlflow_deploy_plugin.promote.rollouts.controller import (
    RolloutActions,
    RolloutController,
    run_rollouts,
)
from mlflow_deploy_plugin.promote.rollouts.evidence import StepEvidence, add_counters, begin_step
from mlflow_deploy_plugin.promote.rollouts.leadership import rollouts_lease_name
from mlflow_deploy_plugin.promote.rollouts.snapshot import EndpointSnapshot
from mlflow_deploy_plugin.promote.rollouts.state_machine import (
    Progress,
    progress_of,
    rollout_summary,
    started_event,
    step_weights,
    with_progress,
)
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from tests.support.refusals import mentions
from tests.support.rollouts import PLAN, counted, numbers, variants
from tests.support.waiting import wait_until

PLACE = "here"
LEASE = rollouts_lease_name(PLACE)
QUICK = replace(PLAN, every=0.05, min_requests=1)
SECONDS = 30.0


class World:
    """A stand-in for `RolloutActions` with simulated endpoints, whose changes appear in
    the next snapshot.
    """

    actor = "controller@here"

    def __init__(self, errors=0, place=PLACE):
        self.place = place
        self.said = []
        self.say = self.said.append
        self.done = []
        self.share = {}
        self.served = {}
        self.looks = 0
        self.errors = errors
        self.before_action = lambda action: None

    def reaches(self, endpoint, place):
        return self.place == place == PLACE

    def take_snapshot(self, endpoint):
        self.looks += 1
        share = self.share.get(endpoint)
        versions = dict.fromkeys(variants(share), "7") | {
            "champion": self.served.get(endpoint, "6")
        }
        request_count = 100.0 * self.looks
        now = numbers(
            counted(request_count),
            counted(request_count, self.errors * request_count),
            counted(0, same=request_count),
        )
        return EndpointSnapshot(variants(share), "running", "", versions, counters=now)

    def do(self, action, plan, progress):
        self.before_action(action)
        self.done.append(action)
        match action:
            case "prepare":
                self.share[plan.endpoint] = 0
            case "set_traffic":
                self.share[plan.endpoint] = step_weights(plan, progress.step)[plan.candidate]
            case "promote":
                self.served[plan.endpoint] = plan.version
            case "finish":
                self.share[plan.endpoint] = None
            case "roll_back":
                self.roll_back(plan, progress.reason)

    def roll_back(self, plan, why):
        self.done.append("rolled back")
        self.share[plan.endpoint] = None


def controller(store, world, holder="one", **more):
    return RolloutController(store, cast(RolloutActions, world), holder, world.place, **more)


def begin(store, plan=QUICK):
    return store.add_rollout(
        plan.endpoint, plan.to_json(), "starting", started_event(plan, utc_now())
    )


def end_of(store, begun):
    return next(rollout for rollout in store.rollouts(begun.endpoint) if rollout.id == begun.id)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(controllers, "_MIN_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(controllers, "_MAX_PAUSE_SECONDS", 0.05)


def wait_for_end(store, begun):
    wait_until(lambda: not end_of(store, begun).is_live, SECONDS, "it has ended")


def advance(store, world, rollout):
    """Do the next action of a rollout under the lease."""
    lease = store.acquire_lease(LEASE, "one", 60)
    assert lease is not None
    controller(store, world, "one").advance(rollout, LeaseKeeper(store, lease))


@pytest.fixture
def run():
    """Run a controller during the test. The returned event ends it, and so does the end
    of the test.
    """
    running = []

    def start(controller):
        ended = threading.Event()
        thread = threading.Thread(target=controller.run, args=(ended,))
        thread.start()
        running.append((thread, ended))
        return ended

    yield start
    for thread, ended in running:
        ended.set()
        thread.join()


def test_rollout_is_promoted_with_audited_steps(store, run):
    world = World()
    begun = begin(store)

    run(controller(store, world, "one"))
    wait_for_end(store, begun)

    assert end_of(store, begun).state == "promoted"
    assert world.done == ["prepare", "set_traffic", "set_traffic", "promote", "finish"]
    events = [*store.events("flights")]
    assert [(event.action, event.before, event.after) for event in events] == [
        ("rollout.start", "version 6", "version 7 by 10 %, 100 %"),
        ("rollout.step", "0 %", "10 %"),
        ("rollout.step", "10 %", "100 %"),
        ("rollout.end", "version 6", "version 7"),
    ]
    assert {event.actor for event in events[1:]} == {"controller@here"}
    assert events[-1].detail["candidate"]["errors"] == 0


def test_second_controller_continues_after_a_dead_one(store, tmp_path, run):
    lease = store.acquire_lease(LEASE, "dead", 1)
    assert lease is not None
    begun = begin(store)
    world = World()
    seen = world.take_snapshot("flights").counters
    ledger = begin_step(QUICK, 1, add_counters(QUICK, 1, StepEvidence(), seen))
    assert store.update_rollout(
        with_progress(begun, Progress("stepping", 1, 0.0, ledger), utc_now()), lease
    )
    world.share["flights"] = 10  # The controller was killed before it set the traffic.

    run(controller(store, world, "next", lease_seconds=1))
    wait_for_end(store, begun)

    assert end_of(store, begun).state == "promoted"
    assert world.done == ["set_traffic", "promote", "finish"]


def test_step_that_waits_for_requests_is_logged_once(store, run):
    world = World()
    begun = begin(store, replace(QUICK, steps=(100,), min_requests=300))
    run(controller(store, world))
    wait_for_end(store, begun)

    waits = [line for line in world.said if "has answered" in line]
    assert len(waits) == 1
    assert waits[0].endswith("waiting for requests: the candidate has answered 0 of 300")


def test_only_one_controller_works(tmp_path, run):
    url = f"sqlite:///{tmp_path}/store.db"
    stores = (open_store(url), open_store(url))
    worlds = (World(), World())
    run(controller(stores[0], worlds[0], "one"))
    wait_until(lambda: stores[0].lease(LEASE), SECONDS, "the first has the lease")

    second = run(controller(stores[1], worlds[1], "two", servers="onnxserve:/kubernetes/ml"))
    wait_until(lambda: worlds[1].said, SECONDS, "the second has looked")
    begun = begin(stores[0])
    wait_for_end(stores[0], begun)
    second.set()

    assert worlds[1].looks == 0
    assert worlds[1].said == ["waiting: one runs the rollouts of onnxserve:/kubernetes/ml"]
    for store in stores:
        store.close()


def test_controller_that_reaches_the_server_rolls_back(tmp_path, run):
    url = f"sqlite:///{tmp_path}/store.db"
    stores = (open_store(url), open_store(url))
    worlds = (World(place="elsewhere"), World(errors=0.5))
    run(controller(stores[0], worlds[0], "pod"))
    wait_until(lambda: stores[0].lease(rollouts_lease_name("elsewhere")), SECONDS, "it works")

    begun = begin(stores[0])
    beside = run(controller(stores[1], worlds[1], "beside"))
    wait_for_end(stores[0], begun)
    beside.set()

    assert worlds[0].looks == 0
    assert end_of(stores[0], begun).state == "rolled_back"
    assert worlds[1].done[-1] == "rolled back"
    end = next(stores[0].events("flights", newest_first=True))
    assert end.why.startswith("error_rate>1%: 50.00% of")


def test_writes_after_a_lost_lease_are_ignored(store, tmp_path):
    lease = store.acquire_lease(LEASE, "slow", 0.1)
    assert lease is not None
    other = open_store(f"sqlite:///{tmp_path}/store.db")
    wait_until(lambda: other.acquire_lease(LEASE, "quick", 60), SECONDS, "the other has it")
    world = World()
    begun = begin(store)

    controller(store, world, "slow").advance(begun, LeaseKeeper(store, lease))

    assert world.done == []
    assert end_of(store, begun) == begun
    other.close()


def abort_by_ada(store, begun):
    def abort(_action):
        current = end_of(store, begun)
        ended = replace(progress_of(current), state="rolled_back", reason="aborted by ada@laptop")
        assert store.update_rollout(with_progress(current, ended, utc_now()), None)

    return abort


def test_abort_during_preparation_removes_the_candidate(store):
    world = World()
    begun = begin(store)
    world.before_action = abort_by_ada(store, begun)
    advance(store, world, begun)
    assert world.done == ["prepare", "rolled back"]
    assert end_of(store, begun).reason == "aborted by ada@laptop"


def test_abort_during_promotion_is_rolled_back(store):
    world = World()
    world.share["flights"] = 100
    begun = begin(store)
    promoting = with_progress(begun, Progress("promoting", 1), utc_now())
    assert store.update_rollout(promoting, None)
    world.before_action = abort_by_ada(store, begun)
    advance(store, world, end_of(store, begun))
    assert world.done == ["promote", "rolled back"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RegistryUnavailable("MLflow is away"),
            "starting; loading version 7; retrying: MLflow is away",
        ),
        (
            DeploymentFailed("no such graph"),
            "rolling back; version 7 cannot be served: no such graph",
        ),
    ],
)
def test_failed_action_is_recorded(store, error, said):
    world = World()
    begun = begin(store)

    def fail(_action):
        raise error

    world.before_action = fail
    advance(store, world, begun)

    assert mentions(rollout_summary(end_of(store, begun)), "flights", "6 → 7", said)


def test_crash_in_one_rollout_stops_no_other(store, run, caplog):
    world = World()
    begin(store, replace(QUICK, endpoint="other"))
    begin(store)
    failures = iter([RuntimeError("a bug")])

    def fail(_action):
        if (error := next(failures, None)) is not None:
            raise error

    world.before_action = fail
    run(controller(store, world, "one"))
    wait_until(lambda: len(store.rollouts(live=True)) == 1, SECONDS, "the other has ended")
    wait_until(lambda: "the attempt failed" in caplog.text, SECONDS, "the failure is logged")

    assert "RuntimeError: a bug" in caplog.text
    assert {rollout.state for rollout in store.rollouts()} == {"promoted", "starting"}


def test_unrenewable_lease_is_given_up_in_time(tmp_path):
    passed = [0.0]
    store = open_store(f"sqlite:///{tmp_path}/store.db", monotonic=lambda: passed[0])
    lease = store.acquire_lease(LEASE, "one", 0.4)
    assert lease is not None

    with LeaseKeeper(store, lease, lambda: passed[0]) as keeper:
        passed[0] = 0.3
        wait_until(lambda: keeper.lease.until > lease.until, SECONDS, "it was renewed")
        (tmp_path / "store.db").unlink()  # The tables are deleted too.
        store.close()
        passed[0] = 0.6
        assert keeper.is_held
        passed[0] = 0.8
        assert not keeper.is_held


def test_unreadable_plan_can_be_aborted(store, tmp_path, run):
    unreadable = store.add_rollout("other", {"sampling": "often"}, "stepping")
    begun = begin(store)

    run(controller(store, World(), "one"))
    wait_for_end(store, begun)
    deployments = Deployments(store, Settings(home=tmp_path), lambda line: None)
    message = command_rollout(deployments, "other", "abort", actor="ada@laptop")

    assert end_of(store, begun).state == "promoted"
    assert end_of(store, unreadable).state == "abandoned"
    assert end_of(store, unreadable).ended_at is not None
    assert message.startswith(
        "other: rollout 1: abandoned; aborted by ada@laptop; the earlier version was not restored: "
    )
    assert next(store.events("other", newest_first=True)).action == "rollout.end"


def test_lease_of_unreachable_place_is_released(store, tmp_path, monkeypatch):
    monkeypatch.setattr(controllers, "_PLACES_SECONDS", 0.05)
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/flight-delay/1"))
    here = Deployments(store, Settings(home=tmp_path), print)
    folder = here.settings.deployments_path / "flights"
    folder.mkdir(parents=True)
    lease = rollouts_lease_name(here.place("flights"))
    actions = RolloutActions(here, "controller@here", print)
    ended = threading.Event()

    def controller_at(place, servers):
        return RolloutController(store, actions, "one", place, servers)

    def is_held():
        view = store.lease(lease)
        return view is not None and view.is_current

    running = threading.Thread(target=run_rollouts, args=(here, controller_at, ended))
    running.start()
    try:
        wait_until(is_held, SECONDS, "the place is taken")
        folder.rmdir()
        wait_until(lambda: not is_held(), 10, "its lease is given back, which lasts 15 s")
        folder.mkdir()
        wait_until(is_held, SECONDS, "it is taken again")
    finally:
        ended.set()
        running.join()
    assert not is_held()


def test_controller_error_is_raised(store, tmp_path):
    for name, target in (("first", "onnxserve"), ("second", "onnxserve:/docker")):
        store.add_endpoint(target, new_endpoint(name, "models:/flight-delay/1"))
    ended = threading.Event()

    class OfOnePlace(Deployments):
        def place(self, endpoint):
            if endpoint == "second":
                wait_until(ended.is_set, SECONDS, "the controller of the place has failed")
            return "here"

    class Broken(RolloutController):
        def run(self, ended):
            raise ArithmeticError("broken")

    here = OfOnePlace(store, Settings(home=tmp_path), print)
    actions = RolloutActions(here, "controller@here", print)
    broken = Broken(store, actions, "one", "here")
    sound = RolloutController(store, actions, "two", "here")
    controllers = iter([broken, sound])
    with pytest.raises(ArithmeticError):
        run_rollouts(here, lambda place, servers: next(controllers), ended)
