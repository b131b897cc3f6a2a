"""The deployments of whoever types a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mlflow_deploy_plugin.deployments.lifecycle import Deployments


@contextmanager
def opened_deployments() -> Iterator["Deployments"]:
    """What a long step does is told on standard error."""
    # here: SQLAlchemy and MLflow take a second that `--help` should not wait for
    from mlflow_deploy_plugin.deployments.lifecycle import open_deployments

    with open_deployments(lambda line: click.echo(line, err=True)) as deployments:
        yield deployments
