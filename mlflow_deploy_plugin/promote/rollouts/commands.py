"""Commands that start, pause, resume and abort a rollout, the description of a rollout
for users, and the end of the time for versions without an approval.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotFound,
    NotReady,
    OnnxserveError,
    StoreUnavailable,
)
from mlflow_deploy_plugin.core.registry.model_uri import (
    parse_model_uri,
    registered_model_names,
)
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.spec.parts import GATE_PASSED
from mlflow_deploy_plugin.core.spec.types import parse_duration
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.database import utc_now
from mlflow_deploy_plugin.core.store.store import Endpoint, Rollout, Store
from mlflow_deploy_plugin.promote.rollouts.controller import RolloutActions, write_progress
from mlflow_deploy_plugin.promote.rollouts.leadership import (
    log_errors,
    reaches,
    rollouts_lease_name,
)
from mlflow_deploy_plugin.promote.rollouts.plan import (
    DEFAULT_CRITERIA,
    MIN_REQUESTS,
    RolloutPlan,
    parse_criteria,
    parse_steps,
    plan_of,
)
from mlflow_deploy_plugin.promote.rollouts.snapshot import (
    main_variant,
    take_snapshot,
)
from mlflow_deploy_plugin.promote.rollouts.state_machine import (
    Progress,
    aborted,
    paused,
    progress_of,
    resumed,
    rollout_summary,
    started_event,
)
from mlflow_deploy_plugin.ship.deployments.config import traffic_weights
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.unapproved import (
    answers_of,
    is_promoted,
    lacking_approval,
    require_rollout,
)

_log = logging.getLogger(__name__)
CANDIDATE = "candidate"
DEFAULT_STEPS = "1,10,50,100"
DEFAULT_EVERY = "5m"
_ATTEMPTS = 50
_CONTROLLER_SECONDS = 10.0
_POLL_SECONDS = 0.2
_PARTICIPLES = {"pause": "paused", "resume": "resumed", "abort": "aborted"}


@dataclass(frozen=True)
class RolloutRequest:
    """A rollout that a user requests. `to` is a model URI or a version of the model
    that is served now.

    Raises InvalidConfig if the steps, their duration or the criteria are not valid.
    """

    to: str
    steps: str = DEFAULT_STEPS
    every: str = DEFAULT_EVERY
    abort_on: str = DEFAULT_CRITERIA
    min_requests: int = MIN_REQUESTS
    why: str = ""

    def __post_init__(self) -> None:
        parse_steps(self.steps)
        parse_criteria(self.abort_on)
        parse_duration(self.every, "--every")

    @property
    def seconds(self) -> float:
        """The duration of a step."""
        return parse_duration(self.every, "--every").total_seconds()


def start_rollout(
    deployments: Deployments,
    endpoint: str,
    request: RolloutRequest,
    actor: str | None = None,
    before_it_starts: Callable[[], None] = lambda: None,
) -> Rollout:
    """Store the rollout, which a controller then runs.

    `before_it_starts` is called after the request was validated. If this call raises,
    the rollout is not started.

    Raises NotFound, InvalidConfig if the request is not valid, NotReady if the
    endpoint's server does not answer, GateRefused if the version lacks approvals beyond
    the limit of the policy, and AlreadyExists if the endpoint has a live rollout.
    """
    # Check first: during a rollout, `main_variant` fails.
    deployments.store.require_no_rollout(endpoint)
    observed = deployments.get_endpoint(endpoint)
    plan = _plan_rollout(observed, request, actor or deployments.store.user)
    before_it_starts()
    return deployments.store.add_rollout(
        endpoint,
        plan.to_json(),
        "starting",
        started_event(plan, utc_now()),
    )


def _plan_rollout(observed: ObservedEndpoint, request: RolloutRequest, actor: str) -> RolloutPlan:
    """Return the plan of a valid request.

    The requested version may be the number of a version of the served model. Raises
    InvalidConfig if it cannot replace the served version: it is not registered, is of a
    model that the endpoint does not follow, is served already, or lacks the verdict
    that the endpoint requires. Raises NotReady if the served version is not known, and
    GateRefused if the version may not answer so many requests without approvals.
    """
    spec = observed.endpoint.spec
    if spec.observe is not None:
        raise NotReady(f"{spec.name}: another server serves the model: roll the version out there")
    main = main_variant(spec)
    snapshot = take_snapshot(observed)
    before = snapshot.versions.get(main)
    if snapshot.state != "running" or before is None:
        raise NotReady(
            f"{spec.name}: {snapshot.state}; "
            f"{snapshot.reason or 'the workers serve different versions'}"
        )
    reference = parse_model_uri(spec.variants[main].model)
    if request.to.isdecimal() and reference.kind in ("path", "remote", "run", "logged_model"):
        raise InvalidConfig(
            f"--to {request.to}: the endpoint does not serve a registered model; use "
            f"models:/NAME/{request.to}"
        )
    resolved = resolve(requested_uri(request.to, reference.name))
    if not resolved.version.isdigit():
        raise InvalidConfig(
            f"{resolved.model_uri} is not a version of a registered model; use a URI like "
            "models:/NAME/7"
        )
    what = f"{resolved.name} version {resolved.version}"
    if reference.followed and reference.name != resolved.name:
        raise InvalidConfig(
            f"endpoint {spec.name!r} follows model {reference.name}, so {what} cannot be rolled "
            "out to it"
        )
    if (resolved.name, resolved.version) == (reference.name, before):
        raise InvalidConfig(f"endpoint {spec.name!r} already serves {what}")
    if spec.requires_gate and not resolved.gate_status.passed:
        raise InvalidConfig(
            f"endpoint {spec.name!r} requires {GATE_PASSED}, which {what} does not have: "
            f"{resolved.gate_status.reason}"
        )
    steps = parse_steps(request.steps)
    limit = require_rollout(resolved.source, steps, request.seconds, registered_model_names(spec))
    criteria = parse_criteria(request.abort_on)
    candidate = _free_name(CANDIDATE, spec.variants)
    has_shadow = any(criterion.is_of_shadow for criterion in criteria)
    return RolloutPlan(
        endpoint=spec.name,
        main=main,
        candidate=candidate,
        shadow=_free_name(f"{candidate}-shadow", spec.variants) if has_shadow else "",
        to_uri=resolved.source,
        model=resolved.name,
        version=resolved.version,
        before_uri=spec.variants[main].model,
        before_version=before,
        kind=reference.kind if reference.kind in ("stage", "alias", "tag") else "pinned",
        selector=reference.selector,
        steps=steps,
        every=request.seconds,
        abort_on=",".join(criterion.text for criterion in criteria),
        min_requests=request.min_requests,
        actor=actor,
        why="; ".join(filter(None, [request.why, limit])),
    )


def requested_uri(to: str, model: str) -> str:
    """Return the URI that a user requests with `--to`, which may be a version of the
    model.
    """
    return f"models:/{model}/{int(to)}" if to.isdecimal() else to


def _free_name(preferred: str, taken: Iterable[str]) -> str:
    names = [preferred, *(f"{preferred}-{number}" for number in range(2, 100))]
    return next(name for name in names if name not in set(taken))


def last_rollout(store: Store, endpoint: str) -> Rollout:
    """Return the endpoint's live rollout, or its last rollout if none is live. Raises
    NotFound without any rollout.
    """
    rollouts = store.rollouts(endpoint, limit=1)
    if not rollouts:
        raise NotFound(f"endpoint {endpoint!r} has had no rollout")
    return rollouts[0]


def command_rollout(
    deployments: Deployments,
    endpoint: str,
    command: str,
    why: str = "",
    actor: str | None = None,
) -> str:
    """Pause, resume or abort the live rollout, and return its state. Raises NotFound or
    InvalidConfig.
    """
    actor = actor or deployments.store.user
    reason = f"{_PARTICIPLES[command]} by {actor}"
    if why:
        reason += f": {why}"
    if command == "abort":
        return rollout_summary(abort_rollout(deployments, endpoint, reason, actor))
    change = resumed if command == "resume" else partial(paused, reason=reason)
    return rollout_summary(_change_progress(deployments.store, endpoint, command, change, actor))


def abort_rollout(deployments: Deployments, endpoint: str, reason: str, actor: str) -> Rollout:
    """End the live rollout and, if its plan can be read, restore the earlier version.
    Raises NotFound.
    """
    store = deployments.store
    for live in store.rollouts(endpoint, live=True):
        try:
            plan_of(live)
        except InvalidConfig as error:
            why = f"{reason}; the earlier version was not restored: {error.message}"
            now = utc_now()
            detail = {"rollout": live.id}
            event = AuditEvent(now, actor, "rollout.end", endpoint, why=why, detail=detail)
            abandoned = replace(live, state="abandoned", reason=why, ended_at=now)
            return store.update_rollout(abandoned, None, event) or store.rollout(live.id) or live
    rollout = _change_progress(store, endpoint, "abort", partial(aborted, reason=reason), actor)
    plan = plan_of(rollout)
    stored = store.endpoint(endpoint)
    progress = replace(progress_of(rollout), state="abandoned")
    if stored is not None and plan.main in stored.spec.variants:
        RolloutActions(deployments, actor, lambda line: None).roll_back(plan, reason)
        progress = replace(progress, state="rolled_back")
    return write_progress(store, rollout, progress, actor) or store.rollout(rollout.id) or rollout


def describe_rollout(rollout: Rollout) -> str:
    """Return the summary of the rollout, and a line per criterion with its share of the
    evidence.
    """
    lines = [rollout_summary(rollout)]
    for text, judged in rollout.figures.get("criteria", {}).items():
        share = min(max(judged["log_evidence"] / judged["log_evidence_needed"], 0), 1)
        lines.append(
            f"  {text}: {judged['figures']}; {share:.0%} of the evidence needed to end the rollout"
        )
    return "\n".join(lines)


def require_controller(store: Store, lease: str, patience: float = _CONTROLLER_SECONDS) -> None:
    """Wait for a controller to take the lease. Raises NotReady if no controller does:
    the rollout would hang.
    """
    deadline = time.monotonic() + patience
    while not _is_held(store, lease):
        if time.monotonic() > deadline:
            raise NotReady(
                "no controller that can reach the server is running, so the rollout was not "
                "started: start `onnxserve controller` first, or use --wait to run the rollout in "
                "this command"
            )
        time.sleep(_POLL_SECONDS)


def controller_status(store: Store, lease: str, look: str) -> str:
    """Return a sentence about the lease's controller. `look` is the command with which
    a user sees the progress.
    """
    view = store.lease(lease)
    if view is None:
        return "no controller is running: start `onnxserve controller`, or use --wait"
    if not view.is_current:
        return f"{view.holder} seems to have stopped: start `onnxserve controller`, or use --wait"
    return f"{view.holder} runs it; `{look}` shows the progress"


def stall_reason(deployments: Deployments, endpoint: str) -> str:
    """Return the reason why the endpoint's rollout does not advance, if this machine
    can detect it; otherwise empty.
    """
    try:
        location = deployments.place(endpoint)
    except OnnxserveError as error:
        return (
            "only a controller that can reach the server can continue the rollout; from here: "
            f"{error.message}"
        )
    if _is_held(deployments.store, rollouts_lease_name(location)):
        return ""
    return (
        "the rollout is stalled: no controller that can reach the server is running; start "
        "`onnxserve controller`"
    )


def _is_held(store: Store, lease: str) -> bool:
    view = store.lease(lease)
    return view is not None and view.is_current


def _change_progress(
    store: Store,
    endpoint: str,
    command: str,
    change: Callable[[Progress], Progress | None],
    actor: str,
) -> Rollout:
    """Change the progress of the live rollout, and return the rollout. If a controller
    changes it at the same time, try again.

    Raises NotFound without a live rollout, InvalidConfig if `change` returns None
    because the state does not permit the command, and StoreUnavailable if all attempts
    fail.
    """
    for _ in range(_ATTEMPTS):
        live = store.rollouts(endpoint, live=True)
        if not live:
            raise NotFound(f"endpoint {endpoint!r} has no live rollout")
        changed = change(progress_of(live[0]))
        if changed is None:
            refused = f"the rollout of {endpoint!r} cannot be {_PARTICIPLES[command]}"
            raise InvalidConfig(f"{refused}: it is {live[0].state}")
        written = write_progress(store, live[0], changed, actor)
        # None means that a controller has changed the rollout in the meantime.
        if written is not None:
            return written
    raise StoreUnavailable(
        f"the rollout of {endpoint!r} was changed at the same time by its controller; try again"
    )


def end_unapproved(deployments: Deployments, location: str, actor: str) -> None:
    """Take the traffic from the versions at this location whose time without an
    approval is over.

    An endpoint that fails is logged, and does not extend the time at the other
    endpoints.
    """
    for stored in deployments.store.endpoints():
        if stored.unapproved:
            log_errors(partial(_end_overdue, deployments, stored, location, actor))


def _end_overdue(deployments: Deployments, stored: Endpoint, location: str, actor: str) -> None:
    """Abort the live rollout of an endpoint at this location or, without a rollout,
    take the traffic from its overdue versions. If no other deployment could answer,
    only log a warning.
    """
    store = deployments.store
    now = store.now()
    overdue = []
    for answer in answers_of(stored):
        if answer.ends_at > now:
            continue
        # Ask MLflow's server, because anybody with the store's password may write a
        # promotion into the audit trail.
        try:
            lacks_approval = lacking_approval(answer.model_uri, [answer.model]) is not None
        except OnnxserveError:
            # MLflow does not answer, the version was deleted, or the policy cannot be
            # read.
            lacks_approval = not is_promoted(store, answer)
        if lacks_approval:
            overdue.append(answer)
    if not overdue or not reaches(deployments, stored.name, location):
        return
    name = stored.name
    models = {answer.model_uri for answer in overdue}
    names = " and ".join(sorted(models))
    reason = f"the time is over for which the policy permits {names} without an approval"
    if store.rollouts(name, live=True):
        abort_rollout(deployments, name, reason, actor)
        return
    weights = traffic_weights(stored.spec)
    for variant in weights:
        if stored.spec.variants[variant].model in models:
            weights[variant] = 0
    if any(weights.values()):
        deployments.set_traffic(name, weights, reason, actor, restores=True)
    else:
        _log.warning("%s: %s, and no other deployment could answer", name, reason)
