"""`onnxserve controller`: what runs by itself over time."""

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
    help="After so long without a sign of the controller another one takes over.",
)
def controller(lease_seconds: float) -> None:
    """Runs rollouts until it is ended. Of several on one store, one works and the others wait to take over."""
    # here: SQLAlchemy, MLflow and the rest take seconds that no other command should wait for
    from mlflow_deploy_plugin.controller.actions import Actions
    from mlflow_deploy_plugin.controller.loop import Controller
    from mlflow_deploy_plugin.controller.who import controller_name, this_process
    from mlflow_deploy_plugin.deployments.lifecycle import open_deployments

    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with open_deployments(click.echo) as deployments:
        actions = Actions(deployments, controller_name(), click.echo)
        Controller(deployments.store, actions, this_process(), lease_seconds, click.echo).run(ended)
