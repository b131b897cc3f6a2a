"""The `mlflow.deployments` plugin for the target `onnxserve`: translates names, arguments, results and errors."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from click import ClickException
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from mlflow_deploy_plugin.deployments.backends.local import serve_in_foreground
from mlflow_deploy_plugin.deployments.config import apply_flavor
from mlflow_deploy_plugin.deployments.description import (
    describe,
    describe_endpoint,
    summarize,
    summarize_endpoints,
)
from mlflow_deploy_plugin.deployments.lifecycle import Deployments, open_deployments
from mlflow_deploy_plugin.deployments.scoring import original_document, score, scoring_target
from mlflow_deploy_plugin.deployments.target import check_target, help_text
from mlflow_deploy_plugin.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.spec import new_endpoint


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


class OnnxserveDeploymentClient(BaseDeploymentClient):  # type: ignore[misc]  # mlflow is untyped here
    """Deployments of this machine, as MLflow's own interface has them. Every failure is an MlflowException.

    An endpoint is a server; a deployment is a variant in it. Without `endpoint` a deployment has a server of its own.
    `config` takes fields of the spec by their dotted names, see `mlflow deployments help -t onnxserve`.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        with as_mlflow_errors():
            check_target(target_uri)

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Serves `model_uri` and returns, when it answers, what `get_deployment` does."""
        with as_mlflow_errors(), _deployments() as deployments:
            return describe(
                deployments.create(name, model_uri, apply_flavor(name, model_uri, flavor, config), endpoint)
            )

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Changes model or configuration. Only a change of `server.…` restarts; what fails changes nothing."""
        with as_mlflow_errors(), _deployments() as deployments:
            return describe(
                deployments.update(name, model_uri, apply_flavor(name, model_uri, flavor, config), endpoint)
            )

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """End the deployment; requests in flight are finished.

        One that does not exist is no error (MLflow asks for that), but a line on standard error names those that do:
        `mlflow deployments delete` itself prints "is deleted" in either case.
        """
        with as_mlflow_errors(), _deployments() as deployments:
            if config:
                raise InvalidConfig(f"delete takes no config, and {next(iter(config))!r} is none")
            deployments.delete(name, endpoint)

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Name, endpoint, state, URL and model of each."""
        with as_mlflow_errors(), _deployments() as deployments:
            return [summarize(deployment) for deployment in deployments.list(endpoint)]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """State (running, starting, stopped, failed) with its reason, URL, versions by worker, provenance."""
        with as_mlflow_errors(), _deployments() as deployments:
            return describe(deployments.get(name, endpoint))

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Predictions for a DataFrame, an array, a dict of columns, or a list of rows or records."""
        with as_mlflow_errors(), _deployments() as deployments:
            asked = scoring_target(deployments, deployment_name, endpoint)
            return PredictionsResponse(
                score(asked.url, "invocations", original_document(inputs), asked.timeout_seconds)
            )

    def explain(self, deployment_name: str | None = None, df: Any = None, endpoint: str | None = None) -> Any:
        """What each column adds to each prediction, as the server's /explain answers it."""
        with as_mlflow_errors(), _deployments() as deployments:
            asked = scoring_target(deployments, deployment_name, endpoint)
            return score(asked.url, "explain", original_document(df), asked.timeout_seconds)

    def create_endpoint(self, name: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Takes the name for deployments to come (`create_deployment(…, endpoint=name)`)."""
        with as_mlflow_errors(), _deployments() as deployments:
            return describe_endpoint(deployments.create_endpoint(name, config or {}))

    def update_endpoint(self, endpoint: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Changes fields: `{"traffic": {"champion": 95, "challenger": 5}}`, `traffic.NAME`, or any of the spec's."""
        with as_mlflow_errors(), _deployments() as deployments:
            return describe_endpoint(deployments.update_endpoint(endpoint, config or {}))

    def delete_endpoint(self, endpoint: str) -> None:
        """End the endpoint with every deployment in it; of one that does not exist, as `delete_deployment`."""
        with as_mlflow_errors(), _deployments() as deployments:
            deployments.delete_endpoint(endpoint)

    def list_endpoints(self) -> list[dict[str, Any]]:
        """Name, state, URL, traffic and deployments of each."""
        with as_mlflow_errors(), _deployments() as deployments:
            return summarize_endpoints(deployments)

    def get_endpoint(self, endpoint: str) -> dict[str, Any]:
        """State with its reason, URL, traffic, every deployment, versions by worker."""
        with as_mlflow_errors(), _deployments() as deployments:
            return describe_endpoint(deployments.get_endpoint(endpoint))


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None) -> None:
    """Serves the model in the foreground until Ctrl-C; `list` and the other commands do not know it."""
    with as_mlflow_errors():
        serve_in_foreground(new_endpoint(name, model_uri, apply_flavor(name, model_uri, flavor, config)), _say)


def target_help() -> str:
    """The text of `mlflow deployments help -t onnxserve`."""
    return help_text()


def _deployments() -> AbstractContextManager[Deployments]:
    return open_deployments(_say)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
