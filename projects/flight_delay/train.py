"""Trains the delay model on January to March, logs it as checked ONNX and registers it.

    mlflow run . -e train -P max_iter=60            # or: python -m projects.flight_delay.train --max-iter 60

Ten whole days of these months, chosen by the seed, are held out: the model is validated on them, and they are the calm
traffic that a drift job is to find like the training data.
"""

import argparse
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder
from threadpoolctl import threadpool_limits

import mlflow_deploy_plugin as onnxserve
from projects.command import plain_errors
from projects.flight_delay.data import (
    BOOLEANS,
    CATEGORIES,
    EVENT_TIME,
    FEATURES,
    INTEGERS,
    LABEL,
    WEATHER,
    Split,
    load_flights,
    split,
)
from projects.flight_delay.scores import score
from projects.parity import parity_line

MODEL_NAME = "flight-delay"
EXAMPLE_ROWS = 1000
PARITY_ROWS = 2000


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


def train(seed: int, max_iter: int, learning_rate: float) -> Any:
    """Trains, logs and registers one version in the active run, or in a new one.

    Returns:
        MLflow's ModelInfo, with `registered_model_version`.

    Raises:
        ParityError: the ONNX form would answer otherwise than the pipeline.
    """
    # Two threads on cores that servers also use wait for each other, in fit and predict alike: measured for the fit 8 s
    # with one, up to 50 s with two.
    with threadpool_limits(1, user_api="openmp"), mlflow.start_run() as run:
        parts = split(load_flights(), seed)
        _say(f"training on {len(parts.train):,} flights; ten whole days, {len(parts.calm):,} flights, are held out")
        pipeline = build_pipeline(max_iter, learning_rate)
        pipeline.fit(parts.train[list(FEATURES)], parts.train[LABEL])
        _log_parameters(run, {"seed": seed, "max_iter": max_iter, "learning_rate": learning_rate})
        _log_scores(pipeline, parts)
        dataset = mlflow.data.from_pandas(
            parts.train[[*FEATURES, LABEL]], name="nycflights13-january-to-march", targets=LABEL
        )
        mlflow.log_input(dataset, context="training")
        _say("converting to ONNX and proving that it answers as the pipeline does")
        info = _log_model(pipeline, parts)
        logged = mlflow.get_run(run.info.run_id).data
        _say(parity_line(logged.tags["onnxserve.parity"], logged.metrics))
        _say(f"registered {MODEL_NAME} version {info.registered_model_version}, run {run.info.run_id}")
        return info


def _log_parameters(run: Any, parameters: dict[str, Any]) -> None:
    """Under `mlflow run` the entry point's parameters are logged already, as they were typed."""
    known = mlflow.get_run(run.info.run_id).data.params
    mlflow.log_params({name: value for name, value in parameters.items() if name not in known})


def _log_scores(pipeline: Pipeline, parts: Split) -> None:
    for name, flights in (("train", parts.train), ("validation", parts.calm)):
        probability = pipeline.predict_proba(flights[list(FEATURES)])[:, 1]
        scores = score(flights[LABEL].to_numpy(), probability)
        mlflow.log_metrics({f"{name}_{metric}": value for metric, value in scores.items()})
        _say(f"{name:10} " + ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items()))


def _log_model(pipeline: Pipeline, parts: Split) -> Any:
    features = list(FEATURES)
    return onnxserve.log_model(
        pipeline,
        name="model",
        registered_model_name=MODEL_NAME,
        input_example=_spread(parts.train[features], EXAMPLE_ROWS),
        parity_data=_spread(parts.calm[features], PARITY_ROWS),
        reference_data=parts.train[[*features, EVENT_TIME]],
        event_time=EVENT_TIME,
    )


def _spread(table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Rows at equal distances, so that every week and its weather is among them."""
    return table.iloc[np.linspace(0, len(table) - 1, rows).astype(int)]


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=7, help="chooses the ten held-out days")
    parser.add_argument("--max-iter", type=int, default=60, help="number of boosted trees")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="how much each tree adds")
    options = parser.parse_args()
    with plain_errors():
        train(options.seed, options.max_iter, options.learning_rate)


if __name__ == "__main__":
    main()
