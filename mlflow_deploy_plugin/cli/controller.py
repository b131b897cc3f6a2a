"""Commands of the controller and its retrainings, and the migration of the store."""

import asyncio
import logging
import os
import threading
import time
from functools import partial
from typing import Any

import click

from mlflow_deploy_plugin.cli.options import (
    Commands,
    NumberRange,
    flag,
    name_argument,
    opened_deployments,
    opened_store,
    option,
    optional_name_argument,
    output_option,
    show_lines,
    show_progress,
    show_result,
    usage_errors,
    why_option,
    working,
)
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.processes.child import end_on_signals
from mlflow_deploy_plugin.core.version import __version__

_POLL_SECONDS = 0.5
_END_SECONDS = 8.0
"""The time to finish the current work, less than the ten seconds after which Docker
kills a process.
"""


@click.command()
@option(
    "--lease-seconds SECONDS",
    "Seconds without a renewal of the lease after which another controller takes over.",
    type=NumberRange(1, 3600),
    default=15.0,
)
@option(
    "--judge-at-once COUNT",
    "Number of windows to judge in parallel, each in a separate process.",
    type=click.IntRange(1, 64),
    default=2,
)
@option(
    "--judge-seconds SECONDS",
    "Timeout of a judgement. After a timeout, the window is retried later.",
    type=NumberRange(1, 86400),
    default=1800.0,
)
@option(
    "--metrics-port PORT",
    "Port for Prometheus with the gauges of all monitors.",
    type=click.IntRange(1, 65535),
    show_default="no port",
)
def controller(metrics_port: int | None, **options: Any) -> None:
    """Run rollouts, monitors and retrainings until stopped.

    If several controllers share a store, one controller runs the monitors and
    retrainings, and the other controllers wait to take over. A rollout needs a
    controller on the machine of the servers or with write access to the cluster.
    """
    ended = threading.Event()
    end_on_signals(ended)  # Handle signals before the imports, which take seconds.
    threading.Thread(target=_leave_in_time, args=(ended,), daemon=True).start()
    from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
    from mlflow_deploy_plugin.watch.controller.service import run_controller

    with open_deployments(logging.getLogger(__name__).info) as deployments:
        configure_logging(deployments.settings.log_format, "controller")
        if metrics_port is not None:
            from mlflow_deploy_plugin.serve.supervisor import open_listener
            from mlflow_deploy_plugin.watch.controller.prometheus import serve_metrics

            served = serve_metrics(
                deployments.store,
                open_listener(deployments.settings.host, metrics_port, "--metrics-port"),
            )
            threading.Thread(target=asyncio.run, args=[served], daemon=True).start()
        run_controller(deployments, ended, **options)


def _leave_in_time(ended: threading.Event) -> None:
    """End this process soon after `ended`, even if a call hangs. The next controller
    continues the work.
    """
    ended.wait()
    time.sleep(_END_SECONDS)
    show_progress(
        f"the controller ends with unfinished work after {_END_SECONDS:g} s: a cluster or server "
        "hangs"
    )
    os._exit(1)


@click.command()
def migrate() -> None:
    """Create the store, or upgrade it to this version.

    Every command that opens the store also upgrades it. This command upgrades the store
    in a separate step, for example in the Helm chart's job. Older versions of onnxserve
    cannot open the store afterwards.
    """
    with opened_store():
        click.echo(f"the store is up to date with onnxserve {__version__}")


@click.group(cls=Commands, example="run")
def retrain() -> None:
    """Retrain served models on captured, labelled rows, and list the retrainings."""


@retrain.command()
@name_argument
@option(
    "--monitor MONITOR", "Monitor with `retrain`.", show_default="the only monitor with `retrain`"
)
@option(
    "--mode",
    "Train a new model on all labelled rows, or the served model on the window's rows and its "
    "`retrain.sample`.",
    type=click.Choice(["full", "incremental"]),
    show_default="the monitor's",
)
@option(
    "--window START/END",
    "Window of event time in UTC with the new labelled rows: 2013-07-01/2013-08-01 or "
    "2013-07-01/1d.",
    show_default="the latest complete window",
)
@why_option
@flag("--wait", "Show the progress until the retraining ends or its rollout begins.")
def run(name: str, window: str | None, wait: bool, **request: Any) -> None:
    """Retrain the model of the endpoint NAME on captured, labelled rows.

    The `retrain` settings of the monitor specify how the model is trained.
    The gate compares the new version with the served version. The new version is then
    rolled out, proposed or not used. The command ignores cool-down and budget, which
    limit only automatic retrainings. `onnxserve controller` runs the retraining.

    \b
      onnxserve retrain run flights --mode incremental --why 'new carrier'
      onnxserve retrain list flights
    """
    from mlflow_deploy_plugin.core.store.retrainings import Retrainings
    from mlflow_deploy_plugin.promote.rollouts.commands import controller_status
    from mlflow_deploy_plugin.promote.rollouts.leadership import STORE_LEASE
    from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
    from mlflow_deploy_plugin.watch.controller.service import run_retrainings
    from mlflow_deploy_plugin.watch.retraining.plan import retraining_summary
    from mlflow_deploy_plugin.watch.retraining.trigger import request_retraining

    with opened_deployments(quiet=True) as deployments:
        with usage_errors():
            rows = parse_window(window) if window else None
        begun = request_retraining(deployments, name, window=rows, **request)
        summary = retraining_summary(begun)
        show_lines([summary])
        if not wait:
            show_progress(
                controller_status(deployments.store, STORE_LEASE, "onnxserve retrain list")
            )
            return
        current = begun
        # If no controller runs the retraining, this process runs it.
        with working(partial(run_retrainings, deployments)):
            while current.is_live and current.state != "rolling_out":
                time.sleep(_POLL_SECONDS)
                current = Retrainings(deployments.store).get(begun.id) or begun
                if retraining_summary(current) != summary:
                    summary = retraining_summary(current)
                    show_lines([summary])
    if current.state == "failed":
        raise SystemExit(1)


@retrain.command("list")
@optional_name_argument
@output_option
def list_retrainings(name: str | None, output: str) -> None:
    """List the retrainings, oldest first.

    With NAME, list only the retrainings of the endpoint NAME.
    """
    from mlflow_deploy_plugin.core.store.retrainings import Retrainings
    from mlflow_deploy_plugin.watch.retraining.plan import retraining_summary

    with opened_store() as store:
        entries = Retrainings(store).find(name)
    lines: list[str] = []
    for entry in entries:
        lines.append(f"{entry.created_at:%Y-%m-%d %H:%M:%S}Z  {retraining_summary(entry)}")
        lines.append(f"    why: {entry.cause['why']}")
    empty = f"endpoint {name!r} has no retrainings" if name else "there are no retrainings"
    documents = [{**vars(entry), "figures": entry.figures.as_json()} for entry in entries]
    show_result(output, documents, lines or [empty])
