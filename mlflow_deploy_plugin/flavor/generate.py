"""Rows to prove parity on: the user's own, and rows made from what the example shows of each column.

A generator with a seed: the same model and example give the same rows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch, columns_of
from mlflow_deploy_plugin.flavor.parity import Rows
from mlflow_deploy_plugin.runtime.schema import Array

MINIMUM = 1_000
"""Rows that parity is proven on at least."""

_GIVEN_MAX = 5_000  # rows of the example, and of parity_data, that are compared
_THRESHOLD_ROWS = 400
_MISSING_ROWS = 24  # for each column
_UNSEEN_ROWS = 8
_CODES = 20  # a number with no more distinct values than this is a code, and drawn as observed
_MATRIX_COLUMNS = 2_000
_CHANGED_VALUES = 4_000_000  # of a wide table, some columns are changed: rows for each of them would grow as its square
_CHUNK_ELEMENTS = 4_000_000  # of a tensor, at once in memory


def parity_rows(
    example: Batch, parity_data: Batch | None, thresholds: Mapping[str, Array], seed: int = 0
) -> Iterator[Rows]:
    """The example, `parity_data`, and generated rows, at least `MINIMUM` together.

    Args:
        thresholds: by column (by position, as text, for a matrix): values at which a tree decides.
    """
    random = np.random.default_rng(seed)
    given = 0
    for source, data in (("example", example), ("parity_data", parity_data)):
        if data is not None:
            for part in _chunks(_sample(data, random)):
                given += batches.rows(part)
                yield Rows(source, part, generated=False)
    if isinstance(example, pd.DataFrame):
        yield from _table_rows(example, thresholds, random, MINIMUM - given)
    elif (matrix := _only_matrix(example)) is not None:
        name, array = matrix
        table = pd.DataFrame(array, columns=[str(position) for position in range(array.shape[1])])
        for group in _table_rows(table, thresholds, random, MINIMUM - given):
            if group.source == "missing" and array.dtype.kind in "OUT":
                continue  # no signature of tensors has a missing text
            yield replace(group, batch={name: pd.DataFrame(group.batch).to_numpy(dtype=array.dtype)})
    else:
        yield from _tensor_rows(example, random, max(MINIMUM - given, 200))


def _sample(data: Batch, random: np.random.Generator) -> Batch:
    count = batches.rows(data)
    if count <= _GIVEN_MAX:
        return data
    return batches.take(data, np.sort(random.choice(count, _GIVEN_MAX, replace=False)))


def _chunks(data: Batch) -> Iterator[Batch]:
    if isinstance(data, pd.DataFrame):
        yield data
    else:
        yield from batches.chunks(data, _chunk_rows(data))


def _chunk_rows(tensors: dict[str, Array]) -> int:
    return max(_CHUNK_ELEMENTS // max(sum(array[:1].size for array in tensors.values()), 1), 2)


def _only_matrix(example: dict[str, Array]) -> tuple[str, Array] | None:
    if len(example) != 1:
        return None
    name, array = next(iter(example.items()))
    fits = array.ndim == 2 and array.shape[1] <= _MATRIX_COLUMNS
    return (name, array) if fits else None


def _table_rows(
    example: pd.DataFrame, thresholds: Mapping[str, Array], random: np.random.Generator, wanted: int
) -> Iterator[Rows]:
    yield Rows("ranges", _draw(example, random, 600, _in_range))
    yield Rows("observed", _draw(example, random, max(wanted, 400), _observed))
    if thresholds:
        yield Rows("thresholds", _at_thresholds(example, thresholds, random), on_thresholds=True)
    if names := _some_columns(example, _can_miss, _MISSING_ROWS, random):
        changed = [_missing(example, name, random) for name in names]
        yield Rows("missing", pd.concat(changed, ignore_index=True), block=_MISSING_ROWS)
    if names := _some_columns(example, _is_text, _UNSEEN_ROWS, random):
        changed = [_unseen(example, name, random) for name in names]
        yield Rows("unseen", pd.concat(changed, ignore_index=True), block=_UNSEEN_ROWS)


def _some_columns(
    example: pd.DataFrame, fits: Callable[["pd.Series[Any]"], bool], rows: int, random: np.random.Generator
) -> list[Any]:
    """The columns that fit, in order; of a wide table as many of them as `rows` for each may be made."""
    names = [name for name in example.columns if fits(example[name])]
    most = max(_CHANGED_VALUES // (rows * example.shape[1]), 1)
    if len(names) <= most:
        return names
    return [names[position] for position in np.sort(random.choice(len(names), most, replace=False))]


_Draw = Callable[["pd.Series[Any]", np.random.Generator, int], "pd.Series[Any]"]


def _draw(example: pd.DataFrame, random: np.random.Generator, count: int, draw: _Draw) -> pd.DataFrame:
    """Each column by itself, so that combinations come up which the example does not hold."""
    return pd.DataFrame({name: draw(example[name], random, count) for name in example.columns})


def _observed(series: "pd.Series[Any]", random: np.random.Generator, count: int) -> "pd.Series[Any]":
    return series.iloc[random.integers(0, len(series), count)].reset_index(drop=True)


def _in_range(series: "pd.Series[Any]", random: np.random.Generator, count: int) -> "pd.Series[Any]":
    """Between the smallest and the largest value; codes, categories and booleans as observed."""
    if not _is_number(series) or series.nunique() <= _CODES:
        return _observed(series, random, count)
    if pd.api.types.is_integer_dtype(series.dtype):
        smallest, largest = int(series.min()), int(series.max())
        kind = np.int64 if smallest < 0 else np.uint64
        return pd.Series(random.integers(smallest, largest, count, dtype=kind, endpoint=True)).astype(series.dtype)
    low, high = _finite_range(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return pd.Series(2 * random.uniform(low / 2, high / 2, count)).astype(series.dtype)  # the halves' range is finite


def _finite_range(values: Array) -> tuple[float, float]:
    """The smallest and the largest number; NaN where there is none."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (np.nan, np.nan)


def _at_thresholds(example: pd.DataFrame, thresholds: Mapping[str, Array], random: np.random.Generator) -> pd.DataFrame:
    """Observed rows whose columns stand exactly on a threshold, on its 32-bit rounding, or one step beside that."""
    table = example.iloc[random.integers(0, len(example), _THRESHOLD_ROWS)].reset_index(drop=True)
    for name, values in thresholds.items():
        series = table[name]
        numbers = values[np.abs(values) < np.finfo(np.float32).max]  # infinite: only a missing value goes the other way
        if not _is_number(series) or not len(numbers):
            continue
        chosen = random.choice(numbers.astype(np.float64), _THRESHOLD_ROWS)
        if pd.api.types.is_integer_dtype(series.dtype):
            moved = np.floor(chosen) + random.integers(0, 2, _THRESHOLD_ROWS)
        else:
            single = chosen.astype(np.float32)
            below, above = np.nextafter(single, np.float32(-np.inf)), np.nextafter(single, np.float32(np.inf))
            moved = np.choose(random.integers(0, 4, _THRESHOLD_ROWS), [chosen, single, below, above])
        keep = random.random(_THRESHOLD_ROWS) < 0.5
        table[name] = pd.Series(np.where(keep, series, moved)).astype(example[name].dtype)
    return table


def _missing(example: pd.DataFrame, name: str, random: np.random.Generator) -> pd.DataFrame:
    table = example.iloc[random.integers(0, len(example), _MISSING_ROWS)].reset_index(drop=True)
    table[name] = pd.Series([np.nan] * _MISSING_ROWS).astype(example[name].dtype)
    return table


def _unseen(example: pd.DataFrame, name: str, random: np.random.Generator) -> pd.DataFrame:
    table = example.iloc[random.integers(0, len(example), _UNSEEN_ROWS)].reset_index(drop=True)
    table[name] = pd.Series(["never seen"] * _UNSEEN_ROWS).astype(example[name].dtype)
    return table


def _is_number(series: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)


def _is_text(series: "pd.Series[Any]") -> bool:
    """A column of strings that could hold another one (a pandas categorical could not)."""
    return columns_of(series.to_frame())[0].type == "string" and not isinstance(series.dtype, pd.CategoricalDtype)


def _can_miss(series: "pd.Series[Any]") -> bool:
    return pd.api.types.is_float_dtype(series.dtype) or columns_of(series.to_frame())[0].type == "string"


def _tensor_rows(example: dict[str, Array], random: np.random.Generator, wanted: int) -> Iterator[Rows]:
    """The example with noise of a tenth of its range, and noise alone; integers within what was observed."""
    chunk = min(_chunk_rows(example), 256)
    for position, start in enumerate(range(0, wanted, chunk)):
        count = min(chunk, wanted - start)
        rows = random.integers(0, batches.rows(example), count)
        yield Rows("ranges", {name: _noisy(array, rows, random, position % 2 == 0) for name, array in example.items()})


def _noisy(array: Array, rows: Array, random: np.random.Generator, around: bool) -> Array:
    if array.dtype.kind not in "fiu":
        return np.asarray(array[rows])
    shape = (len(rows), *array.shape[1:])
    if array.dtype.kind in "iu":
        return random.integers(array.min(), array.max(), shape, dtype=array.dtype, endpoint=True)
    low, high = _finite_range(array)
    if around:
        with np.errstate(over="ignore"):
            return np.asarray(array[rows] + random.normal(size=shape) * (high / 2 - low / 2) * 0.2).astype(array.dtype)
    return (2 * random.uniform(low / 2, high / 2, shape)).astype(array.dtype)
