"""`onnxserve rollout NAME --to models:/X/7` and `onnxserve rollback NAME`: a new version by steps, and the way back."""

import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.cli.options import opened_deployments, why_option

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments import Deployments
    from mlflow_deploy_plugin.store import Rollout


_POLL_SECONDS = 0.2
_QUIET_SECONDS = 5.0
"""The time between two lines about the same step: what it waits for changes with every look."""


@click.command()
@click.argument("name")
@click.option(
    "--to",
    metavar="URI|VERSION",
    help="Version to bring: models:/flight-delay/7, or 7 of the model that is served now.",
)
@click.option(
    "--steps",
    default="1,10,50,100",
    show_default=True,
    metavar="PERCENT,…",
    help="Shares of the traffic, in percent, that it is given one after the other.",
)
@click.option(
    "--every",
    default="5m",
    show_default=True,
    metavar="DURATION",
    help="Length of a step at least: 30s, 5m, 1h.",
)
@click.option(
    "--abort-on",
    default="error_rate>1%,p99>2x",
    show_default=True,
    metavar="CRITERIA",
    help="Criteria that roll it back: error_rate>1%, p99>2x (p50, p90, p95; or p99>250ms), disagreement>20%.",
)
@click.option(
    "--min-requests",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="COUNT",
    help="Number of requests that the new version has to answer in each step.",
)
@why_option
@click.option("--wait", is_flag=True, help="Show the progress until it has ended; run it here if no controller does.")
@click.option("--status", "action", flag_value="status", help="Show where the last rollout is.")
@click.option("--pause", "action", flag_value="pause", help="Keep the traffic of the step; still rolled back if bad.")
@click.option("--resume", "action", flag_value="resume", help="Go on after --pause.")
@click.option("--abort", "action", flag_value="abort", help="Go back to what was served before.")
def rollout(
    name: str,
    to: str | None,
    steps: str,
    every: str,
    abort_on: str,
    min_requests: int,
    why: str,
    wait: bool,
    action: str | None,
) -> None:
    """Bring a new version by steps, and back if it is bad.

    Each step gives it more of the traffic of the endpoint NAME and judges it by live numbers against the version that
    answers now. After the last step it is promoted; if it proves worse, everything goes back by itself. `onnxserve
    controller` does the work: if none runs, nothing begins without --wait. Exit status 1 if --wait sees the rollout
    end other than promoted.

    \b
      onnxserve rollout flights --to models:/flight-delay/7 --steps 1,10,50,100 --every 5m \\
          --abort-on 'error_rate>1%,p99>2x,disagreement>20%'
      onnxserve rollout flights --status
    """
    if (to is None) == (action is None) and not (to is None and wait):
        raise click.UsageError("say one of --to MODEL, --status, --pause, --resume, --abort, --wait")
    # here and below: SQLAlchemy, MLflow and the rest take seconds that no other command should wait for
    from mlflow_deploy_plugin.registry import import_mlflow_without_pandas

    import_mlflow_without_pandas()
    from mlflow_deploy_plugin.controller import (
        command_rollout,
        controller_status,
        describe_rollout,
        last_rollout,
        require_controller,
        rollouts_lease_name,
        stall_reason,
    )

    with opened_deployments(quiet=True) as deployments:
        if not deployments.store.rollouts(name):  # a deleted endpoint may have had one
            deployments.store.require_endpoint(name)
        lease = partial(rollouts_lease_name, deployments.settings)
        if to is not None:
            from mlflow_deploy_plugin.controller import RolloutRequest, start_rollout

            request = RolloutRequest(to, steps, every, abort_on, min_requests, why)

            def check() -> None:
                if not wait:
                    require_controller(deployments.store, lease())

            click.echo(describe_rollout(start_rollout(deployments, name, request, before_it_starts=check)))
        elif action == "status":
            last = last_rollout(deployments.store, name)
            click.echo(describe_rollout(last))
            if last.is_live and (missing := stall_reason(deployments, name)):
                click.echo(missing, err=True)
        elif action is not None:
            click.echo(command_rollout(deployments, name, action, why))
        if wait:
            _wait(deployments, last_rollout(deployments.store, name))
        elif to is not None or action == "resume":
            click.echo(controller_status(deployments.store, lease()), err=True)


@click.command()
@click.argument("name")
@click.option(
    "--to",
    metavar="VERSION|MODEL",
    show_default="what was served before",
    help="Version to go back to, or, of an endpoint that follows nothing, its model URI.",
)
@click.option(
    "--why", default="", metavar="REASON", help="Reason, kept in the audit trail and on the version in MLflow."
)
def rollback(name: str, to: str | None, why: str) -> None:
    """Go back to what was served before.

    It is done when the endpoint NAME answers with the earlier version. The stage or alias that it follows is given back
    to the earlier version, and the newer one is archived; a rollout that is under way is aborted.
    """
    # here: SQLAlchemy, MLflow and the rest take seconds that `--help` should not wait for
    from mlflow_deploy_plugin.registry import import_mlflow_without_pandas

    import_mlflow_without_pandas()
    from mlflow_deploy_plugin.controller import rollback as go_back

    done = go_back(name, why=why, to=to)
    click.echo(
        f"{name}: {done['model']} {done['to']} instead of {done['from']} after {done['seconds']} s; {done['source']}"
    )


def _wait(deployments: "Deployments", begun: "Rollout") -> None:
    """Show the progress of a rollout until it has ended, and run it here if no controller does."""
    from mlflow_deploy_plugin.controller import (
        RolloutActions,
        RolloutController,
        controller_name,
        process_name,
        rollout_summary,
    )

    ended = threading.Event()
    actions = RolloutActions(deployments, controller_name(), lambda line: None)
    controller = RolloutController(deployments.store, actions, process_name())
    worker = threading.Thread(target=controller.run, args=(ended,), name="controller")
    worker.start()
    shown, shown_at = ("", -1, ""), 0.0
    try:
        while True:
            current = next(one for one in deployments.store.rollouts(begun.endpoint) if one.id == begun.id)
            now = (current.state, current.step, current.reason)
            if now[:2] != shown[:2] or (now != shown and time.monotonic() > shown_at + _QUIET_SECONDS):
                click.echo(rollout_summary(current))
                shown, shown_at = now, time.monotonic()
            if not current.is_live:
                break
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        click.echo("it goes on where a controller runs; --abort goes back", err=True)
        raise
    finally:
        ended.set()
        worker.join()
    if current.state != "promoted":
        raise SystemExit(1)
