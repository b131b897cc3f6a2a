"""Explanations of predictions, from a process beside the worker that runs only while it is used.

SHAP takes seconds to import, and 250 MB. So the first request starts the process and waits for it, and the process ends
after some minutes without a request. One process explains for every version of the worker.

`check_explainable` and the functions below it find the parts of a model that can be explained: its features, and the
numbers among its outputs. The worker calls them to refuse a request early, the process (`pyfunc/explainer.py`) to
compute.
"""

import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.errors import InvalidArtifact, InvalidRequest, NotInstalled, NotReady, TooManyRequests
from mlflow_deploy_plugin.runtime import PYTHON_FUNCTION, Array, Artifact, Feeds, Output
from mlflow_deploy_plugin.server.models.loading import INPUT_EXAMPLE
from mlflow_deploy_plugin.server.models.side_process import SideMessage, SideProcess

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "mlflow_deploy_plugin.pyfunc", "explain")
_GRACE_SECONDS = 5.0
"""The process gives up by itself; if it has not by then, it is killed."""
MAX_COLUMNS = 1000
MAX_OUTPUTS = 100

Name = str | int | float | bool
"""A class keeps its type, so that a predicted label is found among the names."""


class ExplainerClient:
    """Keeps the explaining process as long as it is needed, and sends it requests.

    Args:
        timeout_seconds: the time for one explanation, with the wait for its turn and the start of the process.
        max_waiting: the most requests in this worker that are explained or wait for it. More are refused, so that
            threads are left for predictions.
        idle_seconds: the process ends after this time without a request.
    """

    def __init__(
        self, timeout_seconds: float, max_waiting: int, idle_seconds: float = 300.0, command: Sequence[str] = COMMAND
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._max_waiting = max_waiting
        self._idle_seconds = idle_seconds
        self._command = command
        self._starting = threading.Lock()
        self._lock = threading.Lock()
        self._active = 0
        self._process: SideProcess | None = None
        self._idle: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process, or None."""
        process = self._process
        return process.pid if process else None

    def explain(self, folder: Path, feeds: Feeds, max_evals: int, seed: int) -> SideMessage:
        """Return what `pyfunc.explainer.answer` computes for these rows of the model in `folder`.

        Raises:
            NotInstalled: shap is missing.
            InvalidRequest, InferenceError: the model cannot be explained.
            DeadlineExceeded: it took longer than `timeout_seconds`.
            TooManyRequests: `max_waiting` requests wait already.
            NotReady: the process cannot be started, is still starting, or has ended over this request.
        """
        deadline = time.perf_counter() + self._timeout_seconds
        if importlib.util.find_spec("shap") is None:
            raise NotInstalled(
                "explanations need shap, which is not installed where this server runs: "
                "pip install 'mlflow-onnxserve[explain]'"
            )
        with self._admit():
            process = self._start(deadline)
            fields = {"folder": str(folder), "max_evals": max_evals, "seed": seed}
            left = max(0.0, deadline - time.perf_counter())
            return process.request(SideMessage("explain", {**fields, "seconds": left}, {"feeds": feeds}), deadline)

    def close(self) -> None:
        """End the process; the next request would start another."""
        with self._lock:
            process, self._process = self._process, None
            if self._idle is not None:
                self._idle.cancel()
        if process is not None:
            process.close()

    @contextmanager
    def _admit(self) -> Iterator[None]:
        """Bound the requests that wait, and keep the process while there is one."""
        with self._lock:
            if self._active >= self._max_waiting:
                raise TooManyRequests(
                    f"{self._active} requests are being explained in this worker, or wait for it; no more wait", 1
                )
            self._active += 1
            if self._idle is not None:
                self._idle.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                if self._active == 0:
                    self._idle = threading.Timer(self._idle_seconds, self._end_if_idle)
                    self._idle.daemon = True
                    self._idle.start()

    def _end_if_idle(self) -> None:
        with self._lock:
            if self._active or self._process is None:
                return
            process, self._process = self._process, None
        logger.info("nobody has asked for an explanation for %.0f s; process %s ends", self._idle_seconds, process.pid)
        process.close()

    def _start(self, deadline: float) -> SideProcess:
        """Return the process, which the first request starts and all others wait for."""
        if not self._starting.acquire(timeout=max(0.0, deadline - time.perf_counter())):
            raise NotReady("the process that explains is still being started", 1)
        try:
            process = self._process
            if process is None or process.has_failed:  # perhaps after the first request had stopped waiting for it
                process = self._process = SideProcess(
                    self._command, self._timeout_seconds + _GRACE_SECONDS, "explainer"
                )
                process.start(max(0.0, deadline - time.perf_counter()))
                logger.info("process %s explains", process.pid)
            return process
        except InvalidArtifact as error:
            self._process = None
            raise NotReady(f"predictions cannot be explained: {error.message}") from None
        finally:
            self._starting.release()


@dataclass(frozen=True, slots=True)
class ExplainedFeature:
    """A column of a table, or of a tensor of rank 2.

    Attributes:
        places: the inputs of the graph that it feeds, and its position in each.
    """

    name: str
    places: tuple[tuple[str, int], ...]

    def values(self, feeds: Mapping[str, Array]) -> Array:
        """Return [N], the values that the graph is fed with."""
        name, position = self.places[0]
        return feeds[name].reshape(len(feeds[name]), -1)[:, position]


def check_explainable(artifact: Artifact) -> None:
    """Check, as far as that is possible without rows, that the model can be explained.

    Raises:
        InvalidRequest: it cannot; the message says why.
    """
    if artifact.flavor == PYTHON_FUNCTION:
        raise InvalidRequest("this version has no ONNX form (it is a pyfunc), and only an ONNX model is explained here")
    for entry in artifact.inputs:
        if entry.shape:  # an empty one says nothing
            _check_rank(entry.name, len(entry.shape))
        if entry.shape[:1] not in ((), (-1,)):
            raise InvalidRequest(
                f"the graph takes batches of {entry.shape[0]} rows; explaining needs one that takes any number of them"
            )
    explained_outputs(artifact)
    if artifact.reference is None and not (artifact.folder / INPUT_EXAMPLE).is_file():
        raise InvalidRequest(
            "the model came without rows to explain against; log it with mlflow_deploy_plugin.log_model and "
            "reference_data= or input_example="
        )


def is_explainable(artifact: Artifact) -> bool:
    try:
        check_explainable(artifact)
    except InvalidRequest:
        return False
    return True


def explained_features(artifact: Artifact, feeds: Feeds) -> list[ExplainedFeature]:
    """Return the features in the order of the signature; `feeds` show how many a tensor has.

    Raises:
        InvalidRequest: the rows are not made of single values, or of too many.
    """
    for entry in artifact.inputs:
        _check_rank(entry.name, feeds[entry.name].ndim)
    if artifact.columns:
        places: dict[str, list[tuple[str, int]]] = {column.name: [] for column in artifact.columns}
        for entry in artifact.inputs:
            for position, name in enumerate(entry.columns):
                places[name].append((entry.name, position))
        features = [ExplainedFeature(name, tuple(where)) for name, where in places.items() if where]
    else:
        features = []
        for entry in artifact.inputs:
            array = feeds[entry.name]
            for place in range(1 if array.ndim == 1 else array.shape[1]):
                # those of the only tensor are numbered, as unnamed columns are
                numbered = str(place) if len(artifact.inputs) == 1 else f"{entry.name}[{place}]"
                features.append(ExplainedFeature(entry.name if array.ndim == 1 else numbered, ((entry.name, place),)))
    if len(features) > MAX_COLUMNS:
        raise InvalidRequest(f"the model takes {len(features)} columns; at most {MAX_COLUMNS} are explained")
    return features


def explained_outputs(artifact: Artifact) -> list[Output]:
    """Return the outputs to explain: probabilities of the classes, else scores, else the numbers of `predict`.

    Raises:
        InvalidRequest: the model has none of them.
    """
    for role in ("probabilities", "scores"):
        if found := [output for output in artifact.outputs if output.role == role]:
            return found
    given = [output for output in artifact.outputs if output.name in artifact.prediction and output.role == "values"]
    for kinds in (("map",), ("float16", "float32", "float64"), ("int8", "int16", "int32", "int64", "uint8", "bool")):
        if found := [output for output in given if output.dtype in kinds]:
            return found
    raise InvalidRequest(
        "the model answers labels alone, and no number that could be explained; log it with its probabilities"
    )


def explained_columns(
    artifact: Artifact, explained: Sequence[Output], outputs: Mapping[str, Array]
) -> tuple[list[Name], Array]:
    """Return the names of the numbers to explain, and the numbers, [N, K] float64.

    A number is named by its class, else by its position; the only number of a row has the name of its output.

    Raises:
        InvalidRequest: an output does not have one row of numbers for each row, or there are too many of them.
    """
    names: list[Name] = []
    parts = []
    for output in explained:
        array = outputs[output.name]
        labels: list[Name]
        if output.dtype == "map":
            labels = [key.item() if isinstance(key, np.generic) else key for key in array[0]]
            numbers = np.array([[row[key] for key in array[0]] for row in array], dtype=np.float64)
        elif array.ndim not in (1, 2) or array.dtype.kind not in "iufb":
            raise InvalidRequest(
                f"the output {output.name!r} is {array.dtype} of {array.ndim} dimensions; numbers, one or a few a row, "
                "are explained"
            )
        else:
            numbers = array.astype(np.float64).reshape(len(array), -1)
            width = numbers.shape[1]
            labels = list(artifact.classes) if width == len(artifact.classes) else list(range(width))
            labels = labels if width > 1 else []
        if len(explained) > 1:
            labels = [f"{output.name}[{label}]" for label in labels]
        names += labels or [output.name]
        parts.append(numbers)
    if len({len(part) for part in parts}) > 1:
        raise InvalidRequest("the model's outputs have different numbers of rows, and cannot be explained")
    if len(names) > MAX_OUTPUTS:
        raise InvalidRequest(f"the model answers {len(names)} numbers a row; at most {MAX_OUTPUTS} are explained")
    return names, np.concatenate(parts, axis=1)


def _check_rank(name: str, rank: int) -> None:
    if rank not in (1, 2):
        raise InvalidRequest(
            f"the input {name!r} has {rank} dimensions; what is explained is a table: columns, or tensors with one row "
            "of single values a prediction (not images, texts or sequences)"
        )
