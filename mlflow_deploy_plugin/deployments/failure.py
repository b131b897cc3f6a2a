"""The one place where our errors become MLflow's."""

from collections.abc import Iterator
from contextlib import contextmanager

from click import ClickException
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from mlflow_deploy_plugin.errors import OnnxserveError


class DeploymentError(MlflowException, ClickException):  # type: ignore[misc]  # mlflow is untyped here
    """What callers of `mlflow.deployments` expect, an MlflowException, and for those who type `mlflow deployments …`
    one line: MLflow's commands let an MlflowException through as a traceback, click prints its own by their message.
    """


@contextmanager
def as_mlflow_errors() -> Iterator[None]:
    """Raises a `DeploymentError` with the same message and MLflow's error code for every `OnnxserveError`."""
    try:
        yield
    except OnnxserveError as error:
        raise mlflow_error(error) from error


def mlflow_error(error: OnnxserveError) -> DeploymentError:
    """The same in MLflow's terms."""
    return DeploymentError(error.message, ErrorCode.Value(error.error_code))  # type: ignore[call-arg]
