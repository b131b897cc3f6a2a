"""`onnxserve start NAME` and `onnxserve stop NAME`: the server of a deployment that is there."""

import click

from mlflow_deploy_plugin.cli.opened import opened_deployments


@click.command()
@click.argument("name")
def start(name: str) -> None:
    """Start the server of the deployment NAME again.

    It answers at the port that it had; one that runs already is left alone.
    """
    with opened_deployments() as deployments:
        deployments.start(name)


@click.command()
@click.argument("name")
def stop(name: str) -> None:
    """Stop the server of the deployment NAME, and keep the deployment.

    Requests in flight are finished; `onnxserve start NAME` brings it back.
    """
    with opened_deployments() as deployments:
        deployments.stop(name)
    click.echo(f"{name} is stopped; `onnxserve start {name}` brings it back")
