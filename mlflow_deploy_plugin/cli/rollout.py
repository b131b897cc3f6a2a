"""`onnxserve rollout` and `rollback`: give the traffic to a new version in steps, or back to the previous version."""

import threading
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import opened_deployments, option, show_lines, usage_errors, why_option, working
from mlflow_deploy_plugin.core.errors import OnnxserveError

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.store import Rollout
    from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments

_POLL_SECONDS = 0.2
_QUIET_SECONDS = 5.0
"""The minimum time between two output lines about one step of a rollout, whose reason changes with every poll."""
_PLACE_SECONDS = 3.0


@click.command()
@click.argument("name")
@option("--to", metavar="URI|VERSION", help="New version: models:/flight-delay/7, or only 7 for the served model.")
@option(
    "--steps", default="1,10,50,100", metavar="PERCENT,…", help="Traffic share of the new version per step, in percent."
)
@option("--every", default="5m", metavar="DURATION", help="Minimum duration of a step: 30s, 5m, 1h.")
@option(
    "--abort-on",
    default="error_rate>1%,p99>2x",
    metavar="CRITERIA",
    help="Criteria for a rollback: error_rate>1%, p99>2x (also p50, p90, p95, or p99>250ms), disagreement>20%.",
)
@option(
    "--min-requests",
    type=click.IntRange(min=1),
    default=100,
    metavar="COUNT",
    help="Minimum number of requests to the new version in each step.",
)
@why_option
@option("--wait", is_flag=True, help="Show progress until the rollout ends. Without a controller, run it here.")
@option("--status", "action", flag_value="status", help="Show the state of the last rollout.")
@option("--pause", "action", flag_value="pause", help="Keep the current traffic. Criteria of --abort-on still apply.")
@option("--resume", "action", flag_value="resume", help="Continue after --pause.")
@option("--abort", "action", flag_value="abort", help="Go back to the version that was served before.")
def rollout(name: str, to: str | None, why: str, wait: bool, action: str | None, **plan: Any) -> None:
    """Roll out a new version in steps, with automatic rollback.

    Each step moves more traffic of the endpoint NAME to the new version and compares its live metrics with the current
    version. After the last step, the new version is promoted. A version that meets a criterion of --abort-on is rolled
    back. `onnxserve controller` runs the rollout. Without a controller, use --wait. Exit status 1 if a rollout with
    --wait does not end with the promotion.

    \b
      onnxserve rollout flights --to models:/flight-delay/7 --steps 1,10,50,100 --every 5m \\
          --abort-on 'error_rate>1%,p99>2x,disagreement>20%'
      onnxserve rollout flights --status
    """
    if (to is None) == (action is None) and not (to is None and wait):
        raise click.UsageError("specify exactly one of --to MODEL, --status, --pause, --resume, --abort, --wait")
    from mlflow_deploy_plugin.promote.rollouts.commands import (
        RolloutRequest,
        command_rollout,
        controller_status,
        describe_rollout,
        last_rollout,
        require_controller,
        stall_reason,
    )
    from mlflow_deploy_plugin.promote.rollouts.leadership import rollouts_lease_name

    with usage_errors():
        request = None if to is None else RolloutRequest(to, **plan, why=why)
    with opened_deployments(quiet=action != "abort") as deployments:
        if not deployments.store.rollouts(name, limit=1):  # The rollouts of a deleted endpoint are kept.
            deployments.store.require_endpoint(name)

        def lease() -> str:
            return rollouts_lease_name(deployments.place(name))

        if request is not None:
            from mlflow_deploy_plugin.core.registry.connection import import_mlflow_without_pandas
            from mlflow_deploy_plugin.promote.rollouts.commands import start_rollout

            import_mlflow_without_pandas()

            def check() -> None:
                if not wait:
                    require_controller(deployments.store, lease())

            show_lines(describe_rollout(start_rollout(deployments, name, request, before_it_starts=check)).split("\n"))
        elif action == "status":
            last = last_rollout(deployments.store, name)
            show_lines(describe_rollout(last).split("\n"))
            if last.is_live and (missing := stall_reason(deployments, name)):
                click.echo(missing, err=True)
        elif action is not None:
            click.echo(command_rollout(deployments, name, action, why))
        if wait:
            _wait_for_rollout(deployments, last_rollout(deployments.store, name))
        elif to is not None or action == "resume":
            stalled = stall_reason(deployments, name)
            look = f"onnxserve rollout {name} --status"
            click.echo(stalled or controller_status(deployments.store, lease(), look), err=True)


@click.command()
@click.argument("name")
@option(
    "--to",
    metavar="VERSION|MODEL",
    show_default="the version served before",
    help="Version to go back to, or a model URI if the endpoint does not follow a stage or alias.",
)
@option("--why", default="", metavar="REASON", help="Reason for the audit trail and a tag of the version in MLflow.")
def rollback(name: str, to: str | None, why: str) -> None:
    """Go back to the version that was served before.

    The command ends when the endpoint NAME serves the earlier version. The followed stage or alias moves back to the
    earlier version, and the newer version is archived. A running rollout is aborted.
    """
    from mlflow_deploy_plugin.core.registry.connection import import_mlflow_without_pandas

    import_mlflow_without_pandas()
    from mlflow_deploy_plugin.promote.rollouts.rollback import rollback as go_back

    with opened_deployments() as deployments:
        done = go_back(deployments, name, why=why, to=to)
    click.echo(
        f"{name}: {done['model']} {done['to']} instead of {done['from']} after {done['seconds']} s; {done['source']}"
    )


def _wait_for_rollout(deployments: "Deployments", begun: "Rollout") -> None:
    """Show the progress of a rollout until its end. If no controller runs the rollout, run it in this process."""
    from mlflow_deploy_plugin.promote.rollouts.state_machine import rollout_summary

    run = partial(_run_rollouts_of, deployments, begun.endpoint)
    current, last_printed, printed_at = begun, ("", -1, ""), 0.0
    with working(run) if begun.is_live else nullcontext():  # An ended rollout does not need a controller.
        try:
            while True:
                current = deployments.store.rollout(begun.id) or begun
                now = (current.state, current.step, current.reason)
                if now[:2] != last_printed[:2] or (
                    now != last_printed and time.monotonic() > printed_at + _QUIET_SECONDS
                ):
                    show_lines([rollout_summary(current)])
                    last_printed, printed_at = now, time.monotonic()
                if not current.is_live:
                    break
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            click.echo("the rollout continues if a controller runs; --abort rolls it back", err=True)
            raise
    if current.state != "promoted":
        raise SystemExit(1)


def _run_rollouts_of(deployments: "Deployments", endpoint: str, ended: threading.Event) -> None:
    """Run the rollouts at the place of an endpoint's server until `ended` is set. Retry while it is unreachable."""
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
