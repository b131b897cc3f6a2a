"""One version of a model, ready to answer rows: by our runtime where it has an ONNX form, else by mlflow.pyfunc."""

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlflow_deploy_plugin.errors import CodeRefused, InferenceError, SchemaMismatch
from mlflow_deploy_plugin.registry import ResolvedModel, download
from mlflow_deploy_plugin.runtime import PYTHON_FUNCTION, Array, Artifact, OnnxModel, read_served_artifact

_CHUNK = 5_000
TIMEOUT_SECONDS = 600.0
"""So long may a model without an ONNX form take to load, and to answer all rows of a check."""


@dataclass(frozen=True)
class Predictions:
    """What a model answers to N rows.

    Attributes:
        prediction: [N], or [N, k] of several values a row.
        is_label: the prediction names a class.
        probabilities: [N, C], of a classifier that gives them.
        classes: the labels in the order of the probabilities; empty where unknown.
    """

    prediction: Array
    is_label: bool
    probabilities: Array | None = None
    classes: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.prediction)


class LoadedModel(Protocol):
    """A loaded version.

    Attributes:
        artifact: what its folder says, with inputs and outputs bound.
    """

    @property
    def artifact(self) -> Artifact: ...

    def predict(self, rows: Mapping[str, Array]) -> Predictions:
        """The answers to rows, which may hold more columns than the model needs.

        Raises:
            SchemaMismatch, InferenceError: the model refuses them, as its server would.
        """
        ...


@contextmanager
def downloaded_version(resolved: ResolvedModel) -> Iterator[Path]:
    """The folder of a version's files, for as long as it is needed; raises what `download` raises."""
    with tempfile.TemporaryDirectory(prefix="onnxserve-gate-") as temporary:
        yield download(resolved.source, Path(temporary))


def load_version(folder: Path, allow_pyfunc: bool = True) -> LoadedModel:
    """The model in an MLmodel folder; computes in one thread.

    Raises:
        CodeRefused: it has no ONNX form, and `allow_pyfunc` is false.
        InvalidArtifact: it is no model that can be served.
        InferenceError: mlflow.pyfunc cannot load it.
    """
    artifact = read_served_artifact(folder)
    if artifact.flavor != PYTHON_FUNCTION:
        return _Onnx(OnnxModel.load(folder))
    if not allow_pyfunc:
        raise CodeRefused(
            "a version without an ONNX form would run code of its own to be judged, which is not done on this server; "
            "`onnxserve gate MODEL VERSION` does it where it is called"
        )
    return _Pyfunc(artifact)


class _Onnx:
    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self.artifact = model.artifact

    def predict(self, rows: Mapping[str, Array]) -> Predictions:
        names = self._model.schema.names
        # the only tensor may have no name, and then is whatever the rows have
        given = {name: rows[name] for name in names if name in rows} if any(names) else dict(rows)
        total = len(next(iter(given.values()))) if given else 0
        parts = []
        for start in range(0, total, _CHUNK):
            part = {name: array[start : start + _CHUNK] for name, array in given.items()}
            parts.append(self._model.run(self._model.schema.from_columns(part)))
        if not parts:
            raise SchemaMismatch(f"none of the model's columns is in the rows; it needs {', '.join(names)}")
        return self._meaning({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def _meaning(self, outputs: dict[str, Array]) -> Predictions:
        artifact = self.artifact
        by_role: dict[str, Array] = {}
        for output in artifact.outputs:
            by_role.setdefault(_role(artifact, output.name, outputs[output.name]), outputs[output.name])
        probabilities = by_role.get("probabilities")
        if probabilities is not None and probabilities.ndim != 2:
            probabilities = None
        label = by_role.get("label")
        if label is not None:
            return Predictions(_flat(label), True, probabilities, artifact.classes)
        name = (artifact.prediction or tuple(outputs))[0]
        return Predictions(_flat(outputs[name]), False, probabilities, artifact.classes)


class _Pyfunc:
    def __init__(self, artifact: Artifact) -> None:
        from mlflow import pyfunc  # seconds, and only for what has no ONNX form

        self.artifact = artifact
        self._hangs = False
        try:
            self._model = self._in_time(lambda: pyfunc.load_model(str(artifact.folder)))
        except InferenceError:
            raise
        except Exception as error:  # noqa: BLE001 - the model's own code
            raise InferenceError(f"mlflow.pyfunc cannot load it: {_one_line(error)}") from None

    def predict(self, rows: Mapping[str, Array]) -> Predictions:
        import pandas as pd  # as above

        columns = self.artifact.columns
        if missing := [column.name for column in columns if column.required and column.name not in rows]:
            raise SchemaMismatch(f"column {missing[0]!r} is missing")
        try:
            if self.artifact.tensors:
                named = {tensor.name: rows[tensor.name] for tensor in self.artifact.tensors if tensor.name}
                data: Any = named or next(iter(rows.values()))
            else:
                types = {column.name: column.type for column in columns}
                names = types.keys() & rows.keys() if types else rows.keys()
                data = pd.DataFrame({n: _typed(rows[n], types.get(n, "")) for n in rows if n in names})
            return _of_pyfunc(self._in_time(lambda: self._model.predict(data)))
        except InferenceError:
            raise
        except Exception as error:  # noqa: BLE001 - the model's own code
            raise InferenceError(f"the model cannot compute this input: {_one_line(error)}") from None

    def _in_time(self, work: Callable[[], Any]) -> Any:
        """Its code may hang: then it does so in a thread that nobody waits for, and is not asked again."""
        if self._hangs:
            raise InferenceError("the model hangs")
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the model's own code
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        self._hangs = not wait([done], timeout=TIMEOUT_SECONDS).done
        if self._hangs:
            raise InferenceError(f"the model did not answer within {TIMEOUT_SECONDS:g} s")
        return done.result()


def _typed(values: Array, kind: str) -> Array:
    """Whole numbers as the floating-point ones that the signature asks for: MLflow's enforcement refuses 64 bits."""
    return values.astype(np.float64) if kind in ("double", "float") and values.dtype.kind in "iu" else values


def _of_pyfunc(prediction: Any) -> Predictions:
    if isinstance(prediction, Mapping):
        prediction = next(iter(prediction.values()))
    array = np.asarray(prediction)
    if array.dtype.kind == "O" and all(isinstance(value, int | float) for value in array.flat):
        array = np.array(array.tolist())
    return Predictions(_flat(array), array.dtype.kind in "OUib")


def _role(artifact: Artifact, name: str, values: Array) -> str:
    """Our flavor says it; of MLflow's own `onnx` flavor the types do, as skl2onnx makes classifiers."""
    if artifact.flavor == "onnxserve":
        return next(output.role for output in artifact.outputs if output.name == name)
    if values.dtype.kind in "OUib" and values.ndim == 1 and not isinstance(values[:1].tolist()[:1], dict):
        return "label"
    return "probabilities" if len(artifact.outputs) > 1 and values.ndim == 2 and values.shape[1] > 1 else "values"


def _flat(array: Array) -> Array:
    """[N, 1] as [N]."""
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
