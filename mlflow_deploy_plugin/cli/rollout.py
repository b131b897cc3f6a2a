"""`onnxserve rollout` and `rollback`: give the traffic to a new version in steps, or
back to the previous version.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    POSITIVE,
    Commands,
    dry_run_flag,
    flag,
    name_argument,
    opened_deployments,
    option,
    reason_option,
    show_lines,
    show_progress,
    usage_errors,
    why_option,
    working,
)
from mlflow_deploy_plugin.cli.promote import follower_lines
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.registry.connection import import_mlflow_without_pandas

if TYPE_CHECKING:
    from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments

_POLL_SECONDS = 0.2
_QUIET_SECONDS = 5.0
"""The minimum time between two output lines about one step of a rollout, whose reason
changes with every poll.
"""
_PLACE_SECONDS = 3.0


_wait_option = flag(
    "--wait", "Show progress until the rollout ends. Without a controller, run it here."
)


@click.group(cls=Commands, example="status")
def rollout() -> None:
    """Roll out a new version in steps, with automatic rollback.

    Each step moves more traffic of an endpoint to the new version and compares its live
    metrics with the current version. After the last step, the new version is promoted.
    `onnxserve controller` runs the rollout. Without a controller, use --wait.
    """


@rollout.command()
@name_argument
@option(
    "--to URI|VERSION",
    "New version: models:/flight-delay/7, or only 7 for the served model.",
    required=True,
)
@option(
    "--steps PERCENT,…",
    "Traffic share of the new version per step, in percent.",
    default="1,10,50,100",
)
@option("--every DURATION", "Minimum duration of a step: 30s, 5m, 1h.", default="5m")
@option(
    "--abort-on CRITERIA",
    "Criteria for a rollback: error_rate>1%, p99>2x (also p50, p90, p95, or p99>250ms), "
    "disagreement>20%.",
    default="error_rate>1%,p99>2x",
)
@option(
    "--min-requests COUNT",
    "Minimum number of requests to the new version in each step.",
    type=POSITIVE,
    default=100,
)
@why_option
@_wait_option
def start(name: str, to: str, why: str, wait: bool, **plan: Any) -> None:
    """Start a rollout of the endpoint NAME.

    A version that meets a criterion of --abort-on is rolled back. Exit status 1 if a
    rollout with --wait does not end with the promotion.

    \b
      onnxserve rollout start flights --to models:/flight-delay/7 \\
          --steps 1,10,50,100 --every 5m \\
          --abort-on 'error_rate>1%,p99>2x,disagreement>20%'
      onnxserve rollout status flights
    """
    from mlflow_deploy_plugin.promote.rollouts.commands import (
        RolloutRequest,
        describe_rollout,
        require_controller,
        start_rollout,
    )

    with usage_errors():
        request = RolloutRequest(to, **plan, why=why)
    with _opened(name) as deployments:
        import_mlflow_without_pandas()

        def check() -> None:
            if not wait:
                require_controller(deployments.store, _lease_name(deployments, name))

        begun = start_rollout(deployments, name, request, before_it_starts=check)
        show_lines(describe_rollout(begun).split("\n"))
        _show_progress(deployments, name, wait)


@rollout.command()
@name_argument
def status(name: str) -> None:
    """Show the last rollout of the endpoint NAME."""
    from mlflow_deploy_plugin.promote.rollouts.commands import (
        describe_rollout,
        last_rollout,
        stall_reason,
    )

    with _opened(name) as deployments:
        last = last_rollout(deployments.store, name)
        show_lines(describe_rollout(last).split("\n"))
        stalled = stall_reason(deployments, name) if last.is_live else ""
        if stalled:
            show_progress(stalled)


@rollout.command()
@name_argument
@why_option
def pause(name: str, why: str) -> None:
    """Pause the rollout of the endpoint NAME.

    The current traffic is kept. The criteria of --abort-on still apply.
    """
    _change_rollout(name, "pause", why)


@rollout.command()
@name_argument
@why_option
@_wait_option
def resume(name: str, why: str, wait: bool) -> None:
    """Resume the paused rollout of the endpoint NAME."""
    from mlflow_deploy_plugin.promote.rollouts.commands import command_rollout

    with _opened(name) as deployments:
        click.echo(command_rollout(deployments, name, "resume", why))
        _show_progress(deployments, name, wait)


@rollout.command()
@name_argument
@why_option
def abort(name: str, why: str) -> None:
    """Go back to the version before the rollout.

    The rollout of the endpoint NAME ends. This does not need a controller.
    """
    _change_rollout(name, "abort", why)


@rollout.command()
@name_argument
def wait(name: str) -> None:
    """Show the progress of a rollout until its end.

    The rollout is the last one of the endpoint NAME. Without a controller, it is run
    here. Exit status 1 if it does not end with the promotion.
    """
    with _opened(name) as deployments:
        _show_progress(deployments, name, wait=True)


@contextmanager
def _opened(name: str, quiet: bool = True) -> Iterator["Deployments"]:
    """Open the deployments. Raise NotFound if there is neither an endpoint nor a
    rollout of this name.
    """
    with opened_deployments(quiet=quiet) as deployments:
        # The rollouts of a deleted endpoint are kept.
        if not deployments.store.rollouts(name, limit=1):
            deployments.store.require_endpoint(name)
        yield deployments


def _change_rollout(name: str, action: str, why: str) -> None:
    """Pause or abort the rollout, and print the result. Only an abort reports its
    steps, because it changes the traffic.
    """
    from mlflow_deploy_plugin.promote.rollouts.commands import command_rollout

    with _opened(name, quiet=action != "abort") as deployments:
        click.echo(command_rollout(deployments, name, action, why))


def _lease_name(deployments: "Deployments", name: str) -> str:
    """Return the name of the lease of the controller that runs rollouts of the
    endpoint.
    """
    from mlflow_deploy_plugin.promote.rollouts.leadership import rollouts_lease_name

    return rollouts_lease_name(deployments.place(name))


def _show_progress(deployments: "Deployments", name: str, wait: bool) -> None:
    """Show the progress of the last rollout until its end, or without `wait`, whether a
    controller runs it.

    A new state or step is printed at once, and a new reason after `_QUIET_SECONDS`.
    """
    from mlflow_deploy_plugin.promote.rollouts.commands import (
        controller_status,
        last_rollout,
        stall_reason,
    )
    from mlflow_deploy_plugin.promote.rollouts.state_machine import rollout_summary

    if not wait:
        progress = stall_reason(deployments, name)
        if not progress:
            lease = _lease_name(deployments, name)
            status_command = f"onnxserve rollout status {name}"
            progress = controller_status(deployments.store, lease, status_command)
        show_progress(progress)
        return
    current = last_rollout(deployments.store, name)
    run = partial(_run_rollouts_of, deployments, current.endpoint)
    # An ended rollout does not need a controller.
    controller = working(run) if current.is_live else nullcontext()
    shown: tuple[str, int] | None = None
    shown_reason = ""
    shown_at = 0.0
    with controller:
        try:
            while True:
                current = deployments.store.rollout(current.id) or current
                is_due = (current.state, current.step) != shown
                if not is_due and time.monotonic() > shown_at + _QUIET_SECONDS:
                    is_due = current.reason != shown_reason
                if is_due:
                    show_lines([rollout_summary(current)])
                    shown = (current.state, current.step)
                    shown_reason = current.reason
                    shown_at = time.monotonic()
                if not current.is_live:
                    break
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            show_progress(
                "the rollout continues if a controller runs; `onnxserve rollout abort "
                f"{current.endpoint}` rolls it back"
            )
            raise
    if current.state != "promoted":
        raise SystemExit(1)


@click.command()
@name_argument
@option(
    "--to VERSION|MODEL",
    "Version to go back to, or a model URI if the endpoint does not follow a stage or alias.",
    show_default="the version served before",
)
@reason_option("Reason for the audit trail and a tag of the version in MLflow.")
@dry_run_flag
def rollback(name: str, to: str | None, why: str, dry_run: bool) -> None:
    """Go back to the version that was served before.

    The command ends when the endpoint NAME serves the earlier version. The followed
    stage or alias moves back to the earlier version, and the newer version is archived.
    A running rollout is aborted.
    """
    import_mlflow_without_pandas()
    from mlflow_deploy_plugin.promote.rollouts.rollback import foresee_rollback, version_or_uri
    from mlflow_deploy_plugin.promote.rollouts.rollback import rollback as go_back

    with opened_deployments() as deployments:
        if dry_run:
            move = foresee_rollback(deployments, name, to)
            before = version_or_uri(move.before) or "no version"
            after = version_or_uri(move.after)
            click.echo(f"{name}: {move.model} would go from {before} to {after}; {move.source}")
            show_lines(follower_lines(deployments, move.model))
            return
        result = go_back(deployments, name, why=why, to=to)
    click.echo(
        f"{name}: {result['model']} {result['to']} instead of {result['from']} after "
        f"{result['seconds']} s; {result['source']}"
    )


def _run_rollouts_of(deployments: "Deployments", endpoint: str, ended: threading.Event) -> None:
    """Run the rollouts at the place of an endpoint's server until `ended` is set. Retry
    while it is unreachable.
    """
    from mlflow_deploy_plugin.promote.rollouts.controller import RolloutActions, RolloutController
    from mlflow_deploy_plugin.promote.rollouts.leadership import controller_name, process_name

    is_told = False
    while not ended.is_set():
        try:
            place = deployments.place(endpoint)
        except OnnxserveError as error:
            if not is_told:
                click.echo(f"the rollout needs another controller: {error.message}", err=True)
                is_told = True
            ended.wait(_PLACE_SECONDS)
        else:
            actions = RolloutActions(deployments, controller_name(), lambda line: None)
            RolloutController(deployments.store, actions, process_name(), place).run(ended)
