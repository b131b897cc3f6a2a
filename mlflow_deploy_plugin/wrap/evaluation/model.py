"""Load a model version to predict rows, with our runtime if it has an ONNX form,
otherwise with mlflow.pyfunc.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from mlflow_deploy_plugin.core.errors import CodeRefused, InferenceError, SchemaMismatch
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, PYTHON_FUNCTION
from mlflow_deploy_plugin.core.model_code import WITHOUT_ONNX, require_model_code
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, concatenate_feeds, slice_feeds
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact

Arrays: TypeAlias = Mapping[str, Array]
"""Columns [N], tensors or outputs [N, …] by name."""
_CHUNK = 5_000
_CHUNK_VALUES = 4_000_000
TIMEOUT_SECONDS = 600.0
"""The timeout for loading a model without an ONNX form, and for predicting all rows of
a check.
"""


@dataclass(frozen=True)
class ModelPredictions:
    """A model's predictions for N rows.

    Attributes:
        prediction: [N], or [N, k] if a row has several values.
        is_label: True if the prediction is a class.
        probabilities: [N, C]; None unless the model is a classifier that returns
            probabilities.
        classes: the labels in the order of the probabilities; empty if unknown.
    """

    prediction: Array
    is_label: bool
    probabilities: Array | None = None
    classes: tuple[object, ...] = ()

    def __len__(self) -> int:
        return len(self.prediction)

    @property
    def no_number(self) -> float:
        """The share of rows with NaN or infinity in the prediction or the
        probabilities.
        """
        outputs = [self.prediction]
        if self.probabilities is not None:
            outputs.append(self.probabilities)
        has_no_number = [
            ~np.isfinite(output).reshape(len(output), -1).all(axis=1)
            for output in outputs
            if output.dtype.kind == "f"
        ]
        return float(np.any(has_no_number, axis=0).mean()) if has_no_number else 0.0


class LoadedModel(Protocol):
    """A loaded version. `artifact` is the content of its MLmodel file, with inputs and
    outputs resolved.
    """

    @property
    def artifact(self) -> Artifact: ...

    def predict(self, rows: Arrays) -> ModelPredictions:
        """Return the predictions of rows with the required columns, or raise
        SchemaMismatch or InferenceError.
        """
        ...


def chunk_rows(rows: Arrays) -> int:
    """Return the number of rows that are computed per batch: thousands of table rows,
    or a few images.
    """
    width = sum(values[:1].size for values in rows.values())
    return max(1, min(_CHUNK, _CHUNK_VALUES // max(width, 1)))


@contextmanager
def downloaded_version(resolved: ResolvedModel) -> Iterator[Path]:
    with temporary_folder("onnxserve-evaluate-") as temporary:
        yield download(resolved.source, temporary)


def load_version(folder: Path, allow_pyfunc: bool = True) -> LoadedModel:
    """Load the model of an MLmodel folder, to run in one thread.

    Raises:
        CodeRefused: the model is a pyfunc, and `allow_pyfunc` is false or model code is
            switched off.
        InvalidArtifact: the folder has no valid model.
        InferenceError: loading fails.
    """
    artifact = read_served_artifact(folder)
    if artifact.flavor != PYTHON_FUNCTION:
        return LoadedOnnx(OnnxModel.load(folder))
    if not allow_pyfunc:
        raise CodeRefused(
            "a version without an ONNX form would run its own code, which is not allowed on this "
            "server; run `onnxserve gate MODEL` on your machine"
        )
    require_model_code(WITHOUT_ONNX)
    return _LoadedPyfunc(artifact)


class LoadedOnnx:
    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.artifact = model.artifact

    def predict(self, rows: Arrays) -> ModelPredictions:
        return predictions_of(self.artifact, self.outputs(rows))

    def feeds(self, rows: Arrays) -> Feeds:
        """Return the feeds of rows, which may have additional columns. Raises
        SchemaMismatch without one of the model's columns, or for values that do not
        fit.
        """
        names = self.model.schema.names
        # Without names, all arrays go to the single unnamed tensor.
        if any(names):
            columns = {name: rows[name] for name in names if name in rows}
        else:
            columns = dict(rows)
        if not columns or not len(next(iter(columns.values()))):
            raise SchemaMismatch(f"the rows have none of the model's columns {', '.join(names)}")
        return self.model.schema.from_columns(columns)

    def outputs(self, rows: Arrays) -> dict[str, Array]:
        """Return all outputs of the graph, [N, …] by name, computed in chunks of rows.
        Raises SchemaMismatch or InferenceError.
        """
        total = len(next(iter(rows.values()))) if rows else 0
        size = chunk_rows(rows)
        parts = []
        for start in range(0, max(total, 1), size):
            chunk = slice_feeds(rows, slice(start, start + size))
            parts.append(self.model.run(self.feeds(chunk)))
        return concatenate_feeds(parts)


def predictions_of(artifact: Artifact, outputs: Arrays) -> ModelPredictions:
    """Return the predictions in the outputs of a version, [N, …] by name: the label
    or, without it, the first output of `predict`. Some outputs may be missing.
    """
    by_role: dict[str, Array] = {}
    for output in artifact.outputs:
        if output.name not in outputs:
            continue
        values = outputs[output.name]
        role: str = output.role
        if artifact.flavor != FLAVOR:  # MLflow's `onnx` flavor has no roles.
            role = "values"
            if values.dtype.kind in "OUib" and values.ndim == 1:
                role = "label"
            elif values.ndim == 2 and values.shape[1] > 1 and len(artifact.outputs) > 1:
                role = "probabilities"
        by_role.setdefault(role, values)
    probabilities = by_role.get("probabilities")
    if probabilities is not None and probabilities.ndim != 2:
        probabilities = None
    label = by_role.get("label")
    if label is not None:
        return ModelPredictions(
            _flat(label), is_label=True, probabilities=probabilities, classes=artifact.classes
        )
    names = [*(name for name in artifact.prediction if name in outputs), *outputs]
    values = _flat(outputs[names[0]])
    is_label = values.dtype.kind == "O"  # A text is a label.
    return ModelPredictions(values, is_label, probabilities, artifact.classes)


class _LoadedPyfunc:
    """A version without an ONNX form, which mlflow.pyfunc runs."""

    def __init__(self, artifact: Artifact) -> None:
        from mlflow import pyfunc  # The import takes seconds, and only this class needs it.

        self.artifact = artifact
        self._hangs = False
        self._model = self._in_time(
            lambda: pyfunc.load_model(str(artifact.folder)), "mlflow.pyfunc cannot load the model"
        )

    def predict(self, rows: Arrays) -> ModelPredictions:
        """Return the predictions of rows with the required columns. Raises
        SchemaMismatch without a required column, and InferenceError if the model fails.
        """
        for column in self.artifact.columns:
            if column.required and column.name not in rows:
                raise SchemaMismatch(f"column {column.name!r} is missing")

        def first_array() -> Array:
            """Return the prediction, or the first output of a mapping. Objects that are
            numbers become numbers.
            """
            import pandas as pd  # The import takes half a second, and only this class needs it.

            # The input is a mapping of tensors, a single tensor, or a DataFrame.
            tensors = self.artifact.tensors
            types = {column.name: column.type for column in self.artifact.columns}
            model_input: Any
            if tensors or (not types and any(values.ndim > 1 for values in rows.values())):
                model_input = {tensor.name: rows[tensor.name] for tensor in tensors if tensor.name}
                if not model_input:
                    model_input = next(iter(rows.values()))
            else:
                columns = {
                    name: values for name, values in rows.items() if not types or name in types
                }
                for name, values in columns.items():
                    # MLflow rejects 64-bit integers in float columns.
                    if types.get(name) in ("double", "float") and values.dtype.kind in "iu":
                        columns[name] = values.astype(np.float64)
                model_input = pd.DataFrame(columns)
            prediction = self._model.predict(model_input)
            if isinstance(prediction, Mapping):
                prediction = next(iter(prediction.values()))
            array = np.asarray(prediction)
            is_object = array.dtype.kind == "O"
            if is_object and all(isinstance(value, int | float) for value in array.flat):
                return np.array(array.tolist())
            return array

        array = self._in_time(first_array, "the model cannot compute this input")
        return ModelPredictions(_flat(array), is_label=array.dtype.kind in "OUib")

    def _in_time(self, work: Callable[[], Any], failure: str) -> Any:
        """Run the model's code in a thread with a timeout. A model that timed out is
        not called again. An error of the model becomes an InferenceError with the text
        `failure`.
        """
        if self._hangs:
            raise InferenceError("the model hangs")
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - The model may raise any exception.
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        self._hangs = not wait([done], timeout=TIMEOUT_SECONDS).done
        if self._hangs:
            raise InferenceError(f"the model did not answer within {TIMEOUT_SECONDS:g} s")
        try:
            return done.result()
        except InferenceError:
            raise
        except Exception as error:  # noqa: BLE001 - The model may raise any exception.
            raise InferenceError(f"{failure}: {one_line(error, 200)}") from None


def _flat(array: Array) -> Array:
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    return array
