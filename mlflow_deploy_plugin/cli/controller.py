"""`onnxserve controller`, and what it works on: `rollout` and `rollback` of versions, and `retrain`."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mlflow_deploy_plugin.cli.options import (
    NumberRange,
    list_output_option,
    opened_deployments,
    opened_store,
    option,
    show_json,
    show_lines,
    usage_errors,
    why_option,
)
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.logs import configure_logging
from mlflow_deploy_plugin.processes import end_on_signals
from mlflow_deploy_plugin.version import __version__

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments import Deployments
    from mlflow_deploy_plugin.store import Retraining, Rollout

_ROLLOUT_POLL_SECONDS, _RETRAINING_POLL_SECONDS = 0.2, 0.5
_QUIET_SECONDS = 5.0
"""The time between two lines about the same step of a rollout: what it waits for changes with every look."""
_PLACE_SECONDS = 3.0
_END_SECONDS = 8.0
"""The time to end the work under way: Docker kills after ten seconds."""


@click.command()
@option(
    "--lease-seconds",
    type=NumberRange(1, 3600),
    default=15.0,
    metavar="SECONDS",
    help="Seconds without a sign of the controller after which another one takes over.",
)
@option(
    "--judge-at-once",
    type=click.IntRange(1, 64),
    default=2,
    metavar="COUNT",
    help="Number of windows that are judged at the same time, each in a process of its own.",
)
@option(
    "--judge-seconds",
    type=NumberRange(1, 86400),
    default=1800.0,
    metavar="SECONDS",
    help="Seconds that a judgement may take; a longer one is ended, and tried again later.",
)
@option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    show_default="none is opened",
    help="Port where Prometheus gets the gauges of all monitors.",
)
def controller(metrics_port: int | None, **options: Any) -> None:
    """Run rollouts, monitors and retrainings until it is ended.

    With several controllers on one store, one runs monitors and retrainings, and the others wait to take over.
    Rollouts are run by a controller that reaches the servers: one on their machine, or one that may change the cluster.
    """
    ended = threading.Event()
    end_on_signals(ended)  # before the imports, which take seconds: who ends it meanwhile gets an orderly end, too
    threading.Thread(target=_leave_in_time, args=(ended,), daemon=True).start()
    from mlflow_deploy_plugin.controller.metrics import start_metrics_server
    from mlflow_deploy_plugin.controller.service import run_controller
    from mlflow_deploy_plugin.deployments.lifecycle import open_deployments

    with open_deployments(logging.getLogger(__name__).info) as deployments:
        configure_logging(deployments.settings, "controller")
        if metrics_port is not None:
            start_metrics_server(deployments.store, metrics_port)
        run_controller(deployments, ended, **options)


def _leave_in_time(ended: threading.Event) -> None:
    """End this process soon after `ended`, whatever it waits for: the next controller goes on from the store."""
    ended.wait()
    time.sleep(_END_SECONDS)
    click.echo(
        f"the controller leaves what has not ended after {_END_SECONDS:g} s: a cluster, or a server, hangs", err=True
    )
    os._exit(1)


@click.command()
def migrate() -> None:
    """Bring the store up to date, or make it.

    Whatever opens the store does so, too. This is a step of its own before an upgrade, as the Helm chart's job.
    No older onnxserve opens the store afterwards.
    """
    with opened_store():
        click.echo(f"the store is up to date with onnxserve {__version__}")


@click.command()
@click.argument("name")
@option(
    "--to",
    metavar="URI|VERSION",
    help="Version to bring: models:/flight-delay/7, or 7 of the model that is served now.",
)
@option(
    "--steps",
    default="1,10,50,100",
    metavar="PERCENT,…",
    help="Shares of the traffic, in percent, that it is given one after the other.",
)
@option("--every", default="5m", metavar="DURATION", help="Length of a step at least: 30s, 5m, 1h.")
@option(
    "--abort-on",
    default="error_rate>1%,p99>2x",
    metavar="CRITERIA",
    help="Criteria that roll it back: error_rate>1%, p99>2x (p50, p90, p95; or p99>250ms), disagreement>20%.",
)
@option(
    "--min-requests",
    type=click.IntRange(min=1),
    default=100,
    metavar="COUNT",
    help="Number of requests that the new version has to answer in each step.",
)
@why_option
@option("--wait", is_flag=True, help="Show the progress until it has ended; run it here if no controller does.")
@option("--status", "action", flag_value="status", help="Show where the last rollout is.")
@option("--pause", "action", flag_value="pause", help="Keep the traffic of the step; still rolled back if bad.")
@option("--resume", "action", flag_value="resume", help="Go on after --pause.")
@option("--abort", "action", flag_value="abort", help="Go back to what was served before.")
def rollout(name: str, to: str | None, why: str, wait: bool, action: str | None, **plan: Any) -> None:
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
    from mlflow_deploy_plugin.controller.leadership import rollouts_lease_name
    from mlflow_deploy_plugin.controller.rollouts.commands import (
        RolloutRequest,
        command_rollout,
        controller_status,
        describe_rollout,
        last_rollout,
        require_controller,
        stall_reason,
    )

    with usage_errors():
        request = None if to is None else RolloutRequest(to, **plan, why=why)
    with opened_deployments(quiet=action != "abort") as deployments:
        if not deployments.store.rollouts(name, limit=1):  # a deleted endpoint may have had one
            deployments.store.require_endpoint(name)

        def lease() -> str:
            return rollouts_lease_name(deployments.place(name))

        if request is not None:
            from mlflow_deploy_plugin.controller.rollouts.commands import start_rollout
            from mlflow_deploy_plugin.registry.connection import import_mlflow_without_pandas

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
    show_default="what was served before",
    help="Version to go back to, or, of an endpoint that follows nothing, its model URI.",
)
@option("--why", default="", metavar="REASON", help="Reason, kept in the audit trail and on the version in MLflow.")
def rollback(name: str, to: str | None, why: str) -> None:
    """Go back to what was served before.

    It is done when the endpoint NAME answers with the earlier version. The stage or alias that it follows is given back
    to the earlier version, and the newer one is archived; a rollout that is under way is aborted.
    """
    from mlflow_deploy_plugin.registry.connection import import_mlflow_without_pandas

    import_mlflow_without_pandas()
    from mlflow_deploy_plugin.controller import rollback as go_back

    with opened_deployments() as deployments:
        done = go_back(deployments, name, why=why, to=to)
    click.echo(
        f"{name}: {done['model']} {done['to']} instead of {done['from']} after {done['seconds']} s; {done['source']}"
    )


def _wait_for_rollout(deployments: "Deployments", begun: "Rollout") -> None:
    """Show the progress of a rollout until it has ended, and run it here if no controller does."""
    from mlflow_deploy_plugin.controller.rollouts.state_machine import rollout_summary

    run = partial(_run_rollouts_of, deployments, begun.endpoint)
    current, shown, shown_at = begun, ("", -1, ""), 0.0
    with _working(run) if begun.is_live else nullcontext():  # else the endpoint may be gone
        try:
            while True:
                current = deployments.store.rollout(begun.id) or begun
                now = (current.state, current.step, current.reason)
                if now[:2] != shown[:2] or (now != shown and time.monotonic() > shown_at + _QUIET_SECONDS):
                    show_lines([rollout_summary(current)])
                    shown, shown_at = now, time.monotonic()
                if not current.is_live:
                    break
                time.sleep(_ROLLOUT_POLL_SECONDS)
        except KeyboardInterrupt:
            click.echo("it goes on where a controller runs; --abort goes back", err=True)
            raise
    if current.state != "promoted":
        raise SystemExit(1)


@contextmanager
def _working(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do the work, which ends when its event is set, in a thread for as long as the `with` lasts."""
    ended = threading.Event()
    worker = threading.Thread(target=work, args=(ended,), name="controller")
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


def _run_rollouts_of(deployments: "Deployments", endpoint: str, ended: threading.Event) -> None:
    """Run the rollouts of an endpoint's place until `ended` is set; wait until its server is reached from here."""
    from mlflow_deploy_plugin.controller.leadership import controller_name, process_name
    from mlflow_deploy_plugin.controller.rollouts.controller import RolloutActions, RolloutController

    is_told = False
    while not ended.is_set():
        try:
            place = deployments.place(endpoint)
        except OnnxserveError as error:
            if not is_told:
                click.echo(f"leaves it to other controllers: {error.message}", err=True)
                is_told = True
            ended.wait(_PLACE_SECONDS)
        else:
            actions = RolloutActions(deployments, controller_name(), lambda line: None)
            RolloutController(deployments.store, actions, process_name(), place).run(ended)


@click.command()
@click.argument("name", required=False)
@option(
    "--monitor", metavar="MONITOR", show_default="the only one that has it", help="Monitor whose `retrain` says how."
)
@option(
    "--mode",
    type=click.Choice(["full", "incremental"]),
    show_default="the monitor's",
    help="Training anew on all labelled rows, or learning the window's on top of what is served.",
)
@option(
    "--window",
    metavar="START/END",
    show_default="the latest whole one",
    help="Window of event time in UTC whose labelled rows are learned: 2013-07-01/2013-08-01, 2013-07-01/1d.",
)
@why_option
@option("--wait", is_flag=True, help="Show the progress until it has ended, or a rollout brings the version.")
@option("--list", "listed", is_flag=True, help="Show the retrainings (of NAME), oldest first.")
@list_output_option
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
    from mlflow_deploy_plugin.controller.leadership import STORE_LEASE
    from mlflow_deploy_plugin.controller.retraining.plan import retraining_summary
    from mlflow_deploy_plugin.controller.retraining.trigger import request_retraining
    from mlflow_deploy_plugin.controller.rollouts.commands import controller_status
    from mlflow_deploy_plugin.inference_log import parse_window
    from mlflow_deploy_plugin.store import Retrainings

    with opened_deployments(quiet=True) as deployments:
        if name is None or listed:
            found = Retrainings(deployments.store).find(name)
            if output == "json":
                show_json([{**vars(one), "figures": one.figures.as_json()} for one in found])
                return
            if not found:
                click.echo(f"endpoint {name!r} has had no retraining" if name else "there was no retraining")
            for one in found:
                line = f"{one.created_at:%Y-%m-%d %H:%M:%S}Z  {retraining_summary(one)}"
                show_lines([line, f"    why: {one.cause['why']}"])
            return
        with usage_errors():
            rows = parse_window(window) if window else None
        begun = request_retraining(deployments, name, monitor, mode, why, rows)
        if wait:
            _wait_for_retraining(deployments, begun)
        else:
            show_lines([retraining_summary(begun)])
            click.echo(controller_status(deployments.store, STORE_LEASE, "onnxserve retrain --list"), err=True)


def _wait_for_retraining(deployments: "Deployments", begun: "Retraining") -> None:
    """Show the progress of a retraining until it has ended, and run it here if no controller does."""
    from mlflow_deploy_plugin.controller.retraining.plan import retraining_summary
    from mlflow_deploy_plugin.controller.service import run_retrainings
    from mlflow_deploy_plugin.store import Retrainings

    retrainings, current, shown = Retrainings(deployments.store), begun, retraining_summary(begun)
    show_lines([shown])
    with _working(partial(run_retrainings, deployments)):
        while current.is_live and current.state != "rolling_out":
            time.sleep(_RETRAINING_POLL_SECONDS)
            current = retrainings.get(begun.id) or begun
            if (line := retraining_summary(current)) != shown:
                show_lines([line])
                shown = line
    if current.state == "failed":
        raise SystemExit(1)
