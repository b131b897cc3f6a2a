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
from statistics import geometric_mean

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, read_mlmodel
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds, no_batch_dimension_reason, row_count
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.evaluation.dataset import NamedArrays, take_rows
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx

SIZES = (1, 8, 1000)
"""The numbers of rows per request for which latency is measured."""
ROUNDS = 21
ROUND_SECONDS = 0.02
_LOADS = 5
_FASTER = 0.95


@dataclass(frozen=True)
class FormCost:
    """The cost of a form.

    Attributes:
        size: bytes of the ONNX file.
        packed: bytes of the ONNX file after zlib, where the zeros of pruned weights
            save space.
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

    def speed(self, rows: int | None = None) -> float:
        """Return the ratio for requests with `rows` rows, or the geometric mean over
        all sizes.
        """
        if rows:
            return self.ratio[rows]
        return geometric_mean(self.ratio.values())

    def is_faster(self, rows: int | None = None) -> bool:
        """Return True if the form is faster by at least 5 % in the median, and faster
        in three of four rounds.
        """
        if rows:
            upper = self.upper_ratio[rows]
        else:
            upper = geometric_mean(self.upper_ratio.values())
        return self.speed(rows) < _FASTER and upper < 1


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
    folders: Sequence[Path],
    rows: NamedArrays,
    rounds: int = ROUNDS,
) -> list[FormCost]:
    """Measure the forms in `folders` on the rows. The first form is the base. Raises
    InferenceError if a form fails.
    """
    models = [OnnxModel.load(folder) for folder in folders]
    loads: list[list[float]] = [[] for _ in models]
    for folder, durations in [*zip(folders, loads, strict=True)] * _LOADS:
        start = time.perf_counter()
        OnnxModel.load(folder)
        durations.append(time.perf_counter() - start)
    times = np.empty((len(SIZES), rounds, len(models)))
    for size, of_size in zip(SIZES, times, strict=True):
        picked = take_rows(rows, np.resize(np.arange(row_count(rows)), size))
        feeds = [LoadedOnnx(model).feeds(picked) for model in models]
        for model, arrays in zip(models, feeds, strict=True):
            model.run(arrays)
        for of_round in of_size:
            of_round[:] = [
                _mean_seconds(model, arrays) for model, arrays in zip(models, feeds, strict=True)
            ]
    ratios = times / times[..., :1]
    # 3 × [sizes, models]
    figures = [
        np.median(times, axis=1) * 1e6,
        *np.quantile(ratios, (0.5, 0.75), axis=1),
    ]
    costs = []
    for position, model in enumerate(models):
        content = model.artifact.onnx_file.read_bytes()
        load = float(np.median(loads[position])) * 1e3
        by_size = [
            dict(zip(SIZES, figure[:, position].tolist(), strict=True)) for figure in figures
        ]
        costs.append(FormCost(len(content), len(zlib.compress(content, 1)), load, *by_size))
    return costs


def _mean_seconds(model: OnnxModel, feeds: Feeds) -> float:
    calls = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < ROUND_SECONDS or not calls:
        model.run(feeds)
        calls += 1
    return elapsed / calls
