"""`VersionResolver`: polls of the registry and fetches, which never block."""

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact, NotFound
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel
from mlflow_deploy_plugin.core.spec.document import load_specs
from mlflow_deploy_plugin.serve.agent.followed import FollowedModel, ModelRef
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy, PyfuncPolicy
from tests.support.fake_registry import STAGE, AtOnce, Later

SPEC = """
name: e
variants:
  pinned: {model: "models:/x/3"}
  stage: {model: "models:/x/Production"}
  allowed: {model: "models:/y@champion", allow_pyfunc: true}
  half: {model: "models:/z@champion", allow_pyfunc: true}
---
name: f
variants:
  half: {model: "models:/z@champion"}
"""


@pytest.mark.parametrize(("failures", "seconds"), [(0, 2), (1, 4), (3, 16), (4, 30), (99, 30)])
def test_the_registry_is_polled_less_often_the_longer_it_is_down(failures, seconds):
    policy = PollPolicy(2.0, True, lambda: 0.0, uniform=lambda low, high: (low + high) / 2)
    assert policy.due_at(failures) == seconds


def test_a_poll_seldom_asked_for_is_not_made_more_often_by_failures():
    assert PollPolicy(60.0, True, lambda: 0.0, uniform=lambda low, high: 1.0).due_at(5) == 60


def moved_during_a_poll(case):
    """Return a resolver whose poll has found version 1, and its executor. The stage now
    has version 2.
    """
    polls = Later()
    resolver = case.follower(looks=polls).resolver
    resolver.models = {ModelRef(STAGE): FollowedModel()}
    case.world.versions[STAGE] = "1"
    resolver.advance()
    polls.go_on()
    case.world.versions[STAGE] = "2"
    return polls, resolver


def test_a_poll_that_is_asked_for_while_another_is_under_way_comes_after_it(case):
    polls, resolver = moved_during_a_poll(case)
    resolver.poll_now()
    resolver.advance()  # This call processes the poll from before the move.
    resolver.advance()
    polls.go_on()
    resolver.advance()

    version = resolver.models[ModelRef(STAGE)].version
    assert version is not None
    assert version.version == "2"


def test_a_version_is_fetched_once_for_all_references_to_it(case):
    fetches = Later()
    resolver = case.follower(fetches=fetches).resolver
    pinned = ModelRef("models:/tiny/1")
    resolver.models = {ModelRef(STAGE): FollowedModel(), pinned: FollowedModel()}
    case.world.versions |= {STAGE: "1", pinned.uri: "1"}
    resolver.advance()
    assert len(resolver.pending()) == 1
    fetches.go_on()
    resolver.advance()
    assert case.world.fetched == ["1"]
    assert all(model.is_settled and model.version for model in resolver.models.values())


def test_a_version_is_fetched_for_each_key_that_must_have_signed_it(case):
    resolver = case.follower().resolver
    uri = "models:/tiny/1"
    refs = [ModelRef(uri), ModelRef(uri, trusted_file="/a.pub"), ModelRef(uri, "", "/b.pub")]
    resolver.models = {ref: FollowedModel() for ref in refs}
    case.world.versions[uri] = "1"
    while resolver.pending() or not all(model.is_settled for model in resolver.models.values()):
        resolver.advance()
    assert case.world.trusted == ["", "/a.pub", "/b.pub"]


def test_a_fetch_that_ends_during_a_poll_is_used_after_the_poll(case):
    polls = Later()
    fetches = Later()
    resolver = case.follower(looks=polls, fetches=fetches).resolver
    resolver.models = {ModelRef(STAGE): FollowedModel()}
    case.world.versions[STAGE] = "1"
    resolver.advance()
    polls.go_on()
    resolver.advance()  # The fetch starts.
    resolver.poll_now()
    resolver.advance()  # Another poll starts.
    fetches.go_on()
    resolver.advance()
    # Otherwise the agent would not wait.
    assert [future.done() for future in resolver.pending()] == [False]
    polls.go_on()
    resolver.advance()

    assert case.world.fetched == ["1"]
    assert resolver.models[ModelRef(STAGE)].version is not None


def test_fetches_that_take_long_leave_their_turns_to_others(case):
    fetches = Later()
    resolver = case.follower(fetches=fetches).resolver
    refs = [ModelRef(f"models:/tiny/{version}") for version in "1234"]
    resolver.models = {ref: FollowedModel() for ref in refs}
    case.world.versions = {ref.uri: ref.uri[-1] for ref in refs}
    resolver.advance()
    long = fetches.waiting[:]
    assert len(long) == 2

    case.now += 29
    resolver.advance()
    assert fetches.waiting == long

    case.now += 2
    resolver.advance()
    fetches.waiting = fetches.waiting[2:]
    fetches.go_on()
    resolver.advance()
    assert [bool(resolver.models[ref].version) for ref in refs] == [False, False, True, True]

    fetches.waiting = long
    fetches.go_on()
    resolver.advance()
    assert all(model.is_settled and model.version for model in resolver.models.values())


def test_a_stalled_download_is_an_error_until_more_bytes_arrive(case):
    fetches = Later()
    resolver = case.follower(fetches=fetches).resolver
    model = FollowedModel()
    resolver.models = {ModelRef(STAGE): model}
    case.world.versions[STAGE] = "1"

    def after(seconds, received):
        case.now = case.now + seconds
        case.world.received = received
        resolver.advance()
        return model.message(STAGE)

    assert after(0, 0) == after(500, 1000) == after(590, 1000) == ""
    reason = (
        f"{STAGE}: version 1 cannot be fetched: the download stalls: 1,000 bytes of its files have "
        "arrived, and none in"
    )
    assert after(20, 1000) == after(20, 1000) == f"{reason} ten minutes"
    assert len(fetches.waiting) == 1
    assert after(20, 2000) == ""
    assert reason.replace("1,000", "2,000") in after(600, 2000)
    assert model.is_settled
    fetches.go_on()
    assert after(0, 2000) == ""
    assert model.version is not None


class EndsBetweenTwoLooks(AtOnce):
    """An executor whose futures are done from the second check on."""

    def submit(
        self, function: Callable[..., Any], /, *arguments: Any, **named: Any
    ) -> "Future[Any]":
        future = super().submit(function, *arguments, **named)
        looks = itertools.count()
        future.done = lambda: next(looks) > 0  # type: ignore[method-assign]
        return future


def test_a_fetch_that_ends_while_results_are_taken_is_not_lost(case):
    case.world.versions[STAGE] = "1"
    case.spec(STAGE)
    state = case.follower(fetches=EndsBetweenTwoLooks()).round()
    assert (state.fatal, state.error, case.versions) == (False, "", {"v1": "1"})
    assert case.world.fetched == ["1"]


def test_a_rejected_version_is_tried_again_when_somebody_asks(case):
    resolver = case.follower().resolver
    ref = ModelRef(STAGE)
    resolver.models = {ref: FollowedModel()}
    case.world.versions[STAGE] = "1"
    case.world.unusable["1"] = InvalidArtifact("no onnx here")
    resolver.advance()
    rejection = resolver.models[ref].rejection
    assert rejection is not None
    assert rejection.cause == "artifact"
    assert rejection.reason == "no onnx here"

    del case.world.unusable["1"]
    resolver.models[ref].retry_now()
    resolver.advance()
    assert resolver.models[ref].rejection is None


@pytest.mark.parametrize(
    ("uri", "is_followed"), [("models:/x/3", False), ("models:/y@champion", True)]
)
def test_a_fixed_version_and_an_allowed_reference_may_run_code(uri, is_followed):
    PyfuncPolicy(load_specs(SPEC)).check(uri, is_followed)


@pytest.mark.parametrize(
    ("uri", "is_followed", "said"),
    [
        ("models:/x/Production", True, "set -C variants.stage.allow_pyfunc=true"),
        # A variant does not allow it.
        ("models:/z@champion", True, "set -C variants.half.allow_pyfunc=true"),
        ("models:/loaded-over-http/1", False, "which can be allowed only in the server's spec"),
    ],
)
def test_others_may_not(uri, is_followed, said):
    with pytest.raises(InvalidArtifact, match=said):
        PyfuncPolicy(load_specs(SPEC)).check(uri, is_followed)


def resolved(version):
    return ResolvedModel(STAGE, "tiny", version, f"models:/tiny/{version}", followed=True)


def test_a_version_of_the_change_feed_is_fetched_without_a_poll(case):
    follower = case.serving("1")
    polls = case.world.calls

    follower.resolver.take_feed(frozenset({STAGE}), {STAGE: resolved("2")})
    follower.round()

    assert case.versions == {"v1": "2"}
    assert case.world.calls == polls


def test_a_covered_reference_is_polled_hourly_until_the_feed_is_cut(case):
    follower = case.serving("1")
    follower.feed.covered = frozenset({STAGE})
    follower.resolver.take_feed(follower.feed.covered, {STAGE: resolved("1")})
    follower.round()
    polls = case.world.calls

    case.move("2")
    case.now += 3000
    follower.round()
    assert case.world.calls == polls

    follower.feed.covered = frozenset()
    follower.round()
    case.now += 2
    follower.round()
    assert case.versions == {"v1": "2"}
    assert case.world.calls == polls + 1


def test_the_agent_finds_the_reason_itself_why_a_reference_selects_no_version(case):
    follower = case.serving("1")
    case.world.versions[STAGE] = NotFound("there is no version in Production")

    follower.resolver.take_feed(frozenset({STAGE}), {STAGE: None})

    assert "Production" in follower.round().error
    assert case.versions == {"v1": "1"}


def test_a_version_that_arrives_during_a_poll_leads_to_another_poll(case):
    polls, resolver = moved_during_a_poll(case)
    resolver.take_feed(frozenset({STAGE}), {STAGE: resolved("2")})
    for _ in range(3):
        resolver.advance()
        polls.go_on()

    assert case.world.calls == 2
    version = resolver.models[ModelRef(STAGE)].version
    assert version is not None
    assert version.version == "2"


def test_a_new_reference_to_a_covered_model_is_polled_as_often_as_without_the_feed(case):
    """The feed covers the new reference only after its first event."""
    resolver = case.follower().resolver
    new = "models:/tiny/Staging"
    resolver.models = {ref: FollowedModel() for ref in (ModelRef(STAGE), ModelRef(new))}
    case.world.versions |= {STAGE: "1", new: "1"}
    resolver.covered = frozenset({STAGE})
    resolver.advance()
    resolver.advance()
    assert resolver.models[ModelRef(new)].next_poll - case.now < 60
    assert resolver.models[ModelRef(STAGE)].next_poll - case.now > 600
