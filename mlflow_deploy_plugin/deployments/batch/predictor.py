"""Predictors: a deployment's server, or the model itself in this process; and the row that an error is about."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import orjson

from mlflow_deploy_plugin.deployments.batch.rows import RowBatch
from mlflow_deploy_plugin.deployments.scoring import ScoringTarget
from mlflow_deploy_plugin.deployments.server_client import ServerSession, post_with_retries
from mlflow_deploy_plugin.errors import BodyTooLarge, InferenceError, InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.registry import download, resolve
from mlflow_deploy_plugin.runtime import PYTHON_FUNCTION, Feeds, OnnxModel, available_cores, read_served_artifact
from mlflow_deploy_plugin.server.protocols import arrow, mlflow

Predictor = Callable[[str, bytes], Any]
"""A function of content type and body of /invocations that returns the value of `predictions`."""

_TRIES = 6
_LARGEST_TABLE_BYTES = 2**31


@contextmanager
def server_predictor(target: ScoringTarget) -> Iterator[Predictor]:
    """Predict by a server; one that is overloaded, or is just being changed, is tried again."""
    url = f"{target.url}/invocations"
    with ServerSession() as session:
        yield lambda content_type, body: post_with_retries(
            session, url, body, content_type, target.timeout_seconds, _TRIES
        ).get("predictions")


@contextmanager
def model_predictor(model_uri: str) -> Iterator[Predictor]:
    """Predict by the model in this process: by ONNX Runtime if it has that form, else by `mlflow.pyfunc`.

    Raises:
        InvalidConfig, NotFound, RegistryUnavailable: the model cannot be had.
        InvalidArtifact: it cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="onnxserve-") as folder:
        files = download(resolve(model_uri).source, Path(folder))
        is_pyfunc = read_served_artifact(files).flavor == PYTHON_FUNCTION
        yield _pyfunc_predictor(files) if is_pyfunc else _onnx_predictor(files)


def predict_batch(predict: Predictor, name: str, batch: RowBatch) -> list[Any]:
    """Return one plain value for each row of a batch of the file `name`.

    Raises:
        InvalidRequest: a row cannot be answered; the message says which, and why.
    """
    try:
        return _split_by_row(predict(batch.content_type, batch.body), len(batch), f"{name}, {batch.places[0]}")
    except BodyTooLarge:
        if len(batch) == 1:
            raise
        middle = len(batch) // 2
        halves = (batch.part(0, middle), batch.part(middle, len(batch)))
        return [row for half in halves for row in predict_batch(predict, name, half)]
    except (InvalidRequest, InferenceError) as error:
        raise InvalidRequest(_error_with_row(predict, name, batch, error)) from None


def _onnx_predictor(folder: Path) -> Predictor:
    loaded = OnnxModel.load(folder, "cpu", available_cores())

    def predict(content_type: str, body: bytes) -> Any:
        is_parquet = content_type == arrow.PARQUET
        if is_parquet:
            feeds: Feeds = arrow.decode(content_type, body, loaded.schema, _LARGEST_TABLE_BYTES)
        else:
            feeds = mlflow.decode(content_type, body, loaded.schema)
        outputs = loaded.run(feeds, loaded.artifact.prediction)
        prediction = loaded.prediction(outputs, of_table=is_parquet or mlflow.is_table(content_type, body))
        return orjson.loads(mlflow.encode(prediction))["predictions"]

    return predict


def _pyfunc_predictor(folder: Path) -> Predictor:
    from mlflow_deploy_plugin.pyfunc import RequestRefused, Scorer, one_line  # here: mlflow.pyfunc takes a second

    try:
        with redirect_stdout(sys.stderr):  # a model may print, and the predictions may go to stdout
            scorer = Scorer.load(folder)
    except Exception as error:  # noqa: BLE001 - a model's own code raises what it likes
        raise OnnxserveError(f"MLflow cannot load the model: {one_line(error)}") from None

    def predict(content_type: str, body: bytes) -> Any:
        try:
            with redirect_stdout(sys.stderr):
                response = scorer.invoke(content_type, body).body
        except RequestRefused as refusal:
            raise InvalidRequest(refusal.message) from None
        return orjson.loads(response)["predictions"]

    return predict


def _split_by_row(predictions: Any, count: int, where: str) -> list[Any]:
    """Return predictions by row; the server gives a list, or a mapping of lists by output."""
    if isinstance(predictions, dict) and all(isinstance(values, list) for values in predictions.values()):
        lengths = {len(values) for values in predictions.values()}
        if lengths == {count}:
            return [dict(zip(predictions, row, strict=True)) for row in zip(*predictions.values(), strict=True)]
    if isinstance(predictions, list) and len(predictions) == count:
        return predictions
    given = f"{len(predictions)} predictions" if isinstance(predictions, list) else f"a {type(predictions).__name__}"
    raise OnnxserveError(f"{where}: the model answers {count} rows with {given}; one prediction a row is needed")


def _error_with_row(predict: Predictor, name: str, batch: RowBatch, error: OnnxserveError) -> str:
    """Return the message about the first row that is refused alone, or about the file if no row is."""
    first, last = (_batch_error(predict, batch.part(row, row + 1)) for row in (0, len(batch) - 1))
    if first and first == last == error.message and len(batch) > 1:
        return f"{name}: {first}"
    if first:
        return f"{name}, {batch.places[0]}: {_without_row_number(first)}"
    while len(batch) > 1:
        middle = len(batch) // 2
        halves = batch.part(0, middle), batch.part(middle, len(batch))
        refused = next((half for half in halves if _batch_error(predict, half)), None)
        if refused is None:  # the rows are refused together, and neither half alone
            return f"{name}, {batch.places[0]} to {batch.places[-1]}: {error.message}"
        batch = refused
    return f"{name}, {batch.places[0]}: {_without_row_number(_batch_error(predict, batch))}"


def _batch_error(predict: Predictor, batch: RowBatch) -> str:
    """Return why these rows are refused; empty if they are not."""
    try:
        predict(batch.content_type, batch.body)
    except (InvalidRequest, InferenceError) as error:
        return error.message
    return ""


def _without_row_number(message: str) -> str:
    """Return the message without the row's number, which is not the one in the file: the row was sent alone."""
    return message.replace(", row 0", "", 1).replace("row 0 ", "the row ", 1)
