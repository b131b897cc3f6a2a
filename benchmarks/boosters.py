"""How fast a booster answers as ONNX, beside its own library: one row, and ten thousand.

    .venv/bin/python benchmarks/boosters.py

XGBoost, LightGBM and CatBoost with 100 trees on 20 columns, one thread each. The original and its ONNX form take turns
in rounds of a tenth of a second. Printed are the medians in microseconds and their ratio: above 1 the ONNX form is
faster. The original is asked by its own `predict` on a numpy array, as a server that holds it in memory would.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import catboost
import lightgbm
import numpy as np
import xgboost

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.runtime import OnnxModel

_TREES, _COLUMNS, _LEARNED, _BATCH = 100, 20, 20_000, 10_000
_ROUNDS, _ROUND_SECONDS = 15, 0.1


def models() -> dict[str, Any]:
    """Return unfitted boosters of about the same size."""
    cat = {"iterations": _TREES, "depth": 6, "thread_count": 1, "verbose": 0, "allow_writing_files": False}
    return {
        "xgboost, depth 6": xgboost.XGBRegressor(n_estimators=_TREES, max_depth=6, n_jobs=1),
        "lightgbm, 31 leaves": lightgbm.LGBMRegressor(n_estimators=_TREES, n_jobs=1, verbose=-1),
        "catboost, depth 6": catboost.CatBoostRegressor(**cat),
    }


def medians(parts: list[Callable[[], Any]]) -> list[float]:
    """Return the microseconds of each part, in rounds that take turns."""
    taken: list[list[float]] = [[] for _ in parts]
    for _ in range(_ROUNDS):
        for position, part in enumerate(parts):
            calls, began = 0, time.perf_counter()
            while time.perf_counter() - began < _ROUND_SECONDS:
                part()
                calls += 1
            taken[position].append((time.perf_counter() - began) / calls * 1e6)
    return [median(rounds) for rounds in taken]


def main() -> None:
    random = np.random.default_rng(0)
    learned = random.normal(size=(_LEARNED, _COLUMNS))
    target = learned[:, 0] * learned[:, 1] + np.sin(3 * learned[:, 2]) + random.normal(size=_LEARNED) * 0.1
    print(f"{'':22}{'rows':>8}{'original µs':>14}{'ONNX µs':>12}{'ratio':>8}")
    for name, model in models().items():
        model.fit(learned, target)
        with TemporaryDirectory() as folder:
            onnxserve.save_model(model, Path(folder) / "model", input_example=learned[:200])
            loaded = OnnxModel.load(Path(folder) / "model", intra_op_num_threads=1)
        for rows in (1, _BATCH):
            given = random.normal(size=(rows, _COLUMNS))
            feeds = loaded.schema.from_array(given)
            original, onnx = medians([partial(model.predict, given), partial(loaded.run, feeds)])
            print(f"{name:22}{rows:8}{original:14.1f}{onnx:12.1f}{original / onnx:8.2f}")


if __name__ == "__main__":
    main()
