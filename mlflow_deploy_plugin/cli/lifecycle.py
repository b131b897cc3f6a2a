"""`onnxserve start NAME` and `onnxserve stop NAME`: the server of a deployment that is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments.lifecycle import Deployments


@click.command()
@click.argument("name")
def start(name: str) -> None:
    """Brings the server of the deployment NAME back, on its port; fine if it runs already."""
    with _deployments() as deployments:
        deployments.start(name)


@click.command()
@click.argument("name")
def stop(name: str) -> None:
    """Stops the server of the deployment NAME and keeps the deployment; requests in flight are finished."""
    with _deployments() as deployments:
        deployments.stop(name)
    click.echo(f"{name} is stopped; `onnxserve start {name}` brings it back")


@contextmanager
def _deployments() -> Iterator["Deployments"]:
    # here: SQLAlchemy and the rest take a second that no other command should wait for
    from mlflow_deploy_plugin.deployments.lifecycle import Deployments
    from mlflow_deploy_plugin.settings import load_settings
    from mlflow_deploy_plugin.store import open_store

    settings = load_settings()
    store = open_store(settings.store_url)
    try:
        yield Deployments(store, settings, lambda line: click.echo(line, err=True))
    finally:
        store.close()
