"""`VersionResolver`: polls of the registry and fetches, which never block."""

import itertools

import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact, NotFound
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel
from mlflow_deploy_plugin.core.spec.document import load_specs
from mlflow_deploy_plugin.serve.agent.followed import FollowedModel, ModelRef
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy, PyfuncPolicy
from tests.support.fake_registry import STAGE, AtOnce, Later
from tests.support.refusals import mentions

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
def test_polls_back_off_during_an_outage(failures, seconds):
    policy = PollPolicy(2.0, True, lambda: 0.0, uniform=lambda low, high: (low + high) / 2)
    assert policy.due_at(failures) == seconds


def test_failures_never_shorten_a_long_interval():
    assert PollPolicy(60.0, True, lambda: 0.0, uniform=lambda low, high: 1.0).due_at(5) == 60


def resolving(case, versions, **executors):
    """Return a resolver of these URIs, which have these versions in the registry."""
    resolver = case.follower(**executors).resolver
    resolver.models = {ModelRef(uri): FollowedModel() for uri in versions}
    case.world.versions |= versions
    return resolver


def moved_during_a_poll(case):
    """Return a resolver whose poll has found version 1, and its executor. The stage now
    has version 2.
    """
    polls = Later()
    resolver = resolving(case, {STAGE: "1"}, looks=polls)
    resolver.advance()
    polls.go_on()
    case.world.versions[STAGE] = "2"
    return polls, resolver


def test_poll_requested_during_a_poll_follows_it(case):
    polls, resolver = moved_during_a_poll(case)
    resolver.poll_now()
    resolver.advance()  # This call processes the poll from before the move.
    resolver.advance()
    polls.go_on()
    resolver.advance()
    assert resolver.models[ModelRef(STAGE)].version.version == "2"


def test_version_is_fetched_once_for_all_references(case):
    fetches = Later()
    resolver = resolving(case, {STAGE: "1", "models:/tiny/1": "1"}, fetches=fetches)
    resolver.advance()
    assert len(resolver.pending()) == 1
    fetches.go_on()
    resolver.advance()
    assert case.world.fetched == ["1"]
    assert all(model.is_settled and model.version for model in resolver.models.values())


def test_version_is_fetched_per_signing_key(case):
    resolver = case.follower().resolver
    uri = "models:/tiny/1"
    refs = [ModelRef(uri), ModelRef(uri, trusted_file="/a.pub"), ModelRef(uri, "", "/b.pub")]
    resolver.models = {ref: FollowedModel() for ref in refs}
    case.world.versions[uri] = "1"
    for _ in range(3):
        resolver.advance()
    assert not resolver.pending()
    assert case.world.trusted == ["", "/a.pub", "/b.pub"]


def test_fetch_ending_during_a_poll_is_used(case):
    polls = Later()
    fetches = Later()
    resolver = resolving(case, {STAGE: "1"}, looks=polls, fetches=fetches)
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


def test_long_fetches_release_their_turns(case):
    fetches = Later()
    versions = {f"models:/tiny/{version}": str(version) for version in range(10, 20)}
    resolver = resolving(case, versions, fetches=fetches)

    def fetched():
        return [bool(model.version) for model in resolver.models.values()]

    resolver.advance()
    long = fetches.waiting[:]
    assert len(long) == 8

    case.now += 4
    resolver.advance()
    assert fetches.waiting == long

    case.now += 2
    resolver.advance()
    fetches.waiting = fetches.waiting[8:]
    fetches.go_on()
    resolver.advance()
    assert fetched() == [False] * 8 + [True] * 2

    fetches.waiting = long
    fetches.go_on()
    resolver.advance()
    assert all(fetched())


def test_stalled_download_is_an_error_until_it_continues(case):
    fetches = Later()
    resolver = resolving(case, {STAGE: "1"}, fetches=fetches)
    model = resolver.models[ModelRef(STAGE)]

    def after(seconds, received):
        case.now = case.now + seconds
        case.world.received = received
        resolver.advance()
        return model.message(STAGE)

    assert after(0, 0) == after(500, 1000) == after(590, 1000) == ""
    for _ in range(2):
        assert mentions(after(20, 1000), STAGE, "version 1", "1,000 bytes", "ten minutes")
    assert len(fetches.waiting) == 1
    assert after(20, 2000) == ""
    assert "2,000 bytes" in after(600, 2000)
    assert model.is_settled
    fetches.go_on()
    assert after(0, 2000) == ""
    assert model.version is not None


class EndsBetweenTwoLooks(AtOnce):
    """An executor whose futures are done from the second check on."""

    def submit(self, function, /, *arguments, **named):
        future = super().submit(function, *arguments, **named)
        looks = itertools.count()
        future.done = lambda: next(looks) > 0  # type: ignore[method-assign]
        return future


def test_fetch_ending_between_two_checks_is_used(case):
    case.world.versions[STAGE] = "1"
    case.spec(STAGE)
    state = case.follower(fetches=EndsBetweenTwoLooks()).round()
    assert (state.fatal, state.error, case.versions) == (False, "", {"v1": "1"})
    assert case.world.fetched == ["1"]


def test_rejected_version_is_retried_on_request(case):
    case.world.unusable["1"] = InvalidArtifact("no onnx here")
    resolver = resolving(case, {STAGE: "1"})
    resolver.advance()
    rejection = resolver.models[ModelRef(STAGE)].rejection
    assert (rejection.cause, rejection.reason) == ("artifact", "no onnx here")

    del case.world.unusable["1"]
    resolver.models[ModelRef(STAGE)].retry_now()
    resolver.advance()
    assert resolver.models[ModelRef(STAGE)].rejection is None


@pytest.mark.parametrize(
    ("uri", "is_followed"), [("models:/x/3", False), ("models:/y@champion", True)]
)
def test_fixed_or_allowed_reference_may_run_code(uri, is_followed):
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
def test_other_references_may_not_run_code(uri, is_followed, said):
    with pytest.raises(InvalidArtifact, match=said):
        PyfuncPolicy(load_specs(SPEC)).check(uri, is_followed)


def resolved(version):
    return ResolvedModel(STAGE, "tiny", version, f"models:/tiny/{version}", followed=True)


def test_version_of_the_feed_needs_no_poll(case, follower):
    polls = case.world.calls

    follower.resolver.take_feed(frozenset({STAGE}), {STAGE: resolved("2")})
    follower.round()

    assert case.versions == {"v1": "2"}
    assert case.world.calls == polls


def test_covered_reference_is_polled_hourly(case, follower):
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


def test_reason_of_an_empty_reference_is_polled(case, follower):
    case.world.versions[STAGE] = NotFound("there is no version in Production")

    follower.resolver.take_feed(frozenset({STAGE}), {STAGE: None})

    assert "Production" in follower.round().error
    assert case.versions == {"v1": "1"}


def test_version_arriving_during_a_poll_repeats_it(case):
    polls, resolver = moved_during_a_poll(case)
    resolver.take_feed(frozenset({STAGE}), {STAGE: resolved("2")})
    for _ in range(3):
        resolver.advance()
        polls.go_on()
    assert case.world.calls == 2
    assert resolver.models[ModelRef(STAGE)].version.version == "2"


def test_uncovered_reference_is_polled_as_usual(case):
    """The feed covers the new reference only after its first event."""
    new = "models:/tiny/Staging"
    resolver = resolving(case, {STAGE: "1", new: "1"})
    resolver.covered = frozenset({STAGE})
    resolver.advance()
    resolver.advance()
    assert resolver.models[ModelRef(new)].next_poll - case.now < 60
    assert resolver.models[ModelRef(STAGE)].next_poll - case.now > 600
