"""Version resolution: model references become versions on this disk, without blocking.

Polls of the registry and a few fetches at a time run in separate threads, so that a
slow poll or fetch does not delay other models or changes that need no registry. One
thread owns the agent's state and processes the results. A fetch that receives no bytes
for minutes continues, but is reported as a failure.
"""

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.model_code import WITHOUT_ONNX, model_code_refusal
from mlflow_deploy_plugin.core.processes.child import backoff_seconds
from mlflow_deploy_plugin.core.registry.change_feed import Selected
from mlflow_deploy_plugin.core.registry.resolution import Resolution, ResolvedModel
from mlflow_deploy_plugin.core.registry.tags import GateStatus
from mlflow_deploy_plugin.core.spec.parts import ConvertRule, EndpointSpec
from mlflow_deploy_plugin.core.statedir.models import FetchedVersion
from mlflow_deploy_plugin.serve.agent.followed import (
    NEVER,
    FollowedModel,
    ModelRef,
    Rejection,
    RejectionCause,
)
from mlflow_deploy_plugin.serve.agent.forms import CONVERTING, FORM

_log = logging.getLogger(__name__)

_LONGEST_BACKOFF_SECONDS = 30.0
_JITTER = 0.2
_COVERED_SECONDS = 3600.0
"""The interval for references that the change feed covers. The feed sends all versions
again when it is reopened.
"""
_TURNS = 8
_TURN_SECONDS = 5.0
"""The number of fetches at a time, without fetches that have taken longer than this
time.
"""
_STALL_SECONDS = 600.0
"""The time without bytes after which a fetch has stalled. MLflow's server may need
minutes before the first byte.
"""
_REFUSED_SECONDS = 60.0
"""The time after which a version without an approval or a signature, or with other
files than the approved or signed files, is tried again.
"""
_REGISTRY_ASPECTS = ("stage", "alias", "tag", "gate")
"""The registry's metadata that can change while the resolved version remains the same.
"""


class Registry(Protocol):
    """The calls from this process to the model registry and the artifact store."""

    def resolve(self, model_uri: str) -> ResolvedModel: ...
    def fetch(self, resolved: ResolvedModel, trusted_file: str) -> FetchedVersion: ...
    def build_environment(self, fetched: FetchedVersion) -> FetchedVersion: ...
    def adopt(self, found: FetchedVersion) -> FetchedVersion: ...
    def received_bytes(self, resolved: ResolvedModel) -> int: ...
    def report_failure(self, source: str, error: str) -> bool: ...


@dataclass
class PollPolicy:
    """The times of the registry's polls, on a monotonic clock. If `follow` is False,
    each reference is polled once.
    """

    poll_seconds: float
    follow: bool
    clock: Callable[[], float]
    uniform: Callable[[float, float], float] = random.uniform

    def due_at(self, failures: int, is_covered: bool = False) -> float:
        """Return the time of the next poll after `failures` failed polls. The change
        feed may cover the URI.
        """
        first = _COVERED_SECONDS if is_covered else self.poll_seconds
        seconds = backoff_seconds(failures + 1, max(first, _LONGEST_BACKOFF_SECONDS), first)
        return self.clock() + seconds * self.uniform(1 - _JITTER, 1 + _JITTER)


def never_converted(version: FetchedVersion, _rule: ConvertRule) -> FetchedVersion:
    """Return the version itself, for an agent that does not convert."""
    return version


class PyfuncPolicy:
    """A server's rule for versions without an ONNX form, which run Python code as this
    server's user.

    A model may run if the spec names it by a reference to a fixed version.
    `allow_pyfunc` is needed for a stage, alias or tag, which may mean a different
    version later, and for a model that a caller loads over HTTP. `named` has the model
    URIs of the spec. `refused` maps each URI that must not be a pyfunc to the name of
    its variant. `builds_environments` is True if a version needs an environment of its
    own. With `allow_pickle`, plain flavors of MLflow, whose models are pickles, need no
    `allow_pyfunc`. Without both, no joblib or pickle file is served. `convert` has the
    rule of each model URI.
    """

    def __init__(self, specs: Sequence[EndpointSpec] = (), allow_pickle: bool = False) -> None:
        self.named: set[str] = set()
        self.refused: dict[str, str] = {}
        self.convert: dict[str, ConvertRule] = {}
        self.allow_pickle = allow_pickle
        self.builds_environments = bool(specs) and specs[0].server.pyfunc_env == "uv"
        for spec in specs:
            for name, variant in spec.variants.items():
                self.named.add(variant.model)
                # A version with an environment of its own is loaded only there.
                rule = "never" if self.builds_environments else variant.convert
                self.convert[variant.model] = rule
                if not variant.allow_pyfunc:
                    self.refused[variant.model] = name

    def check(
        self, model_uri: str, is_followed: bool, is_plain: bool = False, is_file: bool = False
    ) -> None:
        """Raise InvalidArtifact if a version without an ONNX form must not be served
        for this URI. `is_plain` is True for a plain flavor of MLflow, and `is_file` for
        a joblib or pickle file.
        """
        if reason := model_code_refusal(WITHOUT_ONNX):
            raise errors.InvalidArtifact(reason)
        is_allowed = self.allow_pickle and is_plain
        needs_consent = (is_followed or is_file) and model_uri in self.refused
        if model_uri in self.named and (is_allowed or not needs_consent):
            return
        if is_file:
            raise errors.InvalidArtifact(
                "a joblib or pickle file can run any code while it is loaded; if you trust its "
                "author, set --allow-pickle (ONNXSERVE_ALLOW_PICKLE=true)"
            )
        what = "the version has no ONNX form, so serving it would run its own code"
        if model_uri in self.named:
            raise errors.InvalidArtifact(
                f"{what}; for a stage, an alias or a tag, set -C "
                f"variants.{self.refused[model_uri]}.allow_pyfunc=true (or --flavor "
                "python_function in `mlflow deployments create` and `update`), or --allow-pickle "
                "for a plain flavor of MLflow",
            )
        raise errors.InvalidArtifact(f"{what}, which can be allowed only in the server's spec")


class _FetchKey(NamedTuple):
    """The version of a fetch, and the path of the key that must have signed it."""

    identity: str
    trusted_file: str


@dataclass
class _Fetch:
    """A fetch of a version.

    Attributes:
        received: the number of bytes that had arrived at `moved_at`
            (`PollPolicy.clock`), which is infinite while an environment is built.
        is_kept: True if the fetch has ended, and its result is kept for a model that is
            being polled.
    """

    future: "Future[FetchedVersion]"
    started_at: float
    moved_at: float
    received: int = 0
    is_kept: bool = False


@dataclass
class VersionResolver:
    """Updates each followed model to the version that the registry names. `poll_pool`
    polls the registry, and `fetch_pool` fetches files; a slow fetch occupies its
    thread. `finished_polls` includes failed polls. `covered` has the URIs whose changes
    the change feed sends.
    """

    registry: Registry
    poll_pool: Executor
    fetch_pool: Executor
    polling: PollPolicy
    pyfunc_policy: PyfuncPolicy = field(default_factory=PyfuncPolicy)
    models: dict[ModelRef, FollowedModel] = field(default_factory=dict)
    finished_polls: int = 0
    covered: frozenset[str] = frozenset()
    best_form: Callable[[FetchedVersion, ConvertRule], FetchedVersion] = never_converted
    refuse_form: Callable[[FetchedVersion, str], None] = lambda version, reason: None
    wait_for_form: Callable[[FetchedVersion], FetchedVersion] = lambda version: version
    _fetches: dict[_FetchKey, _Fetch] = field(default_factory=dict)

    def pending(self) -> list["Future[Any]"]:
        """Return the polls and fetches for which `advance` waits. A kept result waits
        for a poll itself.
        """
        polls = [model.poll for model in self.models.values() if model.poll is not None]
        return [
            *polls,
            *(fetch.future for fetch in self._fetches.values() if not fetch.is_kept),
        ]

    def set_pyfunc_policy(self, policy: PyfuncPolicy) -> None:
        """Set a new policy, and retry the versions that it permits."""
        before = self.pyfunc_policy
        newly_allowed = before.refused.keys() - policy.refused.keys()
        newly_allowed |= policy.named - before.named
        for ref, model in self.models.items():
            if ref.uri in newly_allowed and model.is_rejected_for("consent"):
                model.retry_now()
        self.pyfunc_policy = policy

    def poll_now(self) -> None:
        """Poll all followed references immediately. If a reference is being polled,
        poll it again afterwards.
        """
        for model in self.models.values():
            if model.next_poll < NEVER or model.poll is not None:
                model.next_poll = 0.0

    def take_feed(self, covered: frozenset[str], selected: Selected) -> None:
        """Process versions from the change feed like results of polls. Poll the URIs
        that are no longer covered.
        """
        no_longer_covered = self.covered - covered
        self.covered = covered
        for ref, model in self.models.items():
            if ref.uri in no_longer_covered and model.next_poll < NEVER:
                model.next_poll = min(model.next_poll, self.polling.due_at(0))
            if ref.uri not in selected:
                continue
            resolution = selected[ref.uri]
            if resolution is None or model.poll is not None:
                model.next_poll = 0.0
            else:
                model.poll = Future()
                model.next_poll = NEVER
                model.poll.set_result(resolution)

    def advance(self) -> None:
        """Start due polls and fetches, and process results."""
        for ref, model in self.models.items():
            if model.poll is None and model.next_poll <= self.polling.clock():
                model.poll = self.poll_pool.submit(self._resolve, ref.uri)
                model.next_poll = NEVER
        for ref, model in self.models.items():
            if model.poll is not None and model.poll.done():
                self._finish_poll(ref, model, model.poll.result())
        waiting = []
        for ref, model in self.models.items():
            target = model.target
            if target is None or model.poll is not None:
                continue
            if self._fetch_unless_served(ref, model, target):
                waiting.append((ref, model, target))
        # `done` is evaluated once, so that all waiting models process the result of a
        # fetch in the same round.
        ended = {key: fetch.future for key, fetch in self._fetches.items() if fetch.future.done()}
        for ref, model, target in waiting:
            key = _FetchKey(target.identity, ref.trusted_file)
            if key in ended:
                self._take_fetched(ref, model, target, ended[key])
            elif key in self._fetches:
                # Reject the target while its fetch receives no bytes, and clear the
                # rejection when bytes arrive.
                fetch = self._fetches[key]
                now = self.polling.clock()
                if now - fetch.started_at < _TURN_SECONDS:
                    continue
                received = self.registry.received_bytes(target)
                if received != fetch.received:
                    fetch.received = received
                    fetch.moved_at = now
                    model.rejection = None
                elif now - fetch.moved_at >= _STALL_SECONDS:
                    reason = (
                        f"the download stalls: {received:,} bytes of its files have arrived, and "
                        "none in ten minutes"
                    )
                    model.rejection = _rejection(
                        target, "fetch", reason, 0.0, errors.RegistryUnavailable
                    )
        self._drop_fetches(ended)
        self._update_forms()
        self._report_failures()

    def _update_forms(self) -> None:
        """Serve the ONNX forms of versions that were converted, or their originals."""
        for ref, model in self.models.items():
            version = model.version
            if version is None or not model.is_verified:
                continue
            best = self.form_of(ref.uri, version.original or version)
            aspects = {
                name: value for name, value in best.aspects.items() if name not in _REGISTRY_ASPECTS
            }
            for name in version.aspects.keys() & set(_REGISTRY_ASPECTS):
                aspects[name] = version.aspects[name]
            best = best.model_copy(update={"aspects": aspects})
            if best.folder != version.folder:
                model.serve(best)
            elif best != version:
                model.version = best

    def form_of(self, model_uri: str, fetched: FetchedVersion) -> FetchedVersion:
        """Return the form of a permitted version that answers now."""
        return self.best_form(fetched, self.pyfunc_policy.convert.get(model_uri, "example"))

    def _report_failures(self) -> None:
        """Write the errors of versions to their tags. If the registry is down, retry
        the write later.
        """
        for model in self.models.values():
            if model.report is not None and model.report.done():
                if model.report.exception() is None and model.report.result():
                    model.reported = model.reporting
                else:
                    model.report_at = self.polling.due_at(1)
                model.report = None
            report = model.pending_report()
            is_due = model.report is None and model.report_at <= self.polling.clock()
            if report is not None and is_due:
                model.reporting = report
                model.report = self.poll_pool.submit(self.registry.report_failure, *report)

    def _drop_fetches(self, ended: "Mapping[_FetchKey, Future[FetchedVersion]]") -> None:
        """Forget the fetches whose results were processed (`ended`), and cancel those
        that no reference needs any more.
        """
        needing = [
            (model, _FetchKey(model.target.identity, ref.trusted_file))
            for ref, model in self.models.items()
            if model.target is not None
        ]
        # A model that is being polled takes the result afterwards. With a slow
        # registry, it is polled almost always.
        polled = {key for model, key in needing if model.poll}
        for key, future in ended.items():
            if self._fetches[key].future is not future:
                continue  # The environment of the fetched version is being built.
            if key in polled:
                self._fetches[key].is_kept = True
            else:
                del self._fetches[key]
        for key in self._fetches.keys() - {key for _, key in needing}:
            # A running fetch continues.
            self._fetches.pop(key).future.cancel()

    def _resolve(self, uri: str) -> Resolution:
        """Return the version that the registry names for the URI, or the error. Runs in
        a thread of `poll_pool`.
        """
        try:
            return self.registry.resolve(uri)
        except errors.OnnxserveError as error:
            return error
        except Exception as error:  # noqa: BLE001 - any error of the poll is logged, and the version is kept
            _log.exception("the poll of %s failed", uri)
            return errors.RegistryUnavailable(f"the poll of {uri} failed: {type(error).__name__}")

    def _finish_poll(
        self,
        ref: ModelRef,
        model: FollowedModel,
        resolution: Resolution,
    ) -> None:
        """Take the result of a poll that has ended, and set the time of the next
        poll.
        """
        is_wanted_again = model.next_poll < NEVER
        model.poll = None
        model.next_poll = self.polling.due_at(0, ref.uri in self.covered)
        self.finished_polls += 1
        if isinstance(resolution, ResolvedModel):
            waits_for_gate = bool(ref.require) and not resolution.gate_status.passed
            if model.is_rejected_for("gate"):
                if model.target is not None and model.target.gate_status != resolution.gate_status:
                    model.rejection = None  # Retry, because the gate has a new verdict.
                else:
                    waits_for_gate = True
            model.error = None
            model.poll_failures = 0
            model.target = resolution
            # Do not poll again if neither the version nor the gate's verdict can
            # change.
            if not waits_for_gate and not (resolution.followed and self.polling.follow):
                model.next_poll = NEVER
        else:
            model.error = resolution
            if isinstance(resolution, errors.NotFound):
                model.error = errors.NotFound(f"{ref.uri}: {resolution.message}")
            # A missing, malformed or forbidden version may be corrected at any time, so
            # poll at the normal rate.
            if not isinstance(
                resolution,
                errors.NotFound | errors.InvalidConfig | errors.RegistryRefused,
            ):
                model.poll_failures += 1
                model.next_poll = self.polling.due_at(model.poll_failures)
        if is_wanted_again:
            model.next_poll = 0.0

    def _fetch_unless_served(
        self,
        ref: ModelRef,
        model: FollowedModel,
        target: ResolvedModel,
    ) -> bool:
        """Start a fetch of the target unless too many fetches are running. Return False
        if the target is served, whose metadata is then updated, or rejected.
        """
        now = self.polling.clock()
        rejection = model.rejection
        if (
            rejection is not None
            and rejection.identity == target.identity
            and now < rejection.retry_at
        ):
            return False
        if model.version is not None and model.serves_target and model.is_verified:
            aspects = model.version.aspects
            of_files = {name: aspects[name] for name in aspects if name not in _REGISTRY_ASPECTS}
            current = of_files | target.aspects
            if current != aspects:
                model.version = model.version.model_copy(update={"aspects": current})
            model.rejection = None
            return False
        if ref.require and not model.serves_target and not target.gate_status.passed:
            model.rejection = _gate_rejection(ref, target, target.gate_status, retry_at=0.0)
            return False
        key = _FetchKey(target.identity, ref.trusted_file)
        if key not in self._fetches:
            # A fetch that takes long does not keep other fetches waiting.
            young_fetches = [
                fetch
                for fetch in self._fetches.values()
                if not fetch.future.done() and now - fetch.started_at < _TURN_SECONDS
            ]
            if len(young_fetches) < _TURNS:
                future = self.fetch_pool.submit(
                    self._fetch, target.source, self.registry.fetch, target, ref.trusted_file
                )
                self._fetches[key] = _Fetch(future, now, now)
        return True

    def _fetch(
        self, source: str, call: Callable[..., FetchedVersion], *arguments: object
    ) -> FetchedVersion:
        """Fetch the version, or build its environment, with a call of the registry in a
        thread of `fetch_pool`. Raises only OnnxserveError.
        """
        try:
            return call(*arguments)
        except errors.OnnxserveError:
            raise
        except Exception as error:  # noqa: BLE001 - an error of any class fails only this fetch
            _log.exception("fetching %s failed", source)
            raise errors.OnnxserveError(
                f"the fetch failed unexpectedly: {type(error).__name__}, see the log",
            ) from None

    def _take_fetched(
        self,
        ref: ModelRef,
        model: FollowedModel,
        target: ResolvedModel,
        fetch: "Future[FetchedVersion]",
    ) -> None:
        """Serve the version of a fetch that has ended, or reject the version."""
        try:
            fetched = fetch.result()
        except errors.ModelError as error:
            model.rejection = _rejection(target, "artifact", error.message)
        except errors.GateRefused as error:
            model.rejection = self._temporary_refusal(target, "gate", error.message)
        except errors.SignatureRefused as error:
            model.rejection = self._temporary_refusal(target, "signature", error.message)
        except errors.OnnxserveError as error:
            model.fetch_failures += 1
            retry_at = self.polling.due_at(model.fetch_failures)
            model.rejection = _rejection(target, "fetch", error.message, retry_at, type(error))
        else:
            rejection = self._fetched_rejection(ref, model, target, fetched)
            # Loading a file, or building, runs code of the version, so the version must
            # be permitted.
            builds = fetched.runs_code and self.pyfunc_policy.builds_environments
            next_step: Callable[[FetchedVersion], FetchedVersion] | None = None
            if fetched.is_file:
                next_step = self.registry.adopt
            elif builds and not fetched.python:
                next_step = self.registry.build_environment
            elif rejection is None and fetched.rows == "file":
                # A side process for each file of a folder would need too much memory.
                form = self.form_of(ref.uri, fetched).aspects.get(FORM)
                next_step = self.wait_for_form if form == CONVERTING else None
            if rejection is None and next_step is not None:
                key = _FetchKey(target.identity, ref.trusted_file)
                if self._fetches[key].future is fetch:
                    future = self.fetch_pool.submit(self._fetch, target.source, next_step, fetched)
                    self._fetches[key] = _Fetch(future, self.polling.clock(), math.inf)
                return
            model.fetch_failures = 0
            model.rejection = rejection
            if rejection is None:
                model.serve(self.form_of(ref.uri, fetched))

    def _fetched_rejection(
        self,
        ref: ModelRef,
        model: FollowedModel,
        target: ResolvedModel,
        fetched: FetchedVersion,
    ) -> Rejection | None:
        """Return the reason why the fetched version must not be served; None if it may
        be. If the gate may have a new verdict later, the next poll is due regularly.
        """
        served = model.version and (model.version.original or model.version)
        is_served = served is not None and served.folder == fetched.folder
        status = target.gate_status.on_files(fetched.digest)
        if fetched.unjudged:
            status = GateStatus(reason=fetched.unjudged)
        if ref.require and not is_served and not status.passed:
            # Poll regularly, because the gate may have a new verdict.
            model.next_poll = min(model.next_poll, self.polling.due_at(0))
            return _gate_rejection(ref, target, status, NEVER)
        if not is_served and ref.is_gated_by(fetched.unapproved_at):
            places = ", ".join(fetched.unapproved_at)
            reason = (
                f"the policy of {target.name} requires approvals for {places}, and MLflow's server "
                f"has no record of approved files of version {target.version}. The agent needs "
                "MLflow's server with onnxserve. There, an administrator can set the policy again, "
                "also unchanged, which records the files of the served versions; or request the "
                "promotion again"
            )
            return self._temporary_refusal(target, "gate", reason)
        if ref.requires_name and fetched.signed_as != target.source:
            signed_as = fetched.signed_as or "no registered version"
            reason = (
                f"it is signed as {signed_as}, but this endpoint requires {target.source}; sign it "
                f"with `onnxserve sign {target.source} --key KEY`"
            )
            return self._temporary_refusal(target, "signature", reason)
        try:
            if fetched.runs_code:
                is_plain = bool(fetched.rows)
                self.pyfunc_policy.check(ref.uri, target.followed, is_plain, fetched.is_file)
        except errors.ModelError as error:
            return _rejection(target, "consent", error.message)
        return None

    def _temporary_refusal(
        self,
        target: ResolvedModel,
        cause: RejectionCause,
        reason: str,
    ) -> Rejection:
        """Return the rejection of a version without approved or signed files, which is
        tried again after `_REFUSED_SECONDS`.
        """
        return _rejection(target, cause, reason, self.polling.clock() + _REFUSED_SECONDS)


def _gate_rejection(
    ref: ModelRef,
    target: ResolvedModel,
    status: GateStatus,
    retry_at: float,
) -> Rejection:
    """Return the rejection of a version that lacks a verdict of the gate."""
    return _rejection(
        target,
        "gate",
        f"{status.reason}, but this endpoint requires {ref.require}",
        retry_at,
    )


def _rejection(
    target: ResolvedModel,
    cause: RejectionCause,
    reason: str,
    retry_at: float = NEVER,
    error_class: type[errors.OnnxserveError] = errors.ModelError,
) -> Rejection:
    """Return the rejection of the target, which is tried again at `retry_at`; `NEVER`
    waits for another version or a command.
    """
    return Rejection(
        target.identity,
        target.source,
        target.name,
        target.version,
        cause,
        reason,
        retry_at,
        error_class,
    )
