"""Commands to a rollout: start, pause, resume, abort; and its description for people."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from mlflow_deploy_plugin.controller.leadership import rollouts_lease_name
from mlflow_deploy_plugin.controller.rollouts.controller import RolloutActions, write_progress
from mlflow_deploy_plugin.controller.rollouts.plan import (
    DEFAULT_CRITERIA,
    MIN_REQUESTS,
    RolloutPlan,
    parse_criteria,
    parse_steps,
    plan_of,
)
from mlflow_deploy_plugin.controller.rollouts.state_machine import (
    Progress,
    aborted,
    paused,
    progress_of,
    resumed,
    rollout_summary,
    started_event,
)
from mlflow_deploy_plugin.controller.snapshot import main_variant, take_snapshot
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, NotReady, OnnxserveError, StoreUnavailable
from mlflow_deploy_plugin.registry import ResolvedModel, parse_model_uri, resolve
from mlflow_deploy_plugin.registry.model_uri import ModelURI
from mlflow_deploy_plugin.spec import EndpointSpec, parse_duration
from mlflow_deploy_plugin.store import AuditEvent, Rollout, Store, current_actor
from mlflow_deploy_plugin.store.database import utc_now

CANDIDATE = "candidate"
DEFAULT_STEPS = "1,10,50,100"
DEFAULT_EVERY = "5m"
_ATTEMPTS = 50
_CONTROLLER_SECONDS = 10.0
_POLL_SECONDS = 0.2
_DONE = {"pause": "paused", "resume": "resumed", "abort": "aborted"}


@dataclass(frozen=True)
class RolloutRequest:
    """A rollout as a person asks for it; `to` is a model URI, or a version of the model that is served now.

    Raises InvalidConfig if the steps, their length or the criteria are not valid.
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


def start_rollout(
    deployments: Deployments,
    endpoint: str,
    request: RolloutRequest,
    actor: str | None = None,
    before_it_starts: Callable[[], None] = lambda: None,
) -> Rollout:
    """Store the rollout, which a controller then runs.

    `before_it_starts` is called after the request is found valid; if it raises, nothing is started.

    Raises:
        NotFound: there is no such endpoint or version.
        InvalidConfig: the request is not possible; the message names the possible ones.
        NotReady: the endpoint's server does not answer.
        AlreadyExists: the endpoint has a live rollout.
    """
    deployments.store.require_no_rollout(endpoint)  # first: a live one lets several variants answer
    observed = deployments.get_endpoint(endpoint)
    spec, snapshot = observed.endpoint.spec, take_snapshot(observed)
    main = main_variant(spec)
    if snapshot.state != "running" or (before := snapshot.versions.get(main)) is None:
        why = snapshot.reason or "its workers answer with different versions"
        raise NotReady(f"{endpoint}: {snapshot.state}; {why}")
    reference = parse_model_uri(spec.variants[main].model)
    resolved = _find_version(request.to, spec, reference, before)
    criteria = parse_criteria(request.abort_on)
    candidate = _free_name(CANDIDATE, spec.variants)
    is_compared = any(one.is_of_shadow for one in criteria)
    plan = RolloutPlan(
        endpoint=endpoint,
        main=main,
        candidate=candidate,
        shadow=_free_name(f"{candidate}-shadow", spec.variants) if is_compared else "",
        to_uri=f"models:/{resolved.name}/{resolved.version}",
        model=resolved.name,
        version=resolved.version,
        before_uri=spec.variants[main].model,
        before_version=before,
        kind=reference.kind if reference.kind in ("stage", "alias", "tag") else "pinned",
        selector=reference.selector,
        steps=parse_steps(request.steps),
        every=parse_duration(request.every, "--every").total_seconds(),
        abort_on=",".join(one.text for one in criteria),
        min_requests=request.min_requests,
        actor=actor or current_actor(),
        why=request.why,
    )
    before_it_starts()
    return deployments.store.add_rollout(endpoint, plan.to_json(), "starting", started_event(plan, utc_now()))


def _find_version(to: str, spec: EndpointSpec, served: ModelURI, before: str) -> ResolvedModel:
    """Return the requested version; a number is a version of the served model.

    Raises InvalidConfig if it cannot replace version `before`.
    """
    if to.isdecimal() and served.kind in ("path", "remote", "run", "logged_model"):
        raise InvalidConfig(f"--to {to}: what is served is no registered model; say models:/NAME/{to}")
    found = resolve(f"models:/{served.name}/{to}" if to.isdecimal() else to)
    if not found.version.isdigit():
        raise InvalidConfig(f"{found.model_uri} is no version of a registered model; models:/NAME/7 is expected")
    what = f"{found.name} version {found.version}"
    if served.followed and served.name != found.name:
        raise InvalidConfig(
            f"endpoint {spec.name!r} follows model {served.name}, which {what} cannot become a version of"
        )
    if (found.name, found.version) == (served.name, before):
        raise InvalidConfig(f"endpoint {spec.name!r} serves {what} already")
    if spec.require and not found.gate_status.passed:
        raise InvalidConfig(
            f"endpoint {spec.name!r} requires {spec.require}, and {what} does not have it: {found.gate_status.reason}"
        )
    return found


def _free_name(wanted: str, taken: Iterable[str]) -> str:
    names = [wanted, *(f"{wanted}-{number}" for number in range(2, 100))]
    return next(name for name in names if name not in set(taken))


def last_rollout(store: Store, endpoint: str) -> Rollout:
    """Return the endpoint's live rollout, otherwise its last. Raises NotFound if there was none."""
    found = store.rollouts(endpoint, limit=1)
    if not found:
        raise NotFound(f"endpoint {endpoint!r} has had no rollout")
    return found[0]


def command_rollout(
    deployments: Deployments, endpoint: str, command: str, why: str = "", actor: str | None = None
) -> str:
    """Pause, resume or abort the live rollout, and return its state. Raises NotFound or InvalidConfig."""
    actor = actor or current_actor()
    reason = f"{_DONE[command]} by {actor}" + (f": {why}" if why else "")
    if command == "abort":
        return rollout_summary(abort_rollout(deployments, endpoint, reason, actor))
    change = {"pause": lambda progress: paused(progress, reason), "resume": resumed}[command]
    return rollout_summary(_change(deployments.store, endpoint, command, change, actor))


def abort_rollout(deployments: Deployments, endpoint: str, reason: str, actor: str) -> Rollout:
    """End the live rollout and, if its plan can be read, restore the earlier version. Raises NotFound."""
    store = deployments.store
    for live in store.rollouts(endpoint, live=True):
        try:
            plan_of(live)
        except InvalidConfig as error:
            now, why = utc_now(), f"{reason}; nothing was put back: {error.message}"
            event = AuditEvent(now, actor, "rollout.end", endpoint, why=why, detail={"rollout": live.id})
            abandoned = replace(live, state="abandoned", reason=why, ended_at=now)
            return store.update_rollout(abandoned, None, event) or store.rollout(live.id) or live
    rollout = _change(store, endpoint, "abort", lambda progress: aborted(progress, reason), actor)
    plan, stored = plan_of(rollout), store.endpoint(endpoint)
    is_there = stored is not None and plan.main in stored.spec.variants
    if is_there:
        RolloutActions(deployments, actor, lambda line: None).roll_back(plan, reason)
    progress = replace(progress_of(rollout), state="rolled_back" if is_there else "abandoned")
    return write_progress(store, rollout, progress, actor) or store.rollout(rollout.id) or rollout


def describe_rollout(rollout: Rollout) -> str:
    lines = [rollout_summary(rollout)]
    for text, judged in rollout.figures.get("criteria", {}).items():
        share = min(max(judged["log_evidence"] / judged["log_evidence_needed"], 0), 1)
        lines.append(f"  {text}: {judged['figures']}; {share:.0%} of the evidence that would end it")
    return "\n".join(lines)


def require_controller(store: Store, lease: str, patience: float = _CONTROLLER_SECONDS) -> None:
    """Wait for a new controller to take the lease. Raises NotReady, since the rollout would block others."""
    deadline = time.monotonic() + patience
    while (view := store.lease(lease)) is None or not view.is_current:
        if time.monotonic() > deadline:
            raise NotReady(
                "no controller runs that reaches the server, so nothing was begun: start `onnxserve controller` first, "
                "or say --wait to run the rollout in this command"
            )
        time.sleep(_POLL_SECONDS)


def controller_status(store: Store, lease: str, look: str) -> str:
    """Return a sentence on the controller with this lease, as the store knows it; `look` is the command to watch it."""
    view = store.lease(lease)
    if view is None:
        return "no controller runs: start one with `onnxserve controller`, or say --wait"
    if not view.is_current:
        return f"{view.holder} seems to have ended: start a controller with `onnxserve controller`, or say --wait"
    return f"{view.holder} does it; `{look}` shows how far it is"


def stall_reason(deployments: Deployments, endpoint: str) -> str:
    """Return why the rollout of an endpoint does not advance, as far as this machine knows; empty if it does."""
    try:
        place = deployments.place(endpoint)
    except OnnxserveError as error:
        return f"only a controller that reaches its server takes it further, and from here: {error.message}"
    view = deployments.store.lease(rollouts_lease_name(place))
    if view is not None and view.is_current:
        return ""
    return "it stands still: no controller that reaches its server works; start one with `onnxserve controller`"


def _change(
    store: Store, endpoint: str, command: str, change: Callable[[Progress], Progress | None], actor: str
) -> Rollout:
    for _ in range(_ATTEMPTS):
        live = store.rollouts(endpoint, live=True)
        if not live:
            raise NotFound(f"endpoint {endpoint!r} has no rollout under way")
        changed = change(progress_of(live[0]))
        if changed is None:
            raise InvalidConfig(f"the rollout of {endpoint!r} cannot be {_DONE[command]}: it is {live[0].state}")
        written = write_progress(store, live[0], changed, actor)
        if written is not None:  # None: the controller has written in between
            return written
    raise StoreUnavailable(f"the rollout of {endpoint!r} changes too fast to be changed by hand: try again")
