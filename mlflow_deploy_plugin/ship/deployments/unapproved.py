"""Versions that answer requests without the approvals that their model requires, and
the limits of the policy.

An approval may not come after the fact. A version without an approval gets traffic only
within the limit `unapproved` of the model's policy: a share of the endpoint's requests,
for a time that begins with the first percent. A gated stage or alias is not checked
here, because MLflow's server lets only approved versions in.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import (
    GateRefused,
    NotFound,
    RegistryRefused,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.approved_files import approval_of, policy_with_approvals
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri, registered_model_names
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import duration_seconds
from mlflow_deploy_plugin.core.store.served_files import MOVES, stay_of
from mlflow_deploy_plugin.core.store.store import Endpoint, Store
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.ship.deployments.config import traffic_shares, traffic_weights

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.registry.policy import GatePolicy, UnapprovedPolicy

_log = logging.getLogger(__name__)

UNAPPROVED = "unapproved"
"""The key of the answers without an approval in the detail of an event."""
_DECISIONS = ("request", "approve", "decline")
"""The actions in the audit trail that only a policy with approvals causes."""
_POLICY_ACTIONS = ("tag", "rename", "delete", *_DECISIONS)


@dataclass(frozen=True)
class UnapprovedAnswer:
    """A model that answers requests of an endpoint without an approval.

    Attributes:
        model: the registered model.
        version: the number of the version; empty if the URI does not fix the version.
        places: the gated stages and @aliases, of which one can approve the version.
        share: the percentage of the endpoint's requests.
        since: the time of the first request in ISO 8601.
        until: the time of the limit in ISO 8601.
    """

    model_uri: str
    model: str
    version: str
    places: tuple[str, ...]
    share: float
    since: str
    until: str

    @property
    def ends_at(self) -> datetime:
        return datetime.fromisoformat(self.until)

    def __str__(self) -> str:
        until = self.ends_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
        return (
            f"{self.model_uri} answers {self.share:g} % of the requests without an approval, until "
            f"{until} UTC"
        )


@dataclass(frozen=True)
class LackingApproval:
    """A model URI without the required approvals. `limit` is None if the policy permits
    no answer without them.
    """

    model_uri: str
    model: str
    version: str
    places: tuple[str, ...]
    limit: "UnapprovedPolicy | None"

    @property
    def share(self) -> float:
        return self.limit.share if self.limit is not None else 0.0

    @property
    def seconds(self) -> int:
        if self.limit is not None:
            return duration_seconds(self.limit.length)
        return 0

    def refusal(self, what: str) -> GateRefused:
        """Return the error that `what`, such as `a rollout of 5 %`, is more than the
        policy permits.
        """
        if self.limit is None:
            permitted = (
                f"the policy of {self.model} permits no answers without an approval (`unapproved`)"
            )
        else:
            permitted = (
                f"the policy of {self.model} permits {self.share:g} % for {self.limit.length}"
            )
        if self.version:
            remedy = (
                f"`onnxserve promote models:/{self.model}/{self.version} --to {self.places[0]} "
                "--request` requests it"
            )
        else:
            remedy = f"follow {' or '.join(self.places)}, or specify a version that is approved"
        return GateRefused(f"{self.model_uri} lacks the approval for {what}: {permitted}; {remedy}")

    def answer(self, store: Store, endpoint: str, share: float) -> UnapprovedAnswer:
        """Return the answer of a version within the time limit, which begins with its
        first percent at this endpoint.

        All URIs without a fixed version share the time of their model, because each of
        them may select the same version.
        """
        now = store.now()
        since = now
        for event in store.events(endpoint):
            for entry in event.detail.get(UNAPPROVED, ()):
                if (entry["model"], entry["version"]) == (self.model, self.version):
                    since = min(since, datetime.fromisoformat(entry["since"]))
        until = since + timedelta(seconds=self.seconds)
        if share > self.share or now >= until:
            began = f" since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if since < now else ""
            raise self.refusal(f"{share:g} % of the requests of endpoint {endpoint!r}{began}")
        return UnapprovedAnswer(
            model_uri=self.model_uri,
            model=self.model,
            version=self.version,
            places=self.places,
            share=share,
            since=since.isoformat(),
            until=until.isoformat(),
        )


def lacking_approval(
    model_uri: str, replaced: Iterable[str], store: Store | None = None
) -> LackingApproval | None:
    """Return the missing approval of a model, or None if it needs none or has it.

    A URI that follows other aliases, stages or tags has none, because it may select any
    version later. A model that is not registered or requires no approvals (such as a
    copy) has none if one of the registered models `replaced`, which the endpoint
    serves, requires approvals.

    If MLflow does not answer, a model requires no approvals if the audit trail of
    `store` does not have any.

    Raises NotFound, InvalidConfig for an invalid policy, RegistryUnavailable and
    RegistryRefused.
    """
    uri = parse_model_uri(model_uri)
    policy = _policy_with_approvals(uri.name, store) if uri.is_registered else None
    if policy is None:
        for name in replaced:
            if (policy := _policy_with_approvals(name, store)) is not None:
                return _lacking(model_uri, name, "", policy)
        return None
    if uri.kind in ("stage", "alias") and policy.gates(uri.place):
        return None
    version = uri.selector if uri.kind == "version" else ""
    if version and approval_of(uri.name, version).files:
        return None
    return _lacking(model_uri, uri.name, version, policy)


def _lacking(model_uri: str, model: str, version: str, policy: "GatePolicy") -> LackingApproval:
    """Return the missing approval of a model under a policy. `version` is empty if the
    URI does not fix the version.
    """
    places = tuple(map(str, policy.gated_places))
    return LackingApproval(model_uri, model, version, places, policy.unapproved)


def _policy_with_approvals(model: str, store: Store | None) -> "GatePolicy | None":
    """Return the policy of a model that requires approvals; None for other models, and
    for a model that is missing.
    """
    try:
        with registry_errors(f"model {model}"):
            model_tags = registry_client().get_registered_model(model).tags
    except NotFound:  # The server cannot load it, and reports this.
        return None
    except RegistryRefused:
        raise
    except RegistryUnavailable as error:
        if store is None or _may_require_approvals(store, model):
            raise
        _log.warning(
            "%s; without MLflow, model %s requires no approvals: the audit trail has none",
            error.message,
            model,
        )
        return None
    return policy_with_approvals(model, model_tags)


def _may_require_approvals(store: Store, model: str) -> bool:
    """Return True if the audit trail has a policy with approvals, or a decision of
    people after the last policy.
    """
    for event in store.events(model=model, actions=_POLICY_ACTIONS, newest_first=True):
        if event.action in _DECISIONS:
            return True
        if event.action == "tag" and event.detail.get("tag") == tags.GATE_POLICY_TAG:
            return tags.requires_approvals(event.after)
        if event.ends_model:
            # The former name has the policy.
            return event.action == "rename" and event.after == model
    return False


def permitted_answers(
    store: Store, before: Endpoint | None, after: EndpointSpec, *, restores: bool = False
) -> tuple[UnapprovedAnswer, ...]:
    """Return the answers without an approval after a change of an endpoint.

    Only a model that gets more traffic than before is checked, so that every other
    change stays possible. `restores` is True for a change that gives traffic back to an
    earlier version, which must not wait for people.

    Raises GateRefused if a version lacks an approval beyond the limit, and the errors
    of `lacking_approval`.
    """
    by_uri: dict[str, UnapprovedAnswer] = {}
    shares_before: Mapping[str, float] = {}
    served: list[str] = []
    if before is not None:
        by_uri = {answer.model_uri: answer for answer in answers_of(before)}
        shares_before = _shares(before.spec)
        served = registered_model_names(before.spec)
    history = None if by_uri else store
    answers: list[UnapprovedAnswer] = []
    raised: list[LackingApproval] = []
    for model_uri, share in _shares(after).items():
        answer = by_uri.get(model_uri)
        if restores or share <= shares_before.get(model_uri, 0.0):
            if answer is not None:
                answers.append(replace(answer, share=share))
            continue
        try:
            lacking = lacking_approval(model_uri, served, history)
        except RegistryUnavailable:
            if model_uri not in shares_before or answer is not None:
                raise
            # The version answered before with an approval. A change of traffic does not
            # need MLflow.
            continue
        if lacking is not None:
            answers.append(lacking.answer(store, after.name, share))
            raised.append(lacking)
    # All answers together must not exceed the limit of a model with more traffic.
    total = sum(answer.share for answer in answers)
    for lacking in raised:
        if total > lacking.share:
            raise lacking.refusal(f"{total:g} % of the requests of endpoint {after.name!r}")
    return tuple(answers)


def require_rollout(
    model_uri: str, steps: Sequence[int], seconds: float, replaced: Iterable[str]
) -> str:
    """Return the limit of a rollout without an approval, in words; empty if the version
    needs none or has it.

    The registered models `replaced` are the models that the endpoint serves.

    Raises GateRefused if a step or the shortest time of all steps exceeds the limit.
    """
    lacking = lacking_approval(model_uri, replaced)
    if lacking is None:
        return ""
    shortest_seconds = len(steps) * seconds
    is_permitted = max(steps) <= lacking.share and shortest_seconds <= lacking.seconds
    if not is_permitted or lacking.limit is None:
        shares = ", ".join(f"{step} %" for step in steps)
        shortest = timedelta(seconds=shortest_seconds)
        raise lacking.refusal(f"a rollout of {shares} in at least {shortest}")
    return (
        f"without an approval, which the policy permits for {lacking.share:g} % and "
        f"{lacking.limit.length}"
    )


def has_answered(store: Store, endpoint: str, model_uri: str) -> bool:
    """Return True if the model has answered requests of the endpoint, and did not lack
    an approval then.

    Changes that failed and were undone, and an earlier endpoint of this name, do not
    count.
    """
    answered_by_change: list[bool] = []
    for event in store.events(endpoint):
        if event.action == "create":
            answered_by_change = []
        if event.detail.get("undone"):
            answered_by_change = answered_by_change[:-1]
        elif text := event.detail.get("spec"):
            (spec,) = load_stored_specs(text)
            lacking = {entry["model_uri"] for entry in event.detail.get(UNAPPROVED, ())}
            answered_by_change.append(model_uri in _shares(spec).keys() - lacking)
    return any(answered_by_change)


def answers_of(stored: Endpoint) -> list[UnapprovedAnswer]:
    """Return the answers without an approval since the last change of the endpoint."""
    return [
        UnapprovedAnswer(**{**entry, "places": tuple(entry["places"])})
        for entry in stored.unapproved
    ]


def current_answers(store: Store, stored: Endpoint) -> list[UnapprovedAnswer]:
    """Return the answers without an approval now: the version may have been promoted
    since the last change.
    """
    return [answer for answer in answers_of(stored) if not is_promoted(store, answer)]


def is_promoted(store: Store, answer: UnapprovedAnswer) -> bool:
    """Return True if the audit trail has a move of the version to a gated place."""
    events = store.counted_events(answer.model, MOVES)
    return any(stay_of(events, answer.version, place).files for place in answer.places)


def as_json(answers: Iterable[UnapprovedAnswer]) -> list[Json]:
    return [{**asdict(answer), "places": list(answer.places)} for answer in answers]


def _shares(spec: EndpointSpec) -> Mapping[str, float]:
    """Return the percentage of the requests per model URI, without models that do not
    answer.
    """
    shares: dict[str, float] = {}
    weights = traffic_weights(spec)
    if not any(weights.values()):
        return shares
    for name, share in traffic_shares(weights).items():
        if share:
            model_uri = spec.variants[name].model
            shares[model_uri] = shares.get(model_uri, 0.0) + share
    return shares
