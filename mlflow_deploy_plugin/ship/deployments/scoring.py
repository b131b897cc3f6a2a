"""Predictions and explanations from a deployment's server, for any input that MLflow's
clients accept.

The request body has one of MLflow's forms: dataframe_split, dataframe_records,
instances, inputs.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import orjson

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotReady, OnnxserveError
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.serve.client.rows import BODY_FORMS, encode_json, is_pandas_frame
from mlflow_deploy_plugin.ship.deployments.config import traffic_weights
from mlflow_deploy_plugin.ship.deployments.description import describe
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployment, Deployments
from mlflow_deploy_plugin.ship.deployments.server_client import ServerSession, post, post_for_events

_MLFLOW_CLI_MODULE = "mlflow.deployments.cli"


@dataclass(frozen=True)
class ScoringTarget:
    url: str
    timeout_seconds: float
    keys: tuple[str, ...]
    has_pyfunc: bool


@contextmanager
def scoring_target(
    deployments: Deployments, name: str | None, endpoint: str | None
) -> Iterator[ScoringTarget]:
    """Yield the server of a deployment, or of an endpoint (which selects a deployment
    by its traffic).

    Raises InvalidConfig if neither is specified or the deployment shares its endpoint's
    traffic, NotFound if it does not exist, and NotReady if the server is not running.
    """
    observed: Deployment | ObservedEndpoint
    if name is not None:
        observed = deployments.get(name, endpoint)
    elif endpoint is not None:
        observed = deployments.get_endpoint(endpoint)
    else:
        raise InvalidConfig("specify a deployment or an endpoint")
    stored = observed.endpoint
    observation = observed.observation
    answering = [variant for variant, weight in traffic_weights(stored.spec).items() if weight > 0]
    if name is not None and answering != [name]:
        raise InvalidConfig(
            f"{name!r} cannot be requested separately, because the endpoint {stored.name!r} sends "
            f"its traffic to {', '.join(answering)}: use --endpoint {stored.name}"
        )
    if not observation.url:
        raise NotReady(f"{stored.name}: {observation.state}; {observation.reason}")
    with deployments.reached(stored) as url:
        spec = stored.spec
        has_pyfunc = any(
            describe(Deployment(variant, stored, observation))["flavor"] == PYTHON_FUNCTION
            for variant in answering
        )
        yield ScoringTarget(url, spec.server.request_timeout_seconds, spec.capture.keys, has_pyfunc)


def score(target: ScoringTarget, route: Literal["invocations", "explain"], inputs: object) -> Json:
    """Return the server's JSON object for `inputs`. Raises InvalidRequest, and the
    errors of `server_client.post`.
    """
    body = encode_json(inputs)
    url = f"{target.url}/{route}"
    with ServerSession() as session:
        document, _ = post(session, url, body, "application/json", target.timeout_seconds)
    if route == "invocations" and "predictions" not in document:
        raise OnnxserveError(f"the server at {target.url} answered without predictions")
    return document


def score_stream(target: ScoringTarget, inputs: object) -> Iterator[object]:
    """Yield the parts of the answer of `predict_stream`. Raises InvalidRequest, and the
    errors of `post_for_events`.
    """
    body = orjson.dumps({**orjson.loads(encode_json(inputs)), "stream": True})
    url = f"{target.url}/invocations"
    with ServerSession() as session:
        yield from post_for_events(session, url, body, target.timeout_seconds)


def original_document(inputs: object) -> object:
    """Return the JSON document of `mlflow deployments predict -I FILE`; for other
    callers, return `inputs`.

    MLflow passes the frame that `pandas.read_json` makes from the file. pandas converts
    texts to numbers or dates, rounds floats, and does not recognise MLflow's forms. The
    file is read again unless pandas wrote it.
    """
    context = click.get_current_context(silent=True)
    if context is None or not is_pandas_frame(inputs):
        return inputs
    if getattr(context.command.callback, "__module__", "") != _MLFLOW_CLI_MODULE:
        return inputs
    path = context.params.get("input_path")
    try:
        document = json.loads(Path(path).read_bytes()) if path else None
    except (OSError, ValueError):  # Leave URLs and compressed files to pandas.
        document = None
    if isinstance(document, dict) and not any(form in document for form in BODY_FORMS):
        # Only DataFrame.to_json writes a mapping of mappings, such as {"a": {"0": 1,
        # "1": 3}}.
        is_of_pandas = all(isinstance(values, dict) for values in document.values())
        return inputs if is_of_pandas else document
    return inputs if document is None else document
