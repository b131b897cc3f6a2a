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
    Commands,
    name_argument,
    opened_deployments,
    option,
    show_lines,
    show_progress,
    usage_errors,
    why_option,
    working,
)
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.registry.connection import import_mlflow_without_pandas

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.store import Rollout
    from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments

_POLL_SECONDS = 0.2
_QUIET_SECONDS = 5.0
"""The minimum time between two output lines about one step of a rollout, whose reason
changes with every poll.
"""
_PLACE_SECONDS = 3.0


_wait_option = option(
    "--wait",
    is_flag=True,
    help="Show progress until the rollout ends. Without a controller, run it here.",
)


class _RolloutCommands(Commands):
    """The commands of rollouts. The error for a name without a command shows the order
    of command and name.
    """

    def hint(self, name: str, ctx: click.Context) -> str:
        return f"{super().hint(name, ctx)}, as in `onnxserve rollout status {name}`"


@click.group(cls=_RolloutCommands)
def rollout() -> None:
    """Roll out a new version in steps, with automatic rollback.

    Each step moves more traffic of an endpoint to the new version and compares its live
    metrics with the current version. After the last step, the new version is promoted.
    `onnxserve controller` runs the rollout. Without a controller, use --wait.
    """


@rollout.command()
@name_argument
@option(
    "--to",
    metavar="URI|VERSION",
    required=True,
    help="New version: models:/flight-delay/7, or only 7 for the served model.",
)
@option(
    "--steps",
    default="1,10,50,100",
    metavar="PERCENT,…",
    help="Traffic share of the new version per step, in percent.",
)
@option(
    "--every",
    default="5m",
    metavar="DURATION",
    help="Minimum duration of a step: 30s, 5m, 1h.",
)
@option(
    "--abort-on",
    default="error_rate>1%,p99>2x",
    metavar="CRITERIA",
    help=(
        "Criteria for a rollback: error_rate>1%, p99>2x (also p50, p90, p95, or p99>250ms), "
        "disagreement>20%."
    ),
)
@option(
    "--min-requests",
    type=click.IntRange(min=1),
    default=100,
    metavar="COUNT",
    help="Minimum number of requests to the new version in each step.",
)
@why_option
@_wait_option
def start(
    name: str,
    to: str,
    why: str,
    wait: bool,
    **plan: Any,
) -> None:
    """Start a rollout of the endpoint NAME.

    A version that meets a criterion of --abort-on is rolled back. Exit status 1 if a
    rollout with --wait does not end with the promotion.

    \b
      onnxserve rollout start flights --to models:/flight-delay/7 --steps 1,10,50,100
      --every 5m \\
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
                require_controller(deployments.store, _lease(deployments, name))

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
        if last.is_live and (missing := stall_reason(deployments, name)):
            show_progress(missing)


@rollout.command()
@name_argument
@why_option
def pause(name: str, why: str) -> None:
    """Pause the rollout of the endpoint NAME.

    The current traffic is kept. The criteria of --abort-on still apply.
    """
    _command(name, "pause", why)


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
    _command(name, "abort", why)


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
        if not deployments.store.rollouts(
            name,
            limit=1,
        ):  # The rollouts of a deleted endpoint are kept.
            deployments.store.require_endpoint(name)
        yield deployments


def _command(name: str, action: str, why: str) -> None:
    from mlflow_deploy_plugin.promote.rollouts.commands import command_rollout

    with _opened(name, quiet=action != "abort") as deployments:
        click.echo(command_rollout(deployments, name, action, why))


def _lease(deployments: "Deployments", name: str) -> str:
    from mlflow_deploy_plugin.promote.rollouts.leadership import rollouts_lease_name

    return rollouts_lease_name(deployments.place(name))


def _show_progress(deployments: "Deployments", name: str, wait: bool) -> None:
    """Show the progress of the last rollout until its end, or without `wait`, whether a
    controller runs it.
    """
    from mlflow_deploy_plugin.promote.rollouts.commands import (
        controller_status,
        last_rollout,
        stall_reason,
    )

    if wait:
        _wait_for_rollout(deployments, last_rollout(deployments.store, name))
        return
    stalled = stall_reason(deployments, name)
    look = f"onnxserve rollout status {name}"
    show_progress(
        stalled or controller_status(deployments.store, _lease(deployments, name), look),
    )


@click.command()
@name_argument
@option(
    "--to",
    metavar="VERSION|MODEL",
    show_default="the version served before",
    help="Version to go back to, or a model URI if the endpoint does not follow a stage or alias.",
)
@option(
    "--why",
    default="",
    metavar="REASON",
    help="Reason for the audit trail and a tag of the version in MLflow.",
)
def rollback(name: str, to: str | None, why: str) -> None:
    """Go back to the version that was served before.

    The command ends when the endpoint NAME serves the earlier version. The followed
    stage or alias moves back to the earlier version, and the newer version is archived.
    A running rollout is aborted.
    """
    import_mlflow_without_pandas()
    from mlflow_deploy_plugin.promote.rollouts.rollback import rollback as go_back

    with opened_deployments() as deployments:
        done = go_back(deployments, name, why=why, to=to)
    click.echo(
        f"{name}: {done['model']} {done['to']} instead of {done['from']} after {done['seconds']} "
        f"s; {done['source']}",
    )


def _wait_for_rollout(deployments: "Deployments", begun: "Rollout") -> None:
    """Show the progress of a rollout until its end. If no controller runs the rollout,
    run it in this process.
    """
    from mlflow_deploy_plugin.promote.rollouts.state_machine import rollout_summary

    run = partial(_run_rollouts_of, deployments, begun.endpoint)
    current = begun
    last_printed = ("", -1, "")
    printed_at = 0.0
    # An ended rollout does not need a controller.
    controller = working(run) if begun.is_live else nullcontext()
    with controller:
        try:
            while True:
                current = deployments.store.rollout(begun.id) or begun
                now = (current.state, current.step, current.reason)
                if now[:2] != last_printed[:2] or (
                    now != last_printed and time.monotonic() > printed_at + _QUIET_SECONDS
                ):
                    show_lines([rollout_summary(current)])
                    last_printed = now
                    printed_at = time.monotonic()
                if not current.is_live:
                    break
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            show_progress(
                "the rollout continues if a controller runs; `onnxserve rollout abort "
                f"{begun.endpoint}` rolls it back",
            )
            raise
    if current.state != "promoted":
        raise SystemExit(1)


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
