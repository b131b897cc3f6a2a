"""Pursuing: model URIs → versions that lie ready on this disk, without ever waiting for anybody.

Looks at the registry and fetches run in threads of their own, so that one that hangs delays neither another model nor
what needs no registry at all (a change of weights, going back, a command). Here their results are taken in, in the one
thread that owns the memory of the agent.
"""

import logging
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mlflow_deploy_plugin.agent.fetch import FetchedVersion
from mlflow_deploy_plugin.agent.followed import NEVER, FollowedModel, ModelRef, Rejection, RejectionCause
from mlflow_deploy_plugin.agent.verify import PyfuncPolicy
from mlflow_deploy_plugin.errors import InvalidConfig, ModelError, NotFound, OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.registry.resolve import Resolution, ResolvedModel, lookup_key

_log = logging.getLogger(__name__)

_LONGEST_BACKOFF_SECONDS = 30.0
_JITTER = 0.2
_REGISTRY_ASPECTS = ("stage", "alias", "tag", "gate")
"""Aspects that change while the version stays."""


class Registry(Protocol):
    """What following needs of the world outside."""

    def resolve(self, model_uris: Sequence[str]) -> dict[str, Resolution]: ...
    def fetch(self, resolved: ResolvedModel) -> FetchedVersion: ...
    def report_failure(self, source: str, error: str) -> bool: ...


@dataclass
class PollPolicy:
    """How often the registry is asked.

    Attributes:
        follow: False resolves every reference once and then leaves it.
        clock: monotonic seconds.
        uniform: random between two numbers, to spread the polls of many agents.
    """

    poll_seconds: float
    follow: bool
    clock: Callable[[], float]
    uniform: Callable[[float, float], float] = random.uniform

    def pause(self, failures: int) -> float:
        """Seconds until the next look, after so many failures in a row."""
        longest = max(self.poll_seconds, _LONGEST_BACKOFF_SECONDS)
        seconds = min(self.poll_seconds * 2.0 ** min(failures, 10), longest)
        return seconds * self.uniform(1 - _JITTER, 1 + _JITTER)


@dataclass
class VersionResolver:
    """Every wish, and what is under way for it.

    Args:
        looks / fetches: threads that ask the registry, and that get files.

    Attributes:
        ended: how many looks have, well or not.
        has_told: some version's tag says another thing than what was last remembered.
    """

    registry: Registry
    looks: Executor
    fetches: Executor
    pace: PollPolicy
    consent: PyfuncPolicy = field(default_factory=PyfuncPolicy)
    tracked: dict[ModelRef, FollowedModel] = field(default_factory=dict)
    ended: int = 0
    has_told: bool = False
    _fetching: dict[str, "Future[FetchedVersion]"] = field(default_factory=dict)

    def under_way(self) -> list["Future[Any]"]:
        """What is waited for before every wish is settled."""
        looks = [tracked.look for tracked in self.tracked.values() if tracked.look is not None]
        return [*dict.fromkeys(looks), *self._fetching.values()]

    def agree(self, consent: PyfuncPolicy) -> None:
        """A version that was refused for want of consent is looked at again where there is one now."""
        known = (consent.allowed - self.consent.allowed) | (consent.named - self.consent.named)
        for wish, tracked in self.tracked.items():
            if wish.uri in known and tracked.trouble is not None and tracked.trouble.cause == "consent":
                tracked.look_anew()
        self.consent = consent

    def look_now(self) -> None:
        """Asks at once for what is asked for again and again; a look that is under way may have come too early."""
        for tracked in self.tracked.values():
            if tracked.due < NEVER or tracked.look is not None:
                tracked.due = 0.0

    def advance(self) -> None:
        """Starts what is due and takes in what has come."""
        self._begin_looks()
        self._end_looks()
        for wish, tracked in self.tracked.items():
            if tracked.target is not None and tracked.look is None:
                self._pursue(wish, tracked, tracked.target)
        targets = {tracked.target.identity for tracked in self.tracked.values() if tracked.target is not None}
        for identity in [identity for identity, future in self._fetching.items() if future.done()]:
            del self._fetching[identity]
        for identity in self._fetching.keys() - targets:
            self._fetching.pop(identity).cancel()  # the reference has moved on; one that runs ends by itself
        self._tell()

    def _begin_looks(self) -> None:
        """One look for each model of which some reference is due; all its followed references share it."""
        now = self.pace.clock()
        due = {lookup_key(wish.uri) for wish, one in self.tracked.items() if one.due <= now and one.look is None}
        for model in sorted(due):
            asked = [
                (wish, one)
                for wish, one in self.tracked.items()
                if one.look is None and one.due < NEVER and lookup_key(wish.uri) == model
            ]
            uris = list(dict.fromkeys(wish.uri for wish, _ in asked))
            look = self.looks.submit(self._resolve, uris)
            for _, one in asked:
                one.look, one.due = look, NEVER

    def _resolve(self, uris: list[str]) -> dict[str, Resolution]:
        try:
            return self.registry.resolve(uris)
        except Exception as error:  # noqa: BLE001 - the boundary of a thread: it logs, and the version stays
            _log.exception("asking for %s failed", ", ".join(uris))
            return dict.fromkeys(uris, RegistryUnavailable(f"asking for {uris[0]} failed: {type(error).__name__}"))

    def _end_looks(self) -> None:
        pauses: dict[int, float] = {}
        for wish, tracked in self.tracked.items():
            look = tracked.look
            if look is None or not look.done():
                continue
            tracked.look = None
            pause = pauses.setdefault(id(look), self.pace.pause(0))
            is_asked_anew = tracked.due < NEVER
            due = self._hear(wish, tracked, look.result()[wish.uri], pause)
            tracked.due = 0.0 if is_asked_anew else due
        self.ended += len(pauses)

    def _hear(self, wish: ModelRef, tracked: FollowedModel, answer: Resolution, pause: float) -> float:
        """Takes in what the registry has said; when to ask it again."""
        now = self.pace.clock()
        if isinstance(answer, ResolvedModel):
            tracked.error, tracked.failures, tracked.target = "", 0, answer
            waits_for_gate = bool(wish.require) and not answer.standing.passed
            is_asked_again = waits_for_gate or (answer.followed and self.pace.follow)
            return now + pause if is_asked_again else NEVER
        tracked.failed = type(answer)
        if isinstance(answer, NotFound | InvalidConfig):  # somebody may put it right at any moment
            tracked.error = f"{wish.uri}: {answer.message}"
            return now + pause
        tracked.error = answer.message
        tracked.failures += 1
        return now + self.pace.pause(tracked.failures)

    def _pursue(self, wish: ModelRef, tracked: FollowedModel, target: ResolvedModel) -> None:
        """Brings `tracked` to its target, as far as that goes now."""
        trouble = tracked.trouble
        is_known = trouble is not None and trouble.identity == target.identity
        if is_known and trouble is not None and trouble.cause != "gate" and self.pace.clock() < trouble.retry_at:
            return
        if tracked.serves_target and tracked.is_checked:
            tracked.trouble = None
            _refresh_aspects(tracked, target)
            return
        if wish.require and not tracked.serves_target and not target.standing.passed:
            reason = f"{target.standing.reason}, and this endpoint requires {wish.require}"
            tracked.trouble = self._trouble(target, "gate", reason, retry_at=0.0)
            return
        if target.identity not in self._fetching:
            self._fetching[target.identity] = self.fetches.submit(self._fetch, target)
        if self._fetching[target.identity].done():
            self._take_in(wish, tracked, target, self._fetching[target.identity])

    def _fetch(self, target: ResolvedModel) -> FetchedVersion:
        try:
            return self.registry.fetch(target)
        except OnnxserveError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            _log.exception("fetching %s failed", target.source)
            raise OnnxserveError(f"fetching it failed unexpectedly: {type(error).__name__}, see the log") from None

    def _take_in(
        self, wish: ModelRef, tracked: FollowedModel, target: ResolvedModel, fetch: "Future[FetchedVersion]"
    ) -> None:
        try:
            fetched = fetch.result()
        except ModelError as error:
            tracked.trouble = self._trouble(target, "artifact", error.message)
            return
        except OnnxserveError as error:
            tracked.fetch_failures += 1
            retry_at = self.pace.clock() + self.pace.pause(tracked.fetch_failures)
            tracked.trouble = self._trouble(target, "fetch", error.message, retry_at, type(error))
            return
        tracked.fetch_failures = 0
        try:
            if fetched.runs_code:
                self.consent.check(wish.uri, target.followed)
        except ModelError as error:
            tracked.trouble = self._trouble(target, "consent", error.message)
            return
        if tracked.version is not None and tracked.version.folder != fetched.folder:
            tracked.previous = tracked.version
        tracked.version, tracked.is_checked, tracked.trouble = fetched, True, None

    def _trouble(
        self,
        target: ResolvedModel,
        cause: RejectionCause,
        reason: str,
        retry_at: float = NEVER,
        kind: type[OnnxserveError] = ModelError,
    ) -> Rejection:
        return Rejection(target.identity, target.source, target.name, target.version, cause, reason, retry_at, kind)

    def _tell(self) -> None:
        """Has the versions' tags say what is wrong with them; while the registry is away, later."""
        for tracked in self.tracked.values():
            if tracked.telling is not None and tracked.telling.done():
                if tracked.telling.exception() is None and tracked.telling.result():
                    tracked.told, self.has_told = tracked.saying, True
                else:
                    tracked.tell_at = self.pace.clock() + self.pace.pause(1)
                tracked.telling = None
            text = tracked.to_tell()
            if text is not None and tracked.telling is None and tracked.tell_at <= self.pace.clock():
                tracked.saying = text
                tracked.telling = self.looks.submit(self.registry.report_failure, *text)


def _refresh_aspects(tracked: FollowedModel, target: ResolvedModel) -> None:
    """The stage, alias, tag and gate that the served version has now."""
    version = tracked.version
    assert version is not None
    own = {name: value for name, value in version.aspects.items() if name not in _REGISTRY_ASPECTS}
    if (aspects := own | target.aspects) != version.aspects:
        tracked.version = replace(version, aspects=aspects)
