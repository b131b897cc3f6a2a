"""Measure exact explanations of trees and linear models next to shap: rows per second
of CPU for requests of 1, 100 and many rows, and the largest difference of the sums from
the original's predictions and of the values from shap's values for the original.

    .venv/bin/python benchmarks/explain.py [--rows 10000]

Each model learns New York's flights, [rows, 9 numbers], and has 100 trees; explanations
compare with 100 background rows. shap explains 100 rows of the original with the same
background. The first explanation of a model, whose seconds are a column of the table,
also computes the tables of the leaves. Two models have no values of shap, which
explains neither native categories nor linear leaves.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", NUMBA_DISABLE_JIT="1", MLFLOW_DISABLE_TELEMETRY="true")
# The coverage.py of the benchmarks hides the package that numba reads.
sys.path.remove(str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
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

import onnxserve
from mlflow_deploy_plugin.serve.models import explainer
from mlflow_deploy_plugin.serve.runtime.additive import FeatureReader
from mlflow_deploy_plugin.serve.runtime.feeds import slice_feeds
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
FEW_ROWS = 100
TREES = 100
LINEAR_LEAVES = "LightGBM, linear leaves"
CATEGORIES = "HistGradientBoosting, a column of categories"

MODELS: dict[str, Callable[[], Any]] = {
    "GradientBoosting": lambda: GradientBoostingClassifier(n_estimators=TREES),
    "RandomForest, depth 6": lambda: RandomForestClassifier(TREES, max_depth=6),
    "HistGradientBoosting": lambda: HistGradientBoostingClassifier(max_iter=TREES),
    "LightGBM": lambda: LGBMClassifier(n_estimators=TREES, verbose=-1),
    LINEAR_LEAVES: lambda: LGBMClassifier(n_estimators=TREES, linear_tree=True, verbose=-1),
    CATEGORIES: lambda: HistGradientBoostingClassifier(
        max_iter=TREES, categorical_features=[NUMBERS.index("visib")]
    ),
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


def measure(name: str, original: Any, rows: np.ndarray, folder: Path) -> str:
    onnxserve.save_model(original, folder, input_example=rows[:1000])
    model = OnnxModel.load(folder)
    background = explainer.read_background(model, 100, 0).feeds
    feeds = Batch.read(rows).feeds(model.schema)

    def explain(start: int, stop: int) -> explainer.RowContributions:
        return explainer.explain_rows(
            model, background, slice_feeds(feeds, slice(start, stop)), 0, 0
        )

    first, _ = cpu_seconds(lambda: explain(0, 1))
    single, _ = cpu_seconds(lambda: [explain(row, row + 1) for row in range(FEW_ROWS)])
    few, _ = cpu_seconds(lambda: explain(0, FEW_ROWS))
    many, explained = cpu_seconds(lambda: explain(0, len(rows)))
    reader = FeatureReader.load(folder)
    assert reader is not None
    predicted = reader.form.predictions(explained.values.sum(axis=1) + explained.base_values)
    missed = np.abs(predicted - original.predict_proba(rows)).max()
    of_shap = "–"
    difference = "–"
    if name not in (LINEAR_LEAVES, CATEGORIES):
        matrix = np.stack([feature.values(background) for feature in explained.features], axis=1)
        seconds, expected = cpu_seconds(
            lambda: original_values(original, matrix.astype(float), rows[:FEW_ROWS])
        )
        of_shap = f"{FEW_ROWS / seconds:,.0f}"
        difference = f"{np.abs(explained.values[:FEW_ROWS] - expected).max():.1e}"
    return (
        f"| {name} | {explained.method}, {explained.link} | {FEW_ROWS / single:,.0f} "
        f"| {FEW_ROWS / few:,.0f} | {len(rows) / many:,.0f} | {of_shap} | {first:.2f} "
        f"| {missed:.1e} | {difference} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    flights = load_flights().dropna(subset=NUMBERS)
    table = flights[NUMBERS].to_numpy(np.float32).astype(float)
    order = np.random.default_rng(0).permutation(len(table))
    learned, explained = order[:LEARNED], order[LEARNED : LEARNED + asked.rows]
    late = flights["delayed"].to_numpy()[learned].astype(int)
    print(
        f"| model | method, link | rows/s of 1 row | of {FEW_ROWS} rows | of {asked.rows:,} rows "
        "| shap | s of the first | sums - predictions | values - shap's |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in MODELS.items():
        original = make().fit(table[learned], late)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            print(measure(name, original, table[explained], folder), flush=True)


if __name__ == "__main__":
    main()
