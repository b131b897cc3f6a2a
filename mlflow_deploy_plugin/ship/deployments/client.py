"""The `mlflow.deployments` plugin for the target `onnxserve`. It translates names,
arguments, results and errors.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.packages import NEEDED, check_fit
from mlflow_deploy_plugin.core.registry.connection import set_service_timeouts
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.spec.document import field_reference, new_endpoint
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.ship.deployments import scoring
from mlflow_deploy_plugin.ship.deployments.backends.local import serve_in_foreground
from mlflow_deploy_plugin.ship.deployments.backends.targets import TARGETS, Target, parse_target
from mlflow_deploy_plugin.ship.deployments.config import Config, apply_flavor
from mlflow_deploy_plugin.ship.deployments.description import (
    describe,
    describe_endpoint,
    summarize,
    summarize_endpoints,
)
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments, open_deployments

Fields = Config | None
_WIDTH = 100

_ABOUT = """\
onnxserve serves MLflow models and follows the registry. Models with an ONNX form are served as ONNX.

TARGET URI
{targets}

MODELS
  -m takes models:/NAME@ALIAS (an alias, followed), models:/NAME/Production (a stage, followed),
  models:/NAME/tag:KEY=VALUE (the newest version with this tag, followed), models:/NAME/3, models:/m-ID,
  runs:/RUN_ID/PATH, s3://…, or a folder. Models of the flavors onnxserve (onnxserve.log_model)
  and onnx are served as ONNX. All other models are served as pyfunc, which runs their Python code. For a
  followed model, this must be allowed with --flavor python_function. --flavor onnx refuses a model without
  an ONNX form.

COMMANDS
  mlflow deployments create  -t onnxserve --name flights -m models:/flight-delay@champion -C server.workers=2
  mlflow deployments get     -t onnxserve --name flights
  mlflow deployments list    -t onnxserve
  mlflow deployments predict -t onnxserve --name flights -I rows.json
  mlflow deployments explain -t onnxserve --name flights -I rows.json
  mlflow deployments update  -t onnxserve --name flights -m models:/flight-delay/7 -C capture.fraction=0.1
  mlflow deployments delete  -t onnxserve --name flights
  mlflow deployments run-local -t onnxserve --name flights -m models:/flight-delay/7
                             serves in the foreground until Ctrl-C, and stores nothing
  mlflow deployments create  -t onnxserve:/docker --name flights -m models:/flight-delay@champion -C container.cpus=2
  onnxserve list             prints all deployments of all targets: model, version, state, URL, monitors
  onnxserve stop flights     stops the server and keeps the deployment
  onnxserve start flights    starts the server again, on the same port
  onnxserve logs flights     prints the log of the server
  onnxserve predict -n flights -i rows.csv -o predictions.csv

ENDPOINTS
  By default a deployment has a separate server: an endpoint of the same name, which is deleted with the deployment.
  With --endpoint E, it is a variant of the endpoint E, which is created if it does not exist, and is kept:
  onnxserve endpoint create E
  mlflow deployments create -t onnxserve --endpoint E --name champion -m models:/flight-delay/7
  mlflow deployments create -t onnxserve --endpoint E --name challenger -m models:/flight-delay/8
  onnxserve endpoint traffic E champion=95 challenger=5
  mlflow deployments predict -t onnxserve --endpoint E -I rows.json
  The first deployment of an endpoint receives all of its traffic, and the others none until you set their shares.
  The server keeps answering during all of these changes; only a change of server.… restarts it. In containers, a
  change of server.… or container.… starts another server, which takes over.
  list-endpoints, get-endpoint, update-endpoint and delete-endpoint of `mlflow deployments` also work;
  create-endpoint fails in MLflow.

INPUT OF predict -I FILE
  JSON as for /invocations: {"dataframe_split": {"columns": […], "data": [[…]]}}, {"dataframe_records": [{…}]},
  {"instances": […]}, {"inputs": …}; a bare list of records or rows, a mapping of columns, or the output of
  DataFrame.to_json. MLflow reads the file with pandas.read_json before it calls onnxserve, so CSV, Parquet and JSON
  lines fail. Use `onnxserve predict -n NAME -i FILE` for these formats.

CONFIGURATION (-C NAME=VALUE; -C NAME= restores the default)
  traffic.NAME (int)
      The weight of the deployment NAME, the same as variants.NAME.weight. In Python,
      {"traffic": {"champion": 95, "challenger": 5}} sets the complete traffic.
"""  # noqa: E501


class DeploymentError(MlflowException, click.ClickException):  # type: ignore[misc]  # mlflow is untyped here
    """The exception that callers of `mlflow.deployments` expect. click prints it as one
    line instead of a traceback.
    """


class OnnxserveDeploymentClient(BaseDeploymentClient):  # type: ignore[misc]  # mlflow is untyped here
    """Deployments of one target through MLflow's interface. Every failure is an
    MlflowException.

    An endpoint is a server; a deployment is a variant of it. Without `endpoint`, a
    deployment has a separate server. `config` contains fields of the spec with dotted
    names; see `mlflow deployments help -t onnxserve`.
    """

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)
        with _mlflow_errors():
            check_fit(*NEEDED)
            self._target = parse_target(target_uri)

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Fields = None,
        endpoint: str | None = None,
    ) -> Json:
        """Serve `model_uri`, wait until the server is ready, and return the result of
        `get_deployment`.
        """
        with _deployments(self._target) as deployments:
            fields = apply_flavor(name, model_uri, flavor, config)
            return describe(deployments.create(name, model_uri, fields, endpoint))

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Fields = None,
        endpoint: str | None = None,
    ) -> Json:
        """Change the model or other fields. Only `server.…` fields restart the server.
        A failed update is undone.
        """
        with _deployments(self._target) as deployments:
            fields = apply_flavor(name, model_uri, flavor, config)
            return describe(deployments.update(name, model_uri, fields, endpoint))

    def delete_deployment(
        self, name: str, config: Fields = None, endpoint: str | None = None
    ) -> None:
        """Delete the deployment after its open requests are completed. A missing
        deployment is an error.
        """
        with _deployments(self._target) as deployments:
            if config:
                raise InvalidConfig(f"delete does not accept a config (got {next(iter(config))!r})")
            deployments.delete(name, endpoint)

    def list_deployments(self, endpoint: str | None = None) -> list[Json]:
        """Return the name, endpoint, state, URL and model of each deployment."""
        with _deployments(self._target) as deployments:
            return [summarize(deployment) for deployment in deployments.list(endpoint)]

    def get_deployment(self, name: str, endpoint: str | None = None) -> Json:
        """Return the state (running, starting, stopped, failed) of a deployment, its
        URL, versions and provenance.
        """
        with _deployments(self._target) as deployments:
            return describe(deployments.get(name, endpoint))

    def predict(
        self, deployment_name: str | None = None, inputs: object = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Return predictions for a DataFrame, a Series, an array, a dict of columns, or
        a list of rows or records.
        """
        with self._scored(deployment_name, endpoint) as target:
            return PredictionsResponse(
                scoring.score(target, "invocations", scoring.original_document(inputs))
            )

    def predict_stream(
        self, deployment_name: str | None = None, inputs: object = None, endpoint: str | None = None
    ) -> Iterator[object]:
        """Yield the parts of the response of a model that has `predict_stream`."""
        with self._scored(deployment_name, endpoint) as target:
            yield from scoring.score_stream(target, inputs)

    def explain(
        self, deployment_name: str | None = None, df: object = None, endpoint: str | None = None
    ) -> Json:
        """Return the contribution of each column to each prediction, in the format of
        the server's /explain.
        """
        with self._scored(deployment_name, endpoint) as target:
            return scoring.score(target, "explain", scoring.original_document(df))

    @contextmanager
    def _scored(self, name: str | None, endpoint: str | None) -> Iterator[scoring.ScoringTarget]:
        with (
            _deployments(self._target) as deployments,
            scoring.scoring_target(deployments, name, endpoint) as target,
        ):
            yield target

    def create_endpoint(self, name: str, config: Fields = None) -> Json:
        """Create an endpoint for later deployments (`create_deployment(…,
        endpoint=name)`).
        """
        with _deployments(self._target) as deployments:
            return describe_endpoint(deployments.create_endpoint(name, config or {}))

    def update_endpoint(self, endpoint: str, config: Fields = None) -> Json:
        """Change fields: `{"traffic": {"champion": 95, "challenger": 5}}`,
        `traffic.NAME`, or any field of the spec.
        """
        with _deployments(self._target) as deployments:
            return describe_endpoint(deployments.update_endpoint(endpoint, config or {}))

    def delete_endpoint(self, endpoint: str) -> None:
        """Delete the endpoint with all its deployments. A missing endpoint is an
        error.
        """
        with _deployments(self._target) as deployments:
            deployments.delete_endpoint(endpoint)

    def list_endpoints(self) -> list[Json]:
        """Return the name, state, URL, traffic and deployments of each endpoint."""
        with _deployments(self._target) as deployments:
            return summarize_endpoints(deployments)

    def get_endpoint(self, endpoint: str) -> Json:
        """Return the state of the endpoint, its URL, traffic and deployments, and the
        versions by worker.
        """
        with _deployments(self._target) as deployments:
            return describe_endpoint(deployments.get_endpoint(endpoint))


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Fields = None) -> None:
    """Serve the model in the foreground until Ctrl-C. `list` and other commands do not
    show this server.
    """
    with _mlflow_errors():
        check_fit(*NEEDED)
        set_service_timeouts()
        spec = new_endpoint(name, model_uri, apply_flavor(name, model_uri, flavor, config))
        resolve(model_uri)  # Refuse an unknown model before the server is started.
        serve_in_foreground(spec, _echo)


def target_help() -> str:
    """Return the help of the target. Its list of the fields of `-C` is generated from
    the spec.
    """
    targets = "\n".join(f"  {target.uri:33}{target.servers}" for target in TARGETS.values())
    lines = [_ABOUT.replace("{targets}", targets)]
    for name, kind, default, description in field_reference():
        if default:
            kind = f"{kind}, default {default}"
        lines.append(f"  {name} ({kind})")
        lines.append(
            textwrap.fill(description, _WIDTH, initial_indent="      ", subsequent_indent="      ")
        )
    lines.append("\nNAME stands for the name of a deployment (variant) or of a monitor.")
    return "\n".join(lines)


def _echo(line: str) -> None:
    """Print a progress line. If nobody reads it any more, the change continues."""
    with suppress(BrokenPipeError):
        click.echo(line, err=True)


@contextmanager
def _deployments(target: Target) -> Iterator[Deployments]:
    with _mlflow_errors(), open_deployments(_echo, target) as deployments:
        yield deployments


@contextmanager
def _mlflow_errors() -> Iterator[None]:
    """Convert every error of onnxserve and MLflow into a `DeploymentError` with the
    same message and error code.
    """
    try:
        yield
    except DeploymentError:
        raise
    except (OnnxserveError, MlflowException) as error:
        if isinstance(error, OnnxserveError):
            message = error.message
        else:
            message = one_line(error.message)
        raise DeploymentError(message, ErrorCode.Value(error.error_code)) from error  # type: ignore[call-arg]  # mlflow is untyped here
