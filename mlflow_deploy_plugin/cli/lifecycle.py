"""`onnxserve start NAME` and `onnxserve stop NAME`: the server of a deployment that is there."""

import click


@click.command()
@click.argument("name")
def start(name: str) -> None:
    """Brings the server of the deployment NAME back, on its port; fine if it runs already."""
    # here: SQLAlchemy and MLflow take a second that `--help` should not wait for
    from mlflow_deploy_plugin.deployments.lifecycle import open_deployments

    with open_deployments(_say) as deployments:
        deployments.start(name)


@click.command()
@click.argument("name")
def stop(name: str) -> None:
    """Stops the server of the deployment NAME and keeps the deployment; requests in flight are finished."""
    # here: SQLAlchemy and MLflow take a second that `--help` should not wait for
    from mlflow_deploy_plugin.deployments.lifecycle import open_deployments

    with open_deployments(_say) as deployments:
        deployments.stop(name)
    click.echo(f"{name} is stopped; `onnxserve start {name}` brings it back")


def _say(line: str) -> None:
    click.echo(line, err=True)
