"""Measure size, load time and latency of the forms of a model alternately, in one
process and one thread.

Each round measures each form once, so that other load affects all forms. A ratio is the
median of form ÷ base.
"""

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, read_mlmodel
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel
from mlflow_deploy_plugin.serve.runtime.feeds import Array, no_batch_dimension_reason, row_count
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays, take_rows
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx

SIZES = (1, 8, 1000)
"""The numbers of rows per request for which latency is measured."""
ROUNDS = 21
ROUND_SECONDS = 0.02
_LOADS = 5


@dataclass(frozen=True)
class FormCost:
    """The cost of a form.

    Attributes:
        size: bytes of the ONNX file.
        packed: bytes of the ONNX file after zlib.
        load_ms: median milliseconds to create a session.
        latency_us: median microseconds of a request, by rows per request.
        ratio: latency ÷ latency of the base, by rows per request; `upper_ratio` is the
            upper quartile of the rounds.
    """

    size: int
    packed: int
    load_ms: float
    latency_us: Mapping[int, float]
    ratio: Mapping[int, float]
    upper_ratio: Mapping[int, float]


def try_out(folder: Path) -> None:
    """Load a form and predict a row in a process that may crash, and that starts fast:
    this module imports little.
    """
    model = OnnxModel.load(folder)
    model.run(model.example_feeds())


def load_onnx(folder: Path, resolved: ResolvedModel) -> LoadedOnnx:
    """Load a version. Raises InvalidConfig if it has no ONNX form, or if its requests
    have no rows.
    """
    if not {FLAVOR, "onnx"} & set(read_mlmodel(folder).get("flavors") or ()):
        raise InvalidConfig(f"{resolved.source} has no ONNX form, which this command needs")
    loaded = LoadedOnnx(OnnxModel.load(folder))
    if reason := no_batch_dimension_reason(loaded.artifact):
        raise InvalidConfig(f"{resolved.source} has no rows that could be measured: {reason}")
    return loaded


def measure_forms(
    folders: Sequence[Path], rows: NamedArrays, rounds: int = ROUNDS
) -> list[FormCost]:
    """Measure the forms in `folders` on the rows, in `rounds` rounds. The first form is
    the base. Raises InferenceError if a form fails.
    """
    models = [OnnxModel.load(folder) for folder in folders]
    load_seconds = np.empty((_LOADS, len(folders)))
    for number, position in np.ndindex(load_seconds.shape):
        start = time.perf_counter()
        OnnxModel.load(folders[position])
        load_seconds[number, position] = time.perf_counter() - start
    load_ms = np.median(load_seconds, axis=0) * 1e3
    seconds = np.array([_request_seconds(models, rows, size, rounds) for size in SIZES])
    latencies = np.median(seconds, axis=1) * 1e6
    ratios, upper_ratios = np.quantile(seconds / seconds[..., :1], (0.5, 0.75), axis=1)
    costs = []
    for position, model in enumerate(models):
        content = model.artifact.onnx_file.read_bytes()
        costs.append(
            FormCost(
                size=len(content),
                packed=len(zlib.compress(content, 1)),
                load_ms=float(load_ms[position]),
                latency_us=_by_size(latencies[:, position]),
                ratio=_by_size(ratios[:, position]),
                upper_ratio=_by_size(upper_ratios[:, position]),
            )
        )
    return costs


def _request_seconds(
    models: Sequence[OnnxModel], rows: NamedArrays, size: int, rounds: int
) -> Array:
    """Return the mean seconds of requests with `size` rows, [rounds, forms]. In each
    round, a form runs as often as fits in `ROUND_SECONDS`, at least once.
    """
    request = take_rows(rows, np.resize(np.arange(row_count(rows)), size))
    feeds = [LoadedOnnx(model).feeds(request) for model in models]
    for model, arrays in zip(models, feeds, strict=True):
        model.run(arrays)
    seconds = np.empty((rounds, len(models)))
    for number, position in np.ndindex(seconds.shape):
        calls = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < ROUND_SECONDS or not calls:
            models[position].run(feeds[position])
            calls += 1
        seconds[number, position] = elapsed / calls
    return seconds


def _by_size(figures: Array) -> dict[int, float]:
    return dict(zip(SIZES, figures.tolist(), strict=True))
