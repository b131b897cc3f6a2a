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
    """Raise a `DeploymentError` with the same message and error code for every `OnnxserveError`, and for what MLflow
    raises below us: its own commands would print that as a traceback.
    """
    try:
        yield
    except OnnxserveError as error:
        raise _mlflow_error(error.message, error.error_code) from error
    except DeploymentError:
        raise
    except MlflowException as error:
        raise _mlflow_error(" ".join(str(error.message).split()), error.error_code) from error


def not_available(what: str) -> DeploymentError:
    """For what MLflow's interface has and this target has not."""
    return _mlflow_error(f"{what} are not available for the target onnxserve", "NOT_IMPLEMENTED")


def _mlflow_error(message: str, error_code: str) -> DeploymentError:
    return DeploymentError(message, ErrorCode.Value(error_code))  # type: ignore[call-arg]  # mlflow is untyped here
