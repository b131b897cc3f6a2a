"""`onnxserve retrain NAME`: train the model behind an endpoint now, on what was captured and labelled."""

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mlflow_deploy_plugin.cli.options import opened_deployments, why_option

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments import Deployments
    from mlflow_deploy_plugin.store import Retraining

_POLL_SECONDS = 0.5
_LEASE_SECONDS = 15.0


@click.command()
@click.argument("name", required=False)
@click.option(
    "--monitor",
    metavar="MONITOR",
    show_default="the only one that has it",
    help="Monitor whose `retrain` says how.",
)
@click.option(
    "--mode",
    type=click.Choice(["full", "incremental"]),
    show_default="the monitor's",
    help="Training anew on all labelled rows, or learning the window's on top of what is served.",
)
@click.option(
    "--window",
    metavar="START/END",
    show_default="the latest whole one",
    help="Window of event time in UTC whose labelled rows are learned: 2013-07-01/2013-08-01, 2013-07-01/1d.",
)
@why_option
@click.option("--wait", is_flag=True, help="Show the progress until it has ended, or a rollout brings the version.")
@click.option("--list", "listed", is_flag=True, help="Show the retrainings (of NAME), oldest first.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of what --list shows.",
)
def retrain(
    name: str | None,
    monitor: str | None,
    mode: str | None,
    window: str | None,
    why: str,
    wait: bool,
    listed: bool,
    output: str,
) -> None:
    """Train what is served on what was captured and labelled.

    The model that the endpoint NAME serves is trained now, as the `retrain` of its monitor says. The gate compares the
    run's version with the served one; then it comes by a rollout, is proposed, or is left. Cool-down and budget limit
    alarms, not people. `onnxserve controller` does the work.

    \b
      onnxserve retrain flights --mode incremental --why 'new carrier'
      onnxserve retrain --list
    """
    if not listed and name is None:
        raise click.UsageError("say which endpoint (NAME), or --list")
    if listed and (monitor or mode or window or why or wait):
        raise click.UsageError("--list starts nothing: beside it are NAME and -o alone")
    if not listed and output != "text":
        raise click.UsageError("-o is of --list")
    # here and below: SQLAlchemy, MLflow and the rest take seconds that no other command should wait for
    with opened_deployments(quiet=True) as deployments:
        if listed:
            _list(deployments, name, output)
            return
        from mlflow_deploy_plugin.controller import (
            STORE_LEASE,
            controller_status,
            request_retraining,
            retraining_summary,
        )
        from mlflow_deploy_plugin.inference_log import parse_window

        assert name is not None
        begun = request_retraining(deployments, name, monitor, mode, why, parse_window(window) if window else None)
        if wait:
            _wait(deployments, begun)
        else:
            click.echo(retraining_summary(begun))
            click.echo(controller_status(deployments.store, STORE_LEASE), err=True)


def _list(deployments: "Deployments", name: str | None, output: str) -> None:
    from mlflow_deploy_plugin.controller import retraining_summary
    from mlflow_deploy_plugin.store import Retrainings

    found = Retrainings(deployments.store).find(name)
    if output == "json":
        click.echo(json.dumps([asdict(one) for one in found], default=lambda value: value.isoformat(), indent=1))
        return
    if not found:
        click.echo(f"endpoint {name!r} has had no retraining" if name else "there was no retraining")
    for one in found:
        click.echo(f"{one.created_at:%Y-%m-%d %H:%M:%S}Z  {retraining_summary(one)}")
        click.echo(f"    why: {one.cause['why']}")


def _wait(deployments: "Deployments", begun: "Retraining") -> None:
    """Show the progress of a retraining until it has ended, and run it here if no controller does."""
    from mlflow_deploy_plugin.controller import (
        STORE_LEASE,
        LeaseKeeper,
        RetrainingRunner,
        controller_name,
        process_name,
        retraining_context,
        retraining_summary,
    )
    from mlflow_deploy_plugin.store import Retrainings

    runner = RetrainingRunner(retraining_context(deployments, controller_name()))
    last_line, retrainings, keeper = "", Retrainings(deployments.store), None
    with ExitStack() as held:
        while True:
            if keeper is None or not keeper.is_held:
                lease = deployments.store.acquire_lease(STORE_LEASE, process_name(), _LEASE_SECONDS)
                keeper = held.enter_context(LeaseKeeper(deployments.store, lease)) if lease is not None else None
            if keeper is not None:
                runner.advance()
            current = next(one for one in retrainings.find(begun.endpoint) if one.id == begun.id)
            if (line := retraining_summary(current)) != last_line:
                click.echo(line)
                last_line = line
            if not current.is_live or current.state == "rolling_out":
                break
            time.sleep(_POLL_SECONDS)
    if current.state == "failed":
        raise SystemExit(1)
