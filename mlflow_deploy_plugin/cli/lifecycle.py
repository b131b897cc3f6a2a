"""`onnxserve start NAME` and `onnxserve stop NAME`: the server of a deployment that is there."""

import click

from mlflow_deploy_plugin.cli.opened import opened_deployments


@click.command()
@click.argument("name")
def start(name: str) -> None:
    """Brings the server of the deployment NAME back, on its port; fine if it runs already."""
    with opened_deployments() as deployments:
        deployments.start(name)


@click.command()
@click.argument("name")
def stop(name: str) -> None:
    """Stops the server of the deployment NAME and keeps the deployment; requests in flight are finished."""
    with opened_deployments() as deployments:
        deployments.stop(name)
    click.echo(f"{name} is stopped; `onnxserve start {name}` brings it back")
