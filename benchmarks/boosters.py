"""Measure the speed of trees as ONNX, in their own library and in Treelite: one row,
and ten thousand rows.

    .venv/bin/python benchmarks/boosters.py [XGBoost CatBoost …]
    # on a machine without other jobs
    THREADS=2 .venv/bin/python benchmarks/boosters.py XGBoost LightGBM

The models have 100 trees (or 300, 1,000) on 20 columns. The graphs and the originals
use one thread each, and alternate in rounds of 0.1 s. The script prints the medians of
the CPU time in microseconds (with several threads, the minimum of the wall-clock time),
and the original's time divided by the graph's time: above 1, the ONNX graph is faster.
The original is called by its own `predict` on a numpy array, like in a server that
keeps it in memory. With `pip install treelite tl2cgen` and gcc, Treelite is measured as
well: its interpreter GTIL, and its trees as C.
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

os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("THREADS", "1"))
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import catboost
import lightgbm
import numpy as np
import xgboost
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel

_THREADS = int(os.environ.get("THREADS", "1"))
_TREES = 100
_COLUMNS = 20
_LEARNED = 20_000
_BATCH = 10_000
_ROUNDS = 7
_ROUND_SECONDS = 0.1


def models() -> dict[str, Any]:
    """Return unfitted models of about the same size."""

    def cat(depth: int, iterations: int = _TREES) -> Any:
        options = {"thread_count": _THREADS, "verbose": 0, "allow_writing_files": False}
        return catboost.CatBoostRegressor(iterations=iterations, depth=depth, **options)

    return {
        "XGBoost, depth 6": xgboost.XGBRegressor(n_estimators=_TREES, max_depth=6, n_jobs=_THREADS),
        "XGBoost, 300 trees": xgboost.XGBRegressor(n_estimators=300, max_depth=6, n_jobs=_THREADS),
        "XGBoost, depth 10": xgboost.XGBRegressor(
            n_estimators=_TREES,
            max_depth=10,
            n_jobs=_THREADS,
        ),
        "XGBoost, 1,000 trees": xgboost.XGBRegressor(
            n_estimators=1000,
            max_depth=6,
            n_jobs=_THREADS,
        ),
        "LightGBM, 31 leaves": lightgbm.LGBMRegressor(
            n_estimators=_TREES,
            n_jobs=_THREADS,
            verbose=-1,
        ),
        "LightGBM, 300 trees": lightgbm.LGBMRegressor(
            n_estimators=300,
            n_jobs=_THREADS,
            verbose=-1,
        ),
        "CatBoost, depth 6": cat(6),
        "CatBoost, depth 10": cat(10),
        "CatBoost, 1,000 trees": cat(6, 1000),
        "HistGradientBoosting": HistGradientBoostingRegressor(max_iter=_TREES),
        "RandomForest, 20 per leaf": RandomForestRegressor(
            _TREES,
            min_samples_leaf=20,
            n_jobs=_THREADS,
        ),
    }


def treelite_predictors(model: Any, folder: Path) -> dict[str, Callable[[Any], Any]]:
    """Return Treelite's functions of [N, columns], if it is installed and reads the
    model.
    """
    if isinstance(model, catboost.CatBoost):
        return {}
    try:
        import tl2cgen
        import treelite
    except ImportError:
        return {}
    if isinstance(model, xgboost.XGBModel):
        read = treelite.frontend.from_xgboost(model.get_booster())
    elif isinstance(model, lightgbm.LGBMModel):
        read = treelite.frontend.from_lightgbm(model.booster_)
    else:
        read = treelite.sklearn.import_model(model)
    predictors: dict[str, Callable[[Any], Any]] = {
        "GTIL": partial(treelite.gtil.predict, read, nthread=_THREADS),
    }
    try:
        tl2cgen.export_lib(read, "gcc", folder / "trees.so", params={"parallel_comp": 8})
    except Exception as error:  # noqa: BLE001 - the C code may have 20 MB, or the compiler may be missing
        print(f"Treelite as C: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        return predictors
    compiled = tl2cgen.Predictor(str(folder / "trees.so"), nthread=_THREADS)
    kind = "float32" if isinstance(model, xgboost.XGBModel) else "float64"
    return predictors | {"C": lambda rows: compiled.predict(tl2cgen.DMatrix(rows, dtype=kind))}


def measure(parts: list[Callable[[], Any]]) -> list[float]:
    """Return the microseconds of each part, in alternating rounds."""
    timer = time.process_time if _THREADS == 1 else time.perf_counter
    taken: list[list[float]] = [[] for _ in parts]
    for _ in range(_ROUNDS):
        for position, part in enumerate(parts):
            calls = 0
            began = timer()
            clock = time.perf_counter()
            while time.perf_counter() - clock < _ROUND_SECONDS:
                part()
                calls += 1
            taken[position].append((timer() - began) / calls * 1e6)
    return [median(rounds) if _THREADS == 1 else min(rounds) for rounds in taken]


def main() -> None:
    random = np.random.default_rng(0)
    learned = random.normal(size=(_LEARNED, _COLUMNS))
    target = (
        learned[:, 0] * learned[:, 1]
        + np.sin(3 * learned[:, 2])
        + random.normal(size=_LEARNED) * 0.1
    )
    print(f"{'':24}{'rows':>8}{'original':>12}{'ONNX':>10}{'ratio':>8}   Treelite")
    for name, model in models().items():
        if len(sys.argv) > 1 and not name.startswith(tuple(sys.argv[1:])):
            continue
        model.fit(learned, target)
        with TemporaryDirectory() as folder:
            onnxserve.save_model(model, Path(folder) / "model", input_example=learned[:200])
            loaded = OnnxModel.load(Path(folder) / "model", intra_op_num_threads=_THREADS)
            treelite = treelite_predictors(model, Path(folder))
            for count in (1, _BATCH):
                rows = random.normal(size=(count, _COLUMNS))
                print(f"{name:24}{count:8}{compared(model, loaded, treelite, rows)}", flush=True)


def compared(
    model: Any,
    loaded: OnnxModel,
    treelite: dict[str, Callable[[Any], Any]],
    rows: Any,
) -> str:
    """Return the microseconds of the model, of its ONNX form and of Treelite."""
    threads = {"thread_count": _THREADS} if isinstance(model, catboost.CatBoost) else {}
    feeds = loaded.schema.from_array(rows)
    parts: list[Callable[[], Any]] = [
        partial(model.predict, rows, **threads),
        partial(loaded.run, feeds),
    ]
    if isinstance(model, xgboost.XGBModel):
        rows = rows.astype(np.float32)
    parts += [partial(predict, rows) for predict in treelite.values()]
    original, onnx, *rest = measure(parts)
    beside = "  ".join(f"{label} {time:.1f}" for label, time in zip(treelite, rest, strict=True))
    return f"{original:12.1f}{onnx:10.1f}{original / onnx:8.2f}   {beside}"


if __name__ == "__main__":
    main()
