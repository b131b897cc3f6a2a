"""What people pass to `predict` → the body that /invocations takes.

The body is one of MLflow's forms: dataframe_split, dataframe_records, instances, inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import orjson
import pandas as pd

from mlflow_deploy_plugin.deployments.config import traffic_weights
from mlflow_deploy_plugin.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.deployments.server_client import ServerSession, post
from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest, NotReady, OnnxserveError

BODY_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def score(url: str, route: Literal["invocations", "explain"], inputs: Any, timeout_seconds: float) -> dict[str, Any]:
    """The server's answer to `inputs`: a JSON object, the predictions of /invocations under `predictions`.

    Raises:
        InvalidRequest: `inputs` are of no form that can be sent.
        OnnxserveError: the server's own refusal, in its words; NotReady where it does not answer.
    """
    with ServerSession() as session:
        document = post(session, f"{url}/{route}", encode_body(inputs), "application/json", timeout_seconds)
    if route == "invocations" and "predictions" not in document:
        raise OnnxserveError(f"the server at {url} answered without predictions")
    return document


def encode_body(inputs: Any) -> bytes:
    """The JSON body for a DataFrame, an ndarray, a dict of columns (or of one row), or a list of rows or records.

    A mapping, or a DataFrame made of a file by `pandas.read_json`, that is one of MLflow's forms is taken as that.
    Numbers keep all their digits; NaN, NaT and None are null.

    Raises:
        InvalidRequest: nothing of these, or something in it that JSON has no form for.
    """
    try:
        return orjson.dumps(_body_document(inputs), default=_json_value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise InvalidRequest(f"the input cannot be sent as JSON: {error}") from None


def _body_document(inputs: Any) -> Mapping[str, Any]:
    match inputs:
        case pd.DataFrame():
            return _document_read_by_pandas(inputs) or _frame_document(inputs)
        case np.ndarray():
            return {"inputs": inputs.tolist()}
        case Mapping():
            return _mapping_document(inputs)
        case list() | tuple():
            is_records = len(inputs) > 0 and all(isinstance(row, Mapping) for row in inputs)
            return {"dataframe_records" if is_records else "inputs": list(inputs)}
    raise InvalidRequest(
        f"cannot predict on {type(inputs).__name__}: give a DataFrame, an array, a dict of columns, or a list of rows"
    )


def _frame_document(frame: pd.DataFrame) -> Mapping[str, Any]:
    cells = frame.astype(object)
    rows = cells.where(frame.notna(), None).to_numpy().tolist()
    if frame.columns.inferred_type == "integer":
        return {"inputs": rows}  # columns without names are known by their position
    return {"dataframe_split": {"columns": [str(column) for column in frame.columns], "data": rows}}


def _mapping_document(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    if sum(form in inputs for form in BODY_FORMS) == 1:
        return inputs
    if not any(isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) for value in inputs.values()):
        return {"dataframe_records": [inputs]}
    return {"inputs": dict(inputs)}


def _document_read_by_pandas(frame: pd.DataFrame) -> Mapping[str, Any] | None:
    """What stood in the file, where `frame` is what `pandas.read_json` makes of one of MLflow's forms; else None.

    It takes the form's name for the only column, and the keys or positions within for the index.
    """
    if list(frame.columns) not in [[form] for form in BODY_FORMS]:
        return None
    form = str(frame.columns[0])
    cells = [None if _is_missing(cell) else cell for cell in frame[form].tolist()]
    if all(isinstance(key, str) for key in frame.index):
        document = dict(zip(frame.index, cells, strict=True))
        is_split = {"columns", "data"} <= document.keys()
        return {form: document} if form in ("inputs", "instances") or is_split else None
    return {form: cells}


def _is_missing(cell: Any) -> bool:
    return pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def _json_value(value: Any) -> Any:
    """What orjson does not know: numpy scalars and arrays that it cannot take as they are, and timestamps."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    raise TypeError(f"a value of the type {type(value).__name__} ({str(value)[:40]!r})")


_MLFLOW_CLI_MODULE = "mlflow.deployments.cli"


def original_document(inputs: Any) -> Any:
    """The document that `inputs` was made of, where it is a frame that MLflow's own command has just read; `inputs`
    itself from everybody else, and where the file is one of pandas' own forms or not here."""
    path = _input_path()
    if path is None or not isinstance(inputs, pd.DataFrame):
        return inputs
    try:
        document = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):  # a URL, a compressed file, NaN: what pandas takes beside
        return inputs
    return inputs if _is_pandas_json(document) else document


def _input_path() -> Path | None:
    context = click.get_current_context(silent=True)
    if context is None or getattr(context.command.callback, "__module__", "") != _MLFLOW_CLI_MODULE:
        return None
    path = context.params.get("input_path")
    return Path(path) if path else None


def _is_pandas_json(document: Any) -> bool:
    """`{"a": {"0": 1, "1": 3}}`, as `DataFrame.to_json` writes it, column by column or row by row."""
    if not isinstance(document, dict) or any(form in document for form in BODY_FORMS):
        return False
    return all(isinstance(values, dict) for values in document.values())


@dataclass(frozen=True)
class ScoringTarget:
    """Where a question goes, and how long its answer is waited for."""

    url: str
    timeout_seconds: float


def scoring_target(deployments: Deployments, name: str | None, endpoint: str | None) -> ScoringTarget:
    """The server of the deployment, which must be the only one that answers its endpoint; or that of the endpoint.

    Raises:
        InvalidConfig: neither is said, or the deployment is not the one that would answer.
        NotFound: there is no such deployment or endpoint.
        NotReady: it does not run.
    """
    if name is not None:
        found = deployments.get(name, endpoint)
        observed = ObservedEndpoint(found.endpoint, found.observation)
        _check_answers_alone(name, observed)
    elif endpoint is not None:
        observed = deployments.get_endpoint(endpoint)
    else:
        raise InvalidConfig("say which deployment or which endpoint is asked")
    seen = observed.observation
    if not seen.url:
        raise NotReady(f"{observed.endpoint.name}: {seen.state}; {seen.reason}")
    return ScoringTarget(seen.url, observed.endpoint.spec.server.request_timeout_seconds)


def _check_answers_alone(name: str, observed: ObservedEndpoint) -> None:
    endpoint = observed.endpoint
    answering = [one for one, weight in traffic_weights(endpoint.spec).items() if weight > 0]
    if answering != [name]:
        raise InvalidConfig(
            f"{name!r} cannot be asked alone, the endpoint {endpoint.name!r} is answered by "
            f"{', '.join(answering)}: ask by --endpoint {endpoint.name}"
        )
