"""Example rows for a registered model: from a file, from its saved example, or
generated from its signature.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc.scoring_server import infer_and_parse_data
from mlflow.types import Schema
from pydantic import JsonValue

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.mlmodel import COLUMN_TYPES
from mlflow_deploy_plugin.core.tabular.row_files import (
    SPARK_TIMES,
    FileFormat,
    first_line,
    format_of,
)
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.batch import NAMELESS_TEXT, ModelData
from mlflow_deploy_plugin.wrap.convert.converted import BoundaryValues, TrainedModel
from mlflow_deploy_plugin.wrap.convert.converters import converter_for

MADE_UP_ROWS = 500
_MOST_CELLS = 20_000_000
"""The limit of generated rows times columns. A signature may claim any number."""
_FREE_SIZE = 4
_TENSOR_ROWS = 16
"""The size of a generated tensor along axes that are free in the signature."""


def read_rows(path: Path, kind: FileFormat | None = None) -> ModelData:
    """Return the rows of a CSV, JSON, JSON Lines or Parquet file as a table, or as
    arrays if JSON has `inputs`.

    JSON is a list of records, a mapping of columns, or a request for MLflow's scoring
    server (`dataframe_split`, …). Raises InvalidConfig if the file cannot be read, has
    another format, or has no rows.
    """
    kind = kind or format_of(str(path))
    readers: Mapping[FileFormat, Callable[[Path], ModelData]] = {
        "csv": pd.read_csv,
        "parquet": partial(pd.read_parquet, **SPARK_TIMES),
        "json": lambda path: _from_json(orjson.loads(path.read_bytes())),
        "jsonl": lambda path: pd.DataFrame(
            map(orjson.loads, filter(bytes.strip, path.read_bytes().splitlines()))
        ),
    }
    if kind is None:
        raise InvalidConfig(f"{path}: the file name must end with .csv, .json, .jsonl or .parquet")
    try:
        rows = readers[kind](path)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise InvalidConfig(f"the file {path} cannot be read: {reason}") from None
    # The readers pandas, pyarrow and orjson raise ValueError.
    except (ValueError, TypeError, MlflowException) as error:
        raise InvalidConfig(
            f"the file {path} cannot be read as {kind}: {first_line(error)}"
        ) from None
    if not len(rows):
        raise InvalidConfig(f"the file {path} has no rows")
    return rows


def _from_json(document: JsonValue) -> ModelData:
    """Return the rows of a JSON document: a list of records or rows, a mapping of
    columns, or a request for MLflow's scoring server.
    """
    if isinstance(document, list):
        if document and isinstance(document[0], dict):
            return pd.DataFrame(document)
        return np.asarray(document)
    if isinstance(document, dict) and all(isinstance(values, list) for values in document.values()):
        keys = {"instances", "inputs", "dataframe_records"} & set(document)
        if keys:
            return infer_and_parse_data(document)
        return pd.DataFrame(document)
    return infer_and_parse_data(document)


def fit_to_signature(
    rows: ModelData, signature: ModelSignature | None, names: list[str] | None = None
) -> ModelData:
    """Return the rows as a table, or as arrays for a signature of tensors. Raises
    InvalidConfig for a mismatch.

    Args:
        rows: rows in the form in which the user passes them.
        signature: the signature of the model, or None.
        names: the columns of a model without a signature; all other columns are
            dropped.
    """
    inputs: Schema | None = signature.inputs if signature is not None else None
    if not isinstance(rows, pd.DataFrame):
        return rows
    if inputs is None:
        if names and set(names) <= set(rows):
            return rows[names]
        return rows
    if inputs == NAMELESS_TEXT:
        return _only_column(rows)
    if not inputs.is_tensor_spec():  # `Batch.cast_to_signature` selects the columns.
        return rows if inputs.has_input_names() else rows.to_numpy()
    names = [spec.name for spec in inputs.inputs if spec.name]
    for name in names:
        if name not in rows:
            raise InvalidConfig(
                f"the rows have no column {name!r}, but the signature has a tensor of this name"
            )
    try:
        if not names:
            values = rows.to_numpy().astype(inputs.inputs[0].type)
            return values.reshape(len(rows), *inputs.inputs[0].shape[1:])
        return {
            spec.name: np.asarray(rows[spec.name].tolist()).astype(spec.type)
            for spec in inputs.inputs
            if spec.name
        }
    except (TypeError, ValueError) as error:
        raise InvalidConfig(
            f"the rows cannot be converted to the signature's tensors: {first_line(error)}"
        ) from None


def saved_example(mlmodel: Model, folder: Path) -> ModelData:
    """Return the input example in the model's folder, or None if there is no example or
    its file is damaged.
    """
    info = mlmodel.saved_input_example_info or {}
    schema = mlmodel.get_input_schema()
    try:
        document = None
        has_tensor_inputs = schema and "inputs" in schema.input_names()
        if info.get("type") == "ndarray" and not has_tensor_inputs:
            document = orjson.loads((folder / info["artifact_path"]).read_bytes())
        # MLflow 3.17 cannot read the examples of 2.9 and 2.14.
        if isinstance(document, dict) and "inputs" in document:
            example = infer_and_parse_data(document, schema)
        else:
            example = mlmodel.load_input_example(str(folder))
    except Exception:  # noqa: BLE001 - a damaged file may raise any error.
        return None
    if example is not None and len(example):
        return example
    return None


def made_up_rows(signature: ModelSignature, model: TrainedModel) -> ModelData:
    """Generate a table that matches the signature, with the model's thresholds and
    categories if they are known. Return arrays for tensors, for unnamed columns, and
    for an unnamed text.
    """
    if signature.inputs.is_tensor_spec():
        tensors = {}
        for spec in signature.inputs.inputs:
            random = np.random.default_rng(0)
            sizes = [size if size > 0 else _FREE_SIZE for size in spec.shape[1:]]
            sizes.insert(0, _count_rows(_TENSOR_ROWS, math.prod(sizes)))
            is_float = np.dtype(spec.type).kind == "f"
            if is_float and len(spec.shape) == 2 and len(signature.inputs.inputs) == 1:
                kinds = dict.fromkeys(map(str, range(sizes[1])), str(np.dtype(spec.type)))
                tensors[spec.name or ""] = _made_up_table(kinds, model).to_numpy()
            elif is_float:
                tensors[spec.name or ""] = random.normal(size=sizes).astype(spec.type)
            else:
                tensors[spec.name or ""] = random.integers(0, 2, sizes).astype(spec.type)
        return tensors.get("", tensors)
    names = [str(name) for name in signature.inputs.input_names()]
    kinds = {}
    for name, spec in zip(names, signature.inputs.inputs, strict=True):
        kind = getattr(spec.type, "name", str(spec.type))
        # `Batch.cast_to_signature` later rejects types that are not in `COLUMN_TYPES`.
        kinds[name] = COLUMN_TYPES.get(kind, "str")
    table = _made_up_table(kinds, model)
    if signature.inputs == NAMELESS_TEXT:
        return _only_column(table)
    if signature.inputs.has_input_names():
        return table
    return table.to_numpy()


def known_columns(model: TrainedModel) -> tuple[int, tuple[str, ...], frozenset[str]]:
    """Return what a fitted model of scikit-learn, XGBoost, LightGBM or CatBoost knows
    about its columns: their number (0 if unknown), their names (empty without names),
    and the names of the columns of texts.
    """
    names: tuple[str, ...] = ()
    for attribute in ("feature_names_in_", "feature_names_", "feature_names", "feature_name"):
        with suppress(Exception):  # XGBoost raises errors of its own if it has no names.
            found = getattr(model, attribute)
            found = found() if callable(found) else found
            names = tuple(map(str, found))
            break
    width = len(names)
    for attribute in ("n_features_in_", "num_features", "num_feature"):
        with suppress(Exception):
            found = getattr(model, attribute)
            width = width or int(found() if callable(found) else found)
    numbered = ([f"Column_{at}" for at in range(width)], [str(at) for at in range(width)])
    if list(names) in numbered:  # The library has made these names.
        names = ()
    boundary = _known_values(model, [*names])
    texts = {*boundary.texts} & {*names}
    for name, values in boundary.categories.items():
        if str in map(type, values):
            texts.add(name)
    return width, names, frozenset(texts)


def _known_values(model: TrainedModel, names: list[str]) -> BoundaryValues:
    converter = converter_for(model)
    if not hasattr(converter, "known_values"):
        return BoundaryValues()
    boundary: BoundaryValues = converter.known_values(model, names)
    return boundary


def _made_up_table(kinds: Mapping[str, str], model: TrainedModel) -> pd.DataFrame:
    """Return a table of `MADE_UP_ROWS` rows. `kinds` has the numpy dtypes of its
    columns.
    """
    random = np.random.default_rng(0)
    count = _count_rows(MADE_UP_ROWS, len(kinds))
    boundary = _known_values(model, [*kinds])
    edges = _fitted_ranges(model, [*kinds]) | dict(boundary.edges)
    known = replace(boundary, edges=edges)
    columns = {name: _made_up_column(kinds[name], name, known, random, count) for name in kinds}
    return pd.DataFrame(columns)


def _count_rows(usual: int, cells: int) -> int:
    """Return the number of rows of so many cells. Raises InvalidConfig if a row is too
    large.
    """
    if cells > _MOST_CELLS:
        raise InvalidConfig(
            f"its signature has rows of {cells:,} values, and generated rows at most "
            f"{_MOST_CELLS:,}; pass rows with --data FILE (data=)"
        )
    return min(usual, _MOST_CELLS // max(cells, 1))


def _fitted_ranges(model: TrainedModel, names: list[str]) -> dict[str, Array]:
    """Return the range [2] of each column that the first scaler of a model has learned:
    three deviations around the mean, or the minimum and the maximum.
    """
    for step in (model, *(step for _, step in getattr(model, "steps", ()))):
        lows: Any = getattr(step, "data_min_", None)
        highs: Any = getattr(step, "data_max_", None)
        means = getattr(step, "mean_", getattr(step, "center_", None))
        if lows is None and means is not None and getattr(step, "scale_", None) is not None:
            lows = means - 3 * step.scale_
            highs = means + 3 * step.scale_
        if np.shape(lows) == np.shape(highs) == (len(names),):
            return dict(zip(names, np.stack([lows, highs], axis=1), strict=True))
    return {}


def _only_column(rows: pd.DataFrame) -> Array:
    """Return the column of texts [N] for a signature without a name. Raises
    InvalidConfig for several columns.
    """
    if rows.shape[1] != 1:
        raise InvalidConfig(
            f"the rows have the columns {', '.join(map(repr, rows))}, and the signature has a "
            "single string without a name: keep only the column of texts"
        )
    return rows.iloc[:, 0].to_numpy(dtype=object)


def _made_up_column(
    dtype: str, name: str, boundary: BoundaryValues, random: np.random.Generator, count: int
) -> Array:
    """Return random values of a column: its categories if they are known, otherwise
    texts of its terms, or numbers around its thresholds.
    """
    # NaN differs from itself.
    categories = [
        value for value in boundary.categories.get(name, ()) if value is not None and value == value
    ]
    if categories:
        choices = np.asarray(categories, dtype=object if dtype == "str" else dtype)
        return choices[random.integers(0, len(categories), count)]
    if dtype == "str":
        terms = np.asarray(boundary.texts.get(name, ("a", "b", "c")), dtype=object)
        texts = [" ".join(random.choice(terms, 3)) for _ in range(count)]
        return np.array(texts, dtype=object)
    low = -3.0
    high = 3.0
    edges = np.asarray(boundary.edges.get(name, ()), dtype=np.float64)
    finite = edges[np.isfinite(edges)]
    if len(finite):
        low = float(finite.min())
        high = float(finite.max())
    if dtype == "bool":
        low = 0.0
        high = 1.0
    elif dtype in ("int32", "int64"):
        low = float(np.floor(min(low, 0)))
        high = float(np.ceil(max(high, 10)))
    else:  # Floats reach a quarter beyond the thresholds.
        reach = (high - low) / 4 or 1.0
        low -= reach
        high += reach
    numbers = random.uniform(low, high, count)
    if dtype in ("bool", "int32", "int64"):
        numbers = np.round(numbers)
    return numbers.astype(dtype)
