"""Training on a table: a user's CSV file or synthetic rows, the preprocessing, and the
run of the model.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.training import log_options, log_scores, option, picture, register

MIN_ROWS = 50
MAX_TEXTS = 50
"""The maximum number of different texts in a column. One-hot columns of names and keys
lead to overfitting.
"""
MISSING = "missing"
"""The replacement for a missing text. Requests may also contain it as a value."""
LARGEST = float(np.finfo(np.float32).max)
"""The largest accepted number. Trees and graphs compute in float32, so a larger number
counts as missing.
"""
EXAMPLE_ROWS = 500
PARITY_ROWS = 2000


@dataclass(frozen=True)
class TableOptions:
    """The options of a training on a table."""

    data: str = option("", "CSV file with a header; default: synthetic rows")
    target: str = option("", "column to predict; required with data")
    seed: int = option(7, "seed of the held-out fifth and the synthetic rows")
    registered_model: str = option("", "registered model of the version")


@dataclass(frozen=True)
class Table:
    """The rows for training.

    Attributes:
        features: float64 (numbers, NaN if missing), bool and text columns.
        target: [N], without missing values.
        origin: `synthetic data, seed 7`, or the file with its digest.
    """

    features: pd.DataFrame
    target: pd.Series
    origin: str


@dataclass(frozen=True)
class Recipe:
    """The definition of a kind of model on a table.

    Attributes:
        generate: returns synthetic rows for a seed; the last column is the target.
        estimator: returns the model that follows the preprocessing.
        is_scaled: True if numbers are imputed and standardised, which linear models
            need and trees do not.
        prepare: converts the target for the training; raises InvalidConfig.
        score: returns metrics for the fitted pipeline, the held-out features and their
            target.
        draw: draws two plots for the same arguments.
    """

    generate: Callable[[int], pd.DataFrame]
    estimator: Callable[[], BaseEstimator]
    is_scaled: bool
    prepare: Callable[[pd.Series], pd.Series]
    score: Callable[[Pipeline, pd.DataFrame, pd.Series], dict[str, float]]
    draw: Callable[[Any, Pipeline, pd.DataFrame, pd.Series], None]


def train_on_table(options: TableOptions, recipe: Recipe) -> Any:
    """Train, log and register a version, and return MLflow's ModelInfo.

    Raises:
        InvalidConfig: the file, the target or its values are not valid.
        ParityError: the predictions of the ONNX form would differ from the pipeline.
    """
    table = load_table(options, recipe.generate)
    target = recipe.prepare(table.target)
    with mlflow.start_run():
        log_options(options)
        features, held_out, answers, truth = train_test_split(
            table.features,
            target,
            test_size=0.2,
            random_state=options.seed,
        )
        print(
            f"{len(features):,} rows for training, {len(held_out):,} held out, from {table.origin}",
            flush=True,
        )
        rows = features.assign(**{str(target.name): answers})
        dataset = mlflow.data.from_pandas(rows, targets=target.name, name=table.origin)
        mlflow.log_input(dataset, context="training")
        pipeline = make_pipeline(preprocessing(features, recipe.is_scaled), recipe.estimator()).fit(
            features,
            answers,
        )
        log_scores(recipe.score(pipeline, held_out, truth))
        with picture(
            f"{options.registered_model} on {len(held_out):,} held-out rows ({table.origin})",
            2,
        ) as axes:
            recipe.draw(axes, pipeline, held_out, truth)
        return register(
            pipeline,
            options.registered_model,
            table.origin,
            type(pipeline[-1]).__name__,
            input_example=features.head(EXAMPLE_ROWS),
            parity_data=held_out.head(PARITY_ROWS),
            reference_data=features,
        )


def load_table(options: TableOptions, generate: Callable[[int], pd.DataFrame]) -> Table:
    """Read the rows of the file, or generate synthetic rows. Raises InvalidConfig."""
    if options.data:
        rows, origin = read_rows(Path(options.data), options.target, "target")
        target = options.target
    else:
        rows = generate(options.seed)
        origin = f"synthetic data, seed {options.seed}"
        target = str(rows.columns[-1])
        if options.target not in ("", target):
            raise InvalidConfig(
                f"target {options.target}: the target of the synthetic rows is {target}; for a "
                "file, set data=FILE.csv",
            )
    rows = rows.dropna(subset=[target]).reset_index(drop=True)
    if len(rows) < MIN_ROWS:
        raise InvalidConfig(
            f"{origin}: {len(rows)} rows with a {target}; at least {MIN_ROWS} are needed",
        )
    features = rows.drop(columns=target)
    columns: dict[str, pd.Series] = {}
    for label, column in features.items():
        name = str(label)
        if name.startswith("Unnamed: "):
            print(
                f"left out: column {name.removeprefix('Unnamed: ')}, which has no name",
                flush=True,
            )
        elif column.isna().all():
            print(f"left out: {name}, which has no values", flush=True)
        elif pd.api.types.is_bool_dtype(column):
            columns[name] = column
        elif pd.api.types.is_numeric_dtype(column):
            columns[name] = column.astype("float64").where(column.abs() <= LARGEST)
        elif column.nunique() <= MAX_TEXTS:
            columns[name] = column.astype(object).where(column.notna(), MISSING).astype(str)
        else:
            print(f"left out: {name}, which has {column.nunique():,} different texts", flush=True)
    if not columns:
        raise InvalidConfig(f"{origin}: no column except {target} can be used as a feature")
    return Table(pd.DataFrame(columns), rows[target], origin)


def preprocessing(features: pd.DataFrame, is_scaled: bool) -> ColumnTransformer:
    """Return the preprocessing: one-hot texts, and numbers unchanged or imputed by the
    median and standardised.

    A text that is not in the training data has zeros in all one-hot columns. With
    imputation, a missing number sets an additional indicator column.
    """
    numbers = list(features.select_dtypes("number"))
    flags = list(features.select_dtypes("bool"))
    texts = [name for name in features if name not in {*numbers, *flags}]
    scaled = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    return ColumnTransformer(
        [
            ("texts", OneHotEncoder(handle_unknown="ignore", sparse_output=False), texts),
            ("numbers", scaled if is_scaled else "passthrough", numbers),
            ("flags", "passthrough", flags),
        ],
        sparse_threshold=0,
    )


def numbers(target: pd.Series) -> pd.Series:
    """Return the target as float64. Raises InvalidConfig if a value is not a number in
    the range of float32.
    """
    converted = pd.to_numeric(target, errors="coerce").astype("float64")
    wrong = target[~(converted.abs() <= LARGEST)]
    if len(wrong):
        raise InvalidConfig(
            f"target {target.name}: {wrong.iloc[0]!r} is not a number up to {LARGEST:.1e}; a "
            "regression needs numbers",
        )
    return converted


def two_answers(target: pd.Series) -> pd.Series:
    """Return the target as booleans, integers or text. Raises InvalidConfig unless it
    has two different values.
    """
    if pd.api.types.is_bool_dtype(target):
        converted = target
    elif (
        pd.api.types.is_numeric_dtype(target)
        and (target % 1 == 0).all()
        and target.abs().max() < 2**53
    ):
        # In a column with a missing value, pandas reads 1 as 1.0.
        converted = target.astype("int64")
    else:
        converted = target.astype(str)
    if converted.nunique() != 2 or converted.value_counts().min() < 10:
        counts = ", ".join(
            f"{value} ({count:,})" for value, count in converted.value_counts().head(5).items()
        )
        raise InvalidConfig(
            f"target {target.name}: two classes of at least 10 rows each are needed; it has "
            f"{counts}",
        )
    return converted


def read_rows(path: Path, column: str, parameter: str) -> tuple[pd.DataFrame, str]:
    """Return the rows of a CSV file, and the name and digest of the file.

    Args:
        parameter: the parameter that specifies the column, for the message.

    Raises:
        InvalidConfig: the file cannot be read, or does not have the column.
    """
    if not column:
        raise InvalidConfig(f"data {path}: specify the column, {parameter}=COLUMN")
    try:
        content = path.read_bytes()
        rows = pd.read_csv(path, skipinitialspace=True)
    except OSError as error:
        raise InvalidConfig(f"the file {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # Errors of pandas, and text that is not UTF-8.
        raise InvalidConfig(
            f"the file {path} is not CSV with a header: {' '.join(str(error).split())}",
        ) from None
    if column not in rows:
        raise InvalidConfig(
            f"the file {path} has no column {column!r}; it has {', '.join(map(str, rows.columns))}",
        )
    return rows, f"{path.name} (SHA-256 {hashlib.sha256(content).hexdigest()[:12]})"
