"""Fit the pipeline, from scratch or from the pipeline of a registered version, and
compute its scores.
"""

import joblib
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.flight_delay.data import BOOLEANS, CATEGORIES, FEATURES, INTEGERS, LABEL, WEATHER
from projects.flight_delay.training_data import TrainingData
from projects.model_runs import load_run_artifact, logged_file

PIPELINE = "pipeline.joblib"
REPLAYED = 2
"""The number of built-in rows per new row, if the base cannot be trained further and a
new model is fitted.
"""


def build_pipeline(max_iter: int, learning_rate: float) -> Pipeline:
    """Return a pipeline of one-hot encoding, with other columns unchanged, and boosted
    trees, which accept NaN.
    """
    encode = ColumnTransformer(
        [
            (
                "categories",
                OneHotEncoder(handle_unknown="ignore", sparse_output=False),
                list(CATEGORIES),
            ),
            ("numbers", "passthrough", [*INTEGERS, *BOOLEANS, *WEATHER]),
        ],
        sparse_threshold=0,
    )
    trees = HistGradientBoostingClassifier(
        max_iter=max_iter,
        learning_rate=learning_rate,
        max_leaf_nodes=15,
        min_samples_leaf=200,
        early_stopping=False,  # Random validation rows share the weather of training rows.
        random_state=0,
    )
    return Pipeline([("encode", encode), ("trees", trees)])


def fit_full(rows: pd.DataFrame, max_iter: int, learning_rate: float) -> Pipeline:
    return build_pipeline(max_iter, learning_rate).fit(rows[list(FEATURES)], rows[LABEL])


def fit_incremental(
    training_data: TrainingData,
    base_model: str,
    max_iter: int,
    learning_rate: float,
    more_trees: int,
    seed: int,
) -> tuple[Pipeline, str]:
    """Return the pipeline of `base_model` trained further on the new rows, and the
    method.

    The added trees fit the residuals of the existing trees on the new rows
    (scikit-learn's `warm_start`). If the run of the base has no pipeline, or the new
    rows have only one outcome, a new pipeline is fitted on the new rows and a sample of
    the built-in rows.

    Raises:
        InvalidConfig: there are no new rows, or no base is specified.
    """
    if training_data.new.empty:
        raise InvalidConfig(
            "mode incremental needs labelled rows beyond the built-in months: data=FILE.parquet",
        )
    if not base_model:
        raise InvalidConfig(
            "mode incremental needs the version to train further: "
            "base_model=models:/flight-delay/1",
        )
    base = load_run_artifact(base_model, PIPELINE, _read)
    if base is None or training_data.new[LABEL].nunique() < 2:
        count = min(len(training_data.built_in), REPLAYED * len(training_data.new))
        sample = training_data.built_in.sample(count, random_state=seed)
        rows = pd.concat([sample, training_data.new])
        return fit_full(rows, max_iter, learning_rate), f"sampled replay of {count:,} built-in rows"
    encode = base.named_steps["encode"]
    trees = base.named_steps["trees"]
    trees.set_params(warm_start=True, max_iter=trees.n_iter_ + more_trees)
    trees.fit(encode.transform(training_data.new[list(FEATURES)]), training_data.new[LABEL])
    return base, f"warm start, {more_trees} trees more"


def save_pipeline(pipeline: Pipeline) -> None:
    """Log the pipeline to the active run, so that an incremental training can start
    from it.
    """
    with logged_file(PIPELINE) as path:
        joblib.dump(pipeline, path, compress=3)


def _read(file: str) -> Pipeline | None:
    pipeline = joblib.load(file)
    is_ours = isinstance(pipeline, Pipeline) and {"encode", "trees"} <= set(pipeline.named_steps)
    return pipeline if is_ours else None


def score(delayed: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Return ROC AUC, log loss and Brier score.

    Args:
        delayed: [N] bool, the labels; both outcomes must occur.
        probability: [N] float, the model's probability of a delay.
    """
    return {
        "roc_auc": float(roc_auc_score(delayed, probability)),
        "log_loss": float(log_loss(delayed, probability)),
        "brier_score": float(brier_score_loss(delayed, probability)),
    }
