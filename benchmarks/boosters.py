"""Measure the speed of trees as ONNX, with and without the faster operator of
projects/trees, in their own library and as C of Treelite: 1 to 100,000 rows.

    .venv/bin/pip install ./projects/trees   # otherwise without the column `trees`
    .venv/bin/python benchmarks/boosters.py [XGBoost CatBoost …]
    # on a machine without other jobs
    THREADS=2 .venv/bin/python benchmarks/boosters.py XGBoost LightGBM

The models have 100 trees (or 1,000) on 20 columns. The graphs and the originals
use one thread each, and alternate in rounds. The script prints the minimum of the CPU
time in microseconds (with several threads, of the wall-clock time), and the time of
the graph (with the faster operator, if it is installed) divided by the time of the
faster of the library and Treelite. The original is called by its own `predict` on a
numpy array, like in a server that keeps it in memory. With `pip install treelite
tl2cgen` and gcc, Treelite is measured as well.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("THREADS", "1"))
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import catboost
import lightgbm
import numpy as np
import xgboost
from sklearn.ensemble import HistGradientBoostingRegressor

import onnxserve
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import ON_CPU, open_session

_THREADS = int(os.environ.get("THREADS", "1"))
_TREES = 100
_COLUMNS = 20
_LEARNED = 20_000
_COUNTS = (1, 100, 10_000, 100_000)
_ROUNDS = 7
_ROUND_SECONDS = 0.05


def models() -> dict[str, Any]:
    """Return unfitted models of about the same size."""

    def cat(iterations: int) -> Any:
        options = {"thread_count": _THREADS, "verbose": 0, "allow_writing_files": False}
        return catboost.CatBoostRegressor(iterations=iterations, depth=6, **options)

    return {
        "XGBoost, depth 6": xgboost.XGBRegressor(n_estimators=_TREES, max_depth=6, n_jobs=_THREADS),
        "XGBoost, depth 10": xgboost.XGBRegressor(
            n_estimators=_TREES,
            max_depth=10,
            n_jobs=_THREADS,
        ),
        "LightGBM, 31 leaves": lightgbm.LGBMRegressor(
            n_estimators=_TREES,
            n_jobs=_THREADS,
            verbose=-1,
        ),
        "CatBoost, depth 6": cat(_TREES),
        "CatBoost, 1,000 trees": cat(1000),
        "HistGradientBoosting": HistGradientBoostingRegressor(max_iter=_TREES),
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
    try:
        tl2cgen.export_lib(read, "gcc", folder / "trees.so", params={"parallel_comp": 8})
    except Exception as error:  # noqa: BLE001 - the C code may have 20 MB, or the compiler may be missing
        print(f"Treelite as C: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        return {}
    compiled = tl2cgen.Predictor(str(folder / "trees.so"), nthread=_THREADS)
    kind = "float32" if isinstance(model, xgboost.XGBModel) else "float64"
    return {"C": lambda rows: compiled.predict(tl2cgen.DMatrix(rows, dtype=kind))}


def measure(parts: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the microseconds of each part, in alternating rounds."""
    timer = time.process_time if _THREADS == 1 else time.perf_counter
    best = dict.fromkeys(parts, float("inf"))
    for _ in range(_ROUNDS):
        for name, part in parts.items():
            calls = 0
            began = timer()
            while timer() - began < _ROUND_SECONDS:
                part()
                calls += 1
            best[name] = min(best[name], (timer() - began) / calls * 1e6)
    return best


def main() -> None:
    random = np.random.default_rng(0)
    learned = random.normal(size=(_LEARNED, _COLUMNS))
    target = (
        learned[:, 0] * learned[:, 1]
        + np.sin(3 * learned[:, 2])
        + random.normal(size=_LEARNED) * 0.1
    )
    labels = ["library", "ONNX", "trees", "C"]
    if importlib.util.find_spec("onnxserve_trees") is None:
        print("- onnxserve-trees: install it with pip install ./projects/trees", flush=True)
    print(f"| model | rows | {', µs | '.join(labels)}, µs | ratio |", flush=True)
    print("|---" * (len(labels) + 3) + "|", flush=True)
    for name, model in models().items():
        if len(sys.argv) > 1 and not name.startswith(tuple(sys.argv[1:])):
            continue
        model.fit(learned, target)
        with TemporaryDirectory() as folder:
            saved = Path(folder) / "model"
            onnxserve.save_model(model, saved, input_example=learned[:200])
            treelite = treelite_predictors(model, Path(folder))
            for count in _COUNTS:
                rows = random.normal(size=(count, _COLUMNS))
                times = measure(session_parts(model, saved, treelite, rows))
                fastest = min(times["library"], times.get("C", times["library"]))
                ratio = times.get("trees", times["ONNX"]) / fastest
                figures = [f"{times[label]:.1f}" if label in times else "" for label in labels]
                print(f"| {name} | {count} | {' | '.join(figures)} | {ratio:.2f} |", flush=True)


def session_parts(
    model: Any, saved: Path, treelite: dict[str, Callable[[Any], Any]], rows: Any
) -> dict[str, Callable[[], Any]]:
    """Return the functions that predict the rows by the library, by the graph without
    and with the faster operator, and by Treelite.
    """
    faster = OnnxModel.load(saved, intra_op_num_threads=_THREADS)
    session = open_session(faster.artifact.onnx_file, ON_CPU, _THREADS)
    usual = OnnxModel(faster.artifact, session, ON_CPU)
    feeds = faster.schema.from_array(rows)
    threads = {"thread_count": _THREADS} if isinstance(model, catboost.CatBoost) else {}
    parts: dict[str, Callable[[], Any]] = {
        "library": partial(model.predict, rows, **threads),
        "ONNX": partial(usual.run, feeds),
    }
    if faster.has_faster_trees:
        parts["trees"] = partial(faster.run, feeds)
    if isinstance(model, xgboost.XGBModel):
        rows = rows.astype(np.float32)
    return parts | {label: partial(predict, rows) for label, predict in treelite.items()}


if __name__ == "__main__":
    main()
