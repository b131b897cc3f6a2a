"""Fits the pipeline: anew, or on from the one that a registered version was made of."""

import tempfile
from pathlib import Path

import joblib
import mlflow
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from mlflow_deploy_plugin.errors import InvalidConfig
from projects.flight_delay.data import BOOLEANS, CATEGORIES, FEATURES, INTEGERS, LABEL, WEATHER
from projects.flight_delay.material import Material
from projects.kept import kept_by

PIPELINE = "pipeline.joblib"
REPLAYED = 2
"""Built-in rows for each new one, where a model cannot be trained on and learns both together."""


def build_pipeline(max_iter: int, learning_rate: float) -> Pipeline:
    """One-hot categories and everything else as it is, into gradient-boosted trees, which take NaN by themselves."""
    encode = ColumnTransformer(
        [
            ("categories", OneHotEncoder(handle_unknown="ignore", sparse_output=False), list(CATEGORIES)),
            ("numbers", "passthrough", [*INTEGERS, *BOOLEANS, *WEATHER]),
        ],
        sparse_threshold=0,
    )
    trees = HistGradientBoostingClassifier(
        max_iter=max_iter,
        learning_rate=learning_rate,
        max_leaf_nodes=15,
        min_samples_leaf=200,
        early_stopping=False,  # it would validate on random rows, and rows of one hour share their weather
        random_state=0,
    )
    return Pipeline([("encode", encode), ("trees", trees)])


def fit_anew(rows: pd.DataFrame, max_iter: int, learning_rate: float) -> Pipeline:
    return build_pipeline(max_iter, learning_rate).fit(rows[list(FEATURES)], rows[LABEL])


def learn_on(
    material: Material, base_model: str, max_iter: int, learning_rate: float, more_trees: int, seed: int
) -> tuple[Pipeline, str]:
    """The pipeline of `base_model` after it has learned the new rows too, and by which way.

    Trees are added on what the others leave unexplained of the new rows (scikit-learn's `warm_start`). Where the run of
    the base has no pipeline, or the new rows only one outcome, a new one is fitted on them and a sample of the built-in
    rows together.

    Raises:
        InvalidConfig: there are no new rows, or no base is named.
    """
    if material.new.empty:
        raise InvalidConfig("mode incremental needs labelled rows beyond the built-in months: data=FILE.parquet")
    if not base_model:
        raise InvalidConfig("mode incremental needs the version that is trained on: base_model=models:/flight-delay/1")
    base = kept_by(base_model, PIPELINE, _read)
    if base is None or material.new[LABEL].nunique() < 2:
        count = min(len(material.built_in), REPLAYED * len(material.new))
        sample = material.built_in.sample(count, random_state=seed)
        rows = pd.concat([sample, material.new])
        return fit_anew(rows, max_iter, learning_rate), f"sampled replay of {count:,} built-in rows"
    encode, trees = base.named_steps["encode"], base.named_steps["trees"]
    trees.set_params(warm_start=True, max_iter=trees.n_iter_ + more_trees)
    trees.fit(encode.transform(material.new[list(FEATURES)]), material.new[LABEL])
    return base, f"warm start, {more_trees} trees more"


def keep(pipeline: Pipeline) -> None:
    """Logs the pipeline to the active run, so that an incremental training can go on from it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PIPELINE
        joblib.dump(pipeline, path, compress=3)
        mlflow.log_artifact(str(path))


def _read(file: str) -> Pipeline | None:
    pipeline = joblib.load(file)
    is_ours = isinstance(pipeline, Pipeline) and {"encode", "trees"} <= set(pipeline.named_steps)
    return pipeline if is_ours else None
