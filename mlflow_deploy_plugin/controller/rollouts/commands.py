"""Commands to a rollout: pause, resume, abort; and its description for people."""

import time
from collections.abc import Callable
from dataclasses import replace

from mlflow_deploy_plugin.controller.locality import is_local, rollouts_lease_name
from mlflow_deploy_plugin.controller.rollouts.actions import RolloutActions
from mlflow_deploy_plugin.controller.rollouts.state_machine import (
    Progress,
    aborted,
    paused,
    plan_of,
    progress_event,
    progress_of,
    resumed,
    rollout_summary,
    with_progress,
)
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, NotReady, StoreUnavailable
from mlflow_deploy_plugin.store import Rollout, Store, current_actor, utc_now

_ATTEMPTS = 50
_CONTROLLER_SECONDS = 10.0
_POLL_SECONDS = 0.2
_DONE = {"pause": "paused", "resume": "resumed", "abort": "aborted"}


def last_rollout(store: Store, endpoint: str) -> Rollout:
    """Return the live rollout of an endpoint, or else its last one. Raises NotFound if there was none."""
    found = store.rollouts(endpoint)
    if not found:
        raise NotFound(f"endpoint {endpoint!r} has had no rollout")
    return found[-1]


def command_rollout(
    deployments: Deployments, endpoint: str, command: str, why: str = "", actor: str | None = None
) -> str:
    """Pause, resume or abort the live rollout, and return its state in one line.

    Raises:
        NotFound: there is none.
        InvalidConfig: its state does not allow the command.
    """
    actor = actor or current_actor()
    reason = f"{_DONE[command]} by {actor}" + (f": {why}" if why else "")
    if command == "abort":
        return rollout_summary(abort_rollout(deployments, endpoint, reason, actor))
    change = {"pause": lambda progress: paused(progress, reason), "resume": resumed}[command]
    return rollout_summary(_change(deployments.store, endpoint, command, change, actor))


def abort_rollout(deployments: Deployments, endpoint: str, reason: str, actor: str) -> Rollout:
    """End the live rollout and go back to what was served before. This needs no controller.

    Raises:
        NotFound: there is none.
    """
    rollout = _change(deployments.store, endpoint, "abort", lambda progress: aborted(progress, reason), actor)
    plan, stored = plan_of(rollout), deployments.store.endpoint(endpoint)
    is_there = stored is not None and plan.main in stored.spec.variants
    if is_there:
        RolloutActions(deployments, actor, lambda line: None).roll_back(plan, reason)
    progress = replace(progress_of(rollout), state="rolled_back" if is_there else "abandoned")
    ended = _write(deployments.store, rollout, progress, actor)
    return ended or next(one for one in deployments.store.rollouts(endpoint) if one.id == rollout.id)


def describe_rollout(rollout: Rollout) -> str:
    """Return the rollout's state and the evidence of each criterion, in a few lines."""
    lines = [rollout_summary(rollout)]
    for text, judged in rollout.figures.get("criteria", {}).items():
        share = min(max(judged["log_evidence"] / judged["log_evidence_needed"], 0), 1)
        lines.append(f"  {text}: {judged['figures']}; {share:.0%} of the evidence that would end it")
    return "\n".join(lines)


def require_controller(store: Store, lease: str, patience: float = _CONTROLLER_SECONDS) -> None:
    """Return when a controller has the lease. One that was started just now is waited for.

    Raises:
        NotReady: none has it; a rollout would stand still, and block others.
    """
    first, deadline = store.lease(lease), time.monotonic() + patience
    view = first
    # a controller whose machine's clock is behind ours is known by its renewals
    while view is None or (view.expires_at < utc_now() and (first is None or view.expires_at == first.expires_at)):
        if time.monotonic() > deadline:
            raise NotReady(
                "no controller runs beside the server, so nothing was begun: start `onnxserve controller` first, or "
                "say --wait to run the rollout in this command"
            )
        time.sleep(_POLL_SECONDS)
        view = store.lease(lease)


def controller_status(store: Store, lease: str) -> str:
    """Say if a controller that has this lease runs, as far as the store knows."""
    view = store.lease(lease)
    if view is None:
        return "no controller runs: start one with `onnxserve controller`, or say --wait"
    if view.expires_at < utc_now():
        return f"{view.holder} seems to have ended: start a controller with `onnxserve controller`, or say --wait"
    return f"{view.holder} does it; `onnxserve rollout NAME --status` shows how far it is"


def stall_reason(deployments: Deployments, endpoint: str) -> str:
    """Say why the rollout of an endpoint stands still, as far as this machine knows; empty if it does not."""
    if not is_local(endpoint, deployments.settings):
        return "only a controller on the machine of its server takes it further: whether one runs is told there"
    view = deployments.store.lease(rollouts_lease_name(deployments.settings))
    if view is not None and view.expires_at >= utc_now():
        return ""
    return "it stands still: no controller beside its server works; start one there with `onnxserve controller`"


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
        written = _write(store, live[0], changed, actor)
        if written is not None:  # else the controller has written in between
            return written
    raise StoreUnavailable(f"the rollout of {endpoint!r} changes too fast to be changed by hand: try again")


def _write(store: Store, rollout: Rollout, progress: Progress, actor: str) -> Rollout | None:
    now = utc_now()
    event = progress_event(rollout, progress, actor, now)
    return store.update_rollout(with_progress(rollout, progress, now), None, event)
