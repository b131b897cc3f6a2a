"""`onnxserve controller` and the commands that it executes: `rollout`, `rollback` and `retrain`."""

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
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.processes.child import end_on_signals
from mlflow_deploy_plugin.core.version import __version__

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.retrainings import Retraining
    from mlflow_deploy_plugin.core.store.store import Rollout
    from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments

_ROLLOUT_POLL_SECONDS, _RETRAINING_POLL_SECONDS = 0.2, 0.5
_QUIET_SECONDS = 5.0
"""The minimum time between two output lines about one step of a rollout, whose reason changes with every poll."""
_PLACE_SECONDS = 3.0
_END_SECONDS = 8.0
"""The time to finish the current work, less than the ten seconds after which Docker kills a process."""
_port_option = partial(option, type=click.IntRange(1, 65535), metavar="PORT", show_default="no port")


@click.command()
@option(
    "--lease-seconds",
    type=NumberRange(1, 3600),
    default=15.0,
    metavar="SECONDS",
    help="Seconds without a renewal of the lease after which another controller takes over.",
)
@option(
    "--judge-at-once",
    type=click.IntRange(1, 64),
    default=2,
    metavar="COUNT",
    help="Number of windows to judge in parallel, each in a separate process.",
)
@option(
    "--judge-seconds",
    type=NumberRange(1, 86400),
    default=1800.0,
    metavar="SECONDS",
    help="Timeout of a judgement. After a timeout, the window is retried later.",
)
@_port_option("--metrics-port", help="Port for Prometheus with the gauges of all monitors.")
@_port_option("--webhook-port", help="Port for webhooks of MLflow, which are signed with ONNXSERVE_WEBHOOK_SECRET.")
def controller(metrics_port: int | None, webhook_port: int | None, **options: Any) -> None:
    """Run rollouts, monitors and retrainings until stopped.

    If several controllers share a store, one controller runs the monitors and retrainings, and the other controllers
    wait to take over. A rollout needs a controller on the machine of the servers or with write access to the cluster.
    """
    ended = threading.Event()
    end_on_signals(ended)  # Handle signals before the imports, which take seconds.
    threading.Thread(target=_leave_in_time, args=(ended,), daemon=True).start()
    from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
    from mlflow_deploy_plugin.watch.controller.metrics import start_metrics_server
    from mlflow_deploy_plugin.watch.controller.service import run_controller

    with open_deployments(logging.getLogger(__name__).info) as deployments:
        configure_logging(deployments.settings, "controller")
        if metrics_port is not None:
            start_metrics_server(deployments.store, metrics_port)
        if webhook_port is not None:
            from mlflow_deploy_plugin.serve.supervisor import open_listener
            from mlflow_deploy_plugin.watch.controller.webhooks import start_webhook_receiver

            host = deployments.settings.host
            start_webhook_receiver(deployments, open_listener(host, webhook_port, "--webhook-port"))
        run_controller(deployments, ended, **options)


def _leave_in_time(ended: threading.Event) -> None:
    """End this process soon after `ended`, even if a call hangs. The next controller continues the work."""
    ended.wait()
    time.sleep(_END_SECONDS)
    click.echo(
        f"the controller ends with unfinished work after {_END_SECONDS:g} s: a cluster or server hangs", err=True
    )
    os._exit(1)


@click.command()
def migrate() -> None:
    """Create the store, or upgrade it to this version.

    Every command that opens the store also upgrades it. This command upgrades the store in a separate step, for
    example in the Helm chart's job. Older versions of onnxserve cannot open the store afterwards.
    """
    with opened_store():
        click.echo(f"the store is up to date with onnxserve {__version__}")


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
    with _working(run) if begun.is_live else nullcontext():  # An ended rollout does not need a controller.
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
                time.sleep(_ROLLOUT_POLL_SECONDS)
        except KeyboardInterrupt:
            click.echo("the rollout continues if a controller runs; --abort rolls it back", err=True)
            raise
    if current.state != "promoted":
        raise SystemExit(1)


@contextmanager
def _working(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work` in a thread within the `with` block. At the end of the block, set the event and join the thread."""
    ended = threading.Event()
    worker = threading.Thread(target=work, args=(ended,), name="controller")
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


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


@click.command()
@click.argument("name", required=False)
@option("--monitor", metavar="MONITOR", show_default="the only monitor with `retrain`", help="Monitor with `retrain`.")
@option(
    "--mode",
    type=click.Choice(["full", "incremental"]),
    show_default="the monitor's",
    help="Train a new model on all labelled rows, or the served model on the window's rows and its `retrain.sample`.",
)
@option(
    "--window",
    metavar="START/END",
    show_default="the latest complete window",
    help="Window of event time in UTC with the new labelled rows: 2013-07-01/2013-08-01 or 2013-07-01/1d.",
)
@why_option
@option("--wait", is_flag=True, help="Show the progress until the retraining ends or its rollout begins.")
@option("--list", "listed", is_flag=True, help="List the retrainings (of NAME), oldest first.")
@list_output_option
def retrain(name: str | None, window: str | None, wait: bool, listed: bool, output: str, **request: Any) -> None:
    """Retrain the served model on captured, labelled rows.

    The `retrain` settings of the monitor specify how the model of the endpoint NAME is trained. The gate compares the
    new version with the served version. The new version is then rolled out, proposed or not used. The command ignores
    cool-down and budget, which limit only automatic retrainings. `onnxserve controller` runs the retraining.

    \b
      onnxserve retrain flights --mode incremental --why 'new carrier'
      onnxserve retrain --list
    """
    if not listed and name is None:
        raise click.UsageError("specify the endpoint NAME, or --list")
    if listed and (window or wait or any(request.values())):
        raise click.UsageError("--list can be combined only with NAME and -o")
    if not listed and output != "text":
        raise click.UsageError("-o requires --list")
    from mlflow_deploy_plugin.core.store.retrainings import Retrainings
    from mlflow_deploy_plugin.promote.rollouts.commands import controller_status
    from mlflow_deploy_plugin.promote.rollouts.leadership import STORE_LEASE
    from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
    from mlflow_deploy_plugin.watch.retraining.plan import retraining_summary
    from mlflow_deploy_plugin.watch.retraining.trigger import request_retraining

    with opened_deployments(quiet=True) as deployments:
        if name is None or listed:
            retrainings = Retrainings(deployments.store).find(name)
            if output == "json":
                show_json([{**vars(entry), "figures": entry.figures.as_json()} for entry in retrainings])
                return
            if not retrainings:
                click.echo(f"endpoint {name!r} has no retrainings" if name else "there are no retrainings")
            for retraining in retrainings:
                line = f"{retraining.created_at:%Y-%m-%d %H:%M:%S}Z  {retraining_summary(retraining)}"
                show_lines([line, f"    why: {retraining.cause['why']}"])
            return
        with usage_errors():
            rows = parse_window(window) if window else None
        begun = request_retraining(deployments, name, window=rows, **request)
        if wait:
            _wait_for_retraining(deployments, begun)
        else:
            show_lines([retraining_summary(begun)])
            click.echo(controller_status(deployments.store, STORE_LEASE, "onnxserve retrain --list"), err=True)


def _wait_for_retraining(deployments: "Deployments", begun: "Retraining") -> None:
    """Show the progress of a retraining until its end. If no controller runs the retraining, run it in this process."""
    from mlflow_deploy_plugin.core.store.retrainings import Retrainings
    from mlflow_deploy_plugin.watch.controller.service import run_retrainings
    from mlflow_deploy_plugin.watch.retraining.plan import retraining_summary

    retrainings, current, summary = Retrainings(deployments.store), begun, retraining_summary(begun)
    show_lines([summary])
    with _working(partial(run_retrainings, deployments)):
        while current.is_live and current.state != "rolling_out":
            time.sleep(_RETRAINING_POLL_SECONDS)
            current = retrainings.get(begun.id) or begun
            if (line := retraining_summary(current)) != summary:
                show_lines([line])
                summary = line
    if current.state == "failed":
        raise SystemExit(1)
