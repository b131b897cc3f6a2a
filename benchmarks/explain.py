"""Measure exact explanations of trees and linear models beside permutations: rows per
second of CPU, the largest difference of the sums from the original's predictions and of
the values from shap's values for the original, and the seconds of CPU for a file.

    .venv/bin/python benchmarks/explain.py [--rows 10000] [--file-rows 100000]

Each model learns New York's flights, [rows, 9 numbers], and has 100 trees; explanations
compare with 100 background rows. shap explains the original with the same background.
The rows per second of the first 50 rows include the computation of the tables. The
file is explained as by `onnxserve explain FOLDER --data FILE --max-rows
100000 --contributions FILE`.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", NUMBA_DISABLE_JIT="1", MLFLOW_DISABLE_TELEMETRY="true")
# The coverage.py of the benchmarks hides the package that numba reads.
sys.path.remove(str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import shap
from catboost import CatBoostClassifier
from lightgbm import LGBMClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.serve.pyfunc import explainer
from mlflow_deploy_plugin.serve.runtime.additive import FeatureReader
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.convert.batch import Batch
from projects.flight_delay.data import load_flights

NUMBERS = [
    "departure_minute",
    "arrival_minute",
    "distance",
    "temp",
    "dewp",
    "humid",
    "wind_speed",
    "pressure",
    "visib",
]
LEARNED = 10_000
PERMUTED = 5
FEW_ROWS = 50
TREES = 100

MODELS: dict[str, Callable[[], Any]] = {
    "GradientBoosting": lambda: GradientBoostingClassifier(n_estimators=TREES),
    "RandomForest, depth 6": lambda: RandomForestClassifier(TREES, max_depth=6),
    "HistGradientBoosting": lambda: HistGradientBoostingClassifier(max_iter=TREES),
    "LightGBM": lambda: LGBMClassifier(n_estimators=TREES, verbose=-1),
    "XGBoost": lambda: XGBClassifier(n_estimators=TREES, n_jobs=1),
    "CatBoost": lambda: CatBoostClassifier(
        iterations=TREES,
        verbose=0,
        thread_count=1,
        allow_writing_files=False,
    ),
    "LogisticRegression": lambda: LogisticRegression(max_iter=1000),
}


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def original_values(original: Any, background: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return shap's interventional values for the original, [N, columns, sums]."""
    if hasattr(original, "coef_"):
        masker = shap.maskers.Independent(background, max_samples=len(background))
        values = shap.LinearExplainer(original, masker).shap_values(rows)
    else:
        trees = shap.TreeExplainer(original, background, feature_perturbation="interventional")
        values = trees.shap_values(rows, check_additivity=False)
    return np.reshape(values, (*rows.shape, -1))


def sums_difference(original: Any, rows: np.ndarray, explained: Any, folder: Path) -> float:
    """Return the largest difference between the predictions of the contributions' sums
    and the probabilities of the original.
    """
    reader = FeatureReader.load(folder)
    assert reader is not None
    predicted = reader.form.predictions(explained.values.sum(axis=1) + explained.base_values)
    return float(np.abs(predicted - original.predict_proba(rows[: len(predicted)])).max())


def measure(name: str, original: Any, rows: np.ndarray, file_rows: int, folder: Path) -> str:
    onnxserve.save_model(original, folder, input_example=rows[:1000])
    model = OnnxModel.load(folder)
    background = explainer.read_background(model, 100, 0).feeds
    feeds = Batch.read(rows).feeds(model.schema)
    few = {name: array[:FEW_ROWS] for name, array in feeds.items()}
    few_cpu, first = cpu_seconds(lambda: explainer.explain_rows(model, background, few, 0, 0))
    exact_cpu, explained = cpu_seconds(
        lambda: explainer.explain_rows(model, background, feeds, 0, 0)
    )
    features = explained.features
    matrix = np.stack([feature.values(background) for feature in features], axis=1).astype(float)
    expected = original_values(original, matrix, rows[:100])
    difference = np.abs(explained.values[:100] - expected).max()
    missed = max(sums_difference(original, rows, each, folder) for each in (first, explained))
    file_cpu, _ = cpu_seconds(lambda: explain_file(np.resize(rows, (file_rows, 9)), folder))
    permuted_cpu = permuted_seconds(model, background, feeds, 10 * (2 * len(features) + 1))
    per_second = len(rows) / exact_cpu
    return (
        f"| {name} | {explained.method}, {explained.link} | {per_second:,.0f} "
        f"| {FEW_ROWS / few_cpu:,.0f} | {file_cpu:.1f} | {permuted_cpu:.2f} "
        f"| {permuted_cpu * per_second:,.0f} | {missed:.1e} | {difference:.1e} |"
    )


def explain_file(rows: np.ndarray, folder: Path) -> None:
    """Write a file of the rows, and a file of their contributions."""
    names = list(map(str, range(rows.shape[1])))
    pd.DataFrame(rows, columns=names).to_csv(folder / "rows.csv", index=False)
    explanation = onnxserve.explain(str(folder), str(folder / "rows.csv"), max_rows=len(rows))
    explanation.write_contributions(str(folder / "contributions.parquet"))


def permuted_seconds(model: OnnxModel, background: Any, feeds: Any, max_evals: int) -> float:
    """Return the CPU seconds per row of SHAP's permutation explainer."""
    few = {name: array[:PERMUTED] for name, array in feeds.items()}
    # A folder without the file of the trees is explained by permutations.
    model.artifact = replace(model.artifact, folder=model.artifact.folder / "empty")
    seconds, _ = cpu_seconds(lambda: explainer.explain_rows(model, background, few, max_evals, 0))
    return seconds / PERMUTED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--file-rows", type=int, default=100_000)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    flights = load_flights().dropna(subset=NUMBERS)
    table = flights[NUMBERS].to_numpy(np.float32).astype(float)
    order = np.random.default_rng(0).permutation(len(table))
    learned, explained = order[:LEARNED], order[LEARNED : LEARNED + asked.rows]
    late = flights["delayed"].to_numpy()[learned].astype(int)
    print(
        f"| model | method, link | rows/s | rows/s of {FEW_ROWS} rows "
        f"| s for a file of {asked.file_rows:,} rows "
        "| permutation, s per row | ratio | sums - predictions | values - shap's |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in MODELS.items():
        original = make().fit(table[learned], late)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            print(
                measure(name, original, table[explained], asked.file_rows, folder),
                flush=True,
            )


if __name__ == "__main__":
    main()
