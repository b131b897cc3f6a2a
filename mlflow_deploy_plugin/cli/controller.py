"""`onnxserve controller`: the process that runs rollouts, monitors and retrainings."""

import signal
import threading
from types import FrameType

import click


@click.command()
@click.option(
    "--lease-seconds",
    type=click.FloatRange(1, 3600),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds without a sign of the controller after which another one takes over.",
)
@click.option(
    "--judge-at-once",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    metavar="COUNT",
    help="Number of windows that are judged at the same time, each in a process of its own.",
)
@click.option(
    "--judge-seconds",
    type=click.FloatRange(1, 86400),
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds that a judgement may take; a longer one is ended, and tried again later.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    show_default="none is opened",
    help="Port where Prometheus gets the gauges of all monitors.",
)
def controller(lease_seconds: float, judge_at_once: int, judge_seconds: float, metrics_port: int | None) -> None:
    """Run rollouts, monitors and retrainings until it is ended.

    With several controllers on one store, one runs monitors and retrainings, and the others wait to take over.
    Rollouts are run by a controller on the machine of the servers.
    """
    # here: SQLAlchemy, MLflow and the rest take seconds that no other command should wait for
    from mlflow_deploy_plugin.controller import run_controller
    from mlflow_deploy_plugin.deployments import open_deployments

    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with open_deployments(click.echo) as deployments:
        if metrics_port is not None:
            from mlflow_deploy_plugin.controller import start_metrics_server

            start_metrics_server(deployments.store, metrics_port)
        run_controller(
            deployments,
            ended,
            click.echo,
            lease_seconds=lease_seconds,
            judge_at_once=judge_at_once,
            judge_seconds=judge_seconds,
        )
