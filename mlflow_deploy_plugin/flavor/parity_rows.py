"""The rows for the proof of parity: the user's own, rows drawn from the example column by column, and boundary values.

The boundary values come from the model itself: its thresholds and edges in 64 bits, its categories, the terms of its
vocabulary, the rows that it has learned and the middle between two of them. Numbers far outside of all ranges are
added.

The generator has a seed: the same model and example give the same rows.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch, columns_of
from mlflow_deploy_plugin.flavor.convert.converted import BoundaryValues
from mlflow_deploy_plugin.flavor.parity import RowGroup
from mlflow_deploy_plugin.runtime import Array

MIN_PARITY_ROWS = 1_000
"""The least number of rows for a proof."""

_MAX_GIVEN_ROWS = 5_000  # of the example, and of parity_data
_THRESHOLD_ROWS = 600
_LEARNED_ROWS = 200
_CATEGORY_ROWS = 200
_TEXT_ROWS = 240
_FAR = (-1e6, -3e4, -1e3, -30.0, -3.0, 3.0, 30.0, 1e3, 3e4, 1e6)  # factors of the largest number of a column
_FAR_TOGETHER = (*_FAR, 0.0, 1e-30)
_FAR_ROWS = 96  # with all columns far
_MISSING_ROWS = 24  # for each column
_UNSEEN_ROWS = 8
_CODES = 20  # a number with no more distinct values is a code, and is drawn as observed
_MATRIX_COLUMNS = 2_000
_CHANGED_VALUES = 4_000_000  # in a wide table only some columns are changed: rows for all would grow as its square
_CHANGED_COLUMNS = 100
_CHUNK_ELEMENTS = 4_000_000  # of a tensor, at once in memory


def parity_rows(
    example: Batch, parity_data: Batch | None, boundary_values: BoundaryValues, seed: int = 0
) -> Iterator[RowGroup]:
    """Yield the example, `parity_data`, and generated rows, at least `MIN_PARITY_ROWS` together."""
    random = np.random.default_rng(seed)
    given = 0
    for source, data in (("example", example), ("parity_data", parity_data)):
        if data is not None:
            for part in _given_rows(data, random):
                given += batches.row_count(part)
                yield RowGroup(source, part, generated=False)
    if isinstance(example, pd.DataFrame):
        yield from _table_rows(example, boundary_values, random, MIN_PARITY_ROWS - given)
    elif (matrix := _only_matrix(example)) is not None:
        name, array = matrix
        table = pd.DataFrame(array, columns=[str(position) for position in range(array.shape[1])])
        for group in _table_rows(table, boundary_values, random, MIN_PARITY_ROWS - given):
            if group.source == "missing" and array.dtype.kind in "OUT":
                continue  # no signature of tensors has a missing text
            yield replace(group, batch={name: pd.DataFrame(group.batch).to_numpy(dtype=array.dtype)})
    else:
        yield from _tensor_rows(example, random, max(MIN_PARITY_ROWS - given, 200))


def _given_rows(data: Batch, random: np.random.Generator) -> Iterator[Batch]:
    """Yield at most `_MAX_GIVEN_ROWS` of the user's rows, tensors in chunks."""
    count = batches.row_count(data)
    if count > _MAX_GIVEN_ROWS:
        data = batches.take_rows(data, np.sort(random.choice(count, _MAX_GIVEN_ROWS, replace=False)))
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
    example: pd.DataFrame, boundary_values: BoundaryValues, random: np.random.Generator, wanted: int
) -> Iterator[RowGroup]:
    yield RowGroup("ranges", _draw(example, random, 600, _in_range))
    yield RowGroup("observed", _draw(example, random, max(wanted, 400), _observed))
    yield from _boundary_rows(example, boundary_values, random)
    for source, fits, count, change in _CHANGES:
        if names := _some_columns(example, fits, count, random):
            changed = [change(_some_rows(example, random, count), name) for name in names]
            yield RowGroup(source, pd.concat(changed, ignore_index=True), block=count)
    if any(_is_number(example[name]) for name in example):
        yield RowGroup("far together", _far_together(example, random), block=len(_FAR_TOGETHER), alone=True)


def _boundary_rows(
    example: pd.DataFrame, boundary_values: BoundaryValues, random: np.random.Generator
) -> Iterator[RowGroup]:
    """Yield rows at the boundary values of the model."""
    if boundary_values.edges:
        yield RowGroup("thresholds", _at_edges(example, boundary_values, random))
    for learned in boundary_values.rows:
        yield RowGroup("learned", _learned(example, learned, random, _LEARNED_ROWS))
        yield RowGroup("halfway", _learned(example, learned, random, _LEARNED_ROWS, halfway=True), may_tie=True)
    for name, categories in boundary_values.categories.items():
        for source, values in (("categories", list(categories)), ("near categories", _near(categories))):
            if not values:
                continue
            chosen = [values[position] for position in random.permutation(len(values))[:_CATEGORY_ROWS]]
            table = _some_rows(example, random, len(chosen))
            with contextlib.suppress(TypeError, ValueError):  # the column's type may not take them
                yield RowGroup(source, table.assign(**{name: _as(chosen, example[name].dtype)}), block=_UNSEEN_ROWS)
    for name, terms in boundary_values.texts.items():
        texts = list(_sentences(terms, random))
        table = _some_rows(example, random, len(texts)).assign(**{name: _as(texts, example[name].dtype)})
        yield RowGroup("vocabulary", table, alone=True)


def _some_rows(example: pd.DataFrame, random: np.random.Generator, count: int) -> pd.DataFrame:
    return example.iloc[random.integers(0, len(example), count)].reset_index(drop=True)


def _some_columns(
    example: pd.DataFrame, fits: Callable[["pd.Series[Any]"], bool], rows: int, random: np.random.Generator
) -> list[Any]:
    """Return the columns that fit, in order; in a wide table only as many as allow `rows` for each."""
    names = [name for name in example.columns if fits(example[name])]
    most = min(max(_CHANGED_VALUES // (rows * example.shape[1]), 1), _CHANGED_COLUMNS)
    if len(names) <= most:
        return names
    return [names[position] for position in np.sort(random.choice(len(names), most, replace=False))]


_Draw = Callable[["pd.Series[Any]", np.random.Generator, int], "pd.Series[Any]"]


def _draw(example: pd.DataFrame, random: np.random.Generator, count: int, draw: _Draw) -> pd.DataFrame:
    """Draw each column by itself, so that new combinations come up."""
    return pd.DataFrame({name: draw(example[name], random, count) for name in example.columns})


def _observed(series: "pd.Series[Any]", random: np.random.Generator, count: int) -> "pd.Series[Any]":
    return series.iloc[random.integers(0, len(series), count)].reset_index(drop=True)


def _in_range(series: "pd.Series[Any]", random: np.random.Generator, count: int) -> "pd.Series[Any]":
    """Draw between the smallest and the largest value; codes, categories and booleans as observed."""
    if not _is_number(series) or series.nunique() <= _CODES:
        return _observed(series, random, count)
    if pd.api.types.is_integer_dtype(series.dtype):
        smallest, largest = int(series.min()), int(series.max())
        kind = np.int64 if smallest < 0 else np.uint64
        return pd.Series(random.integers(smallest, largest, count, dtype=kind, endpoint=True)).astype(series.dtype)
    low, high = _finite_range(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return pd.Series(2 * random.uniform(low / 2, high / 2, count)).astype(series.dtype)  # the halves' range is finite


def _finite_range(values: Array) -> tuple[float, float]:
    """Return the smallest and the largest finite number, NaN if there is none."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (np.nan, np.nan)


def _at_edges(example: pd.DataFrame, boundary_values: BoundaryValues, random: np.random.Generator) -> pd.DataFrame:
    """Return observed rows with values on an edge, on its 32-bit rounding, between both, or one step beside them."""
    table = _some_rows(example, random, _THRESHOLD_ROWS)
    for name, values in boundary_values.edges.items():
        series = table[name]
        numbers = values[np.abs(values) < np.finfo(np.float32).max]
        if not _is_number(series) or not len(numbers):
            continue
        chosen = random.choice(numbers.astype(np.float64), _THRESHOLD_ROWS)
        if pd.api.types.is_integer_dtype(series.dtype):
            moved = np.floor(chosen) + random.integers(0, 2, _THRESHOLD_ROWS)
        else:
            single = chosen.astype(np.float32)
            steps = [np.nextafter(number, way(np.inf)) for number, way in _steps(chosen, single)]
            ways = [chosen, single, chosen / 2 + single / 2, *steps]
            moved = np.choose(random.integers(0, len(ways), _THRESHOLD_ROWS), ways)
        keep = random.random(_THRESHOLD_ROWS) < 0.5
        table[name] = pd.Series(np.where(keep, series, moved)).astype(example[name].dtype)
    return table


def _steps(double: Array, single: Array) -> Iterator[tuple[Array, Callable[[float], Any]]]:
    """Yield each number with each direction, in its own precision."""
    for number, kind in ((double, np.float64), (single, np.float32)):
        yield number, kind
        yield number, lambda far, kind=kind: kind(-far)  # type: ignore[misc]


def _learned(
    example: pd.DataFrame, learned: Any, random: np.random.Generator, count: int, halfway: bool = False
) -> pd.DataFrame:
    """Return rows that the model has learned, or the middle between two of them, at the same distance from both."""
    table = _some_rows(example, random, count)
    left, right = random.integers(0, len(next(iter(learned.values()))), (2, count))
    for name, values in learned.items():
        if _is_number(example[name]):
            moved = values[left] / 2 + values[right] / 2 if halfway else values[left]
            table[name] = _as(moved, example[name].dtype)
    return table


def _near(categories: Any) -> list[Any]:
    """Return values that look like a category and are none."""
    found: list[Any] = []
    for value in categories:
        if isinstance(value, str):
            found += [value.upper(), value.lower(), f"{value} ", f" {value}", f"{value}é", value[:-1]]
        elif isinstance(value, float | np.floating) and np.isfinite(value):
            found += [np.nextafter(value, -np.inf), np.nextafter(value, np.inf), value + 0.5, -value]
        elif isinstance(value, int | np.integer) and not isinstance(value, bool):
            found += [value + 1, -value]
    return found


def _sentences(terms: tuple[str, ...], random: np.random.Generator) -> Iterator[str]:
    """Yield texts of terms: as they are, in other cases, and joined to characters that may belong to a word."""
    yield from ("", " ", "\t\n  ", "!", "é")
    for position in range(_TEXT_ROWS):
        words = [terms[number] for number in random.integers(0, len(terms), random.integers(1, 6))]
        spoilt = random.integers(0, len(words))
        words[spoilt] = _SPOILING[position % len(_SPOILING)](words[spoilt])
        yield random.choice([" ", " ", "  ", ", ", "\n", "\u00a0"]).join(words)


_SPOILING: tuple[Callable[[str], str], ...] = (
    str,
    str.upper,
    str.capitalize,
    lambda word: f"{word}é",
    lambda word: f"ż{word}",
    lambda word: f"{word}7_",
    lambda word: f"{word}\u0301",
    lambda word: f"{word}-{word}.",
    lambda word: f"{word}'s a",
    lambda word: f"x {word} ß",
    lambda word: word.replace("i", "İ"),
    lambda word: word.replace("k", "\u212a"),
    lambda word: word[:1],
    lambda word: f"日{word}",
)


def _far(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Multiply the column's largest number by `_FAR` and, in further rows, each row's own number."""
    reach, factors = _reach(table[name]), np.resize(np.array(_FAR), len(table))
    own = np.clip(np.nan_to_num(table[name].to_numpy(dtype=np.float64, na_value=np.nan)), -reach, reach)
    some = np.where(np.arange(len(table)) < len(_FAR), reach, own)
    return table.assign(**{name: _as(factors * some, table[name].dtype)})


def _far_together(example: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """Multiply all numbers of a row by one factor; each factor comes once in every block of rows."""
    table = _some_rows(example, random, _FAR_ROWS)
    factors = np.resize(np.array(_FAR_TOGETHER), _FAR_ROWS)
    for name in example:
        if _is_number(example[name]):
            reach = _reach(example[name])
            numbers = np.clip(table[name].to_numpy(dtype=np.float64, na_value=np.nan), -reach, reach)
            table[name] = _as(np.where(np.isnan(numbers), reach, numbers) * factors, example[name].dtype)
    return table


def _reach(series: "pd.Series[Any]") -> float:
    """Return the largest number of a column, at least 1, and so small that 32 bits hold a million times it."""
    low, high = _finite_range(series.to_numpy(dtype=np.float64, na_value=np.nan))
    reach = max(abs(low), abs(high))
    return min(reach, 1e30) if reach > 1 else 1.0


def _as(values: Any, dtype: Any) -> "pd.Series[Any]":
    """Return a column of the type; whole numbers are rounded and clipped to its bounds."""
    if pd.api.types.is_integer_dtype(dtype):
        bounds = np.iinfo(getattr(dtype, "numpy_dtype", dtype))
        within = np.clip(
            np.nan_to_num(np.asarray(values, dtype=np.float64)), max(bounds.min, -(2**53)), min(bounds.max, 2**53)
        )
        return pd.Series(np.round(within).astype(np.int64)).astype(dtype)
    return pd.Series(values).astype(dtype)


def _filled(table: pd.DataFrame, name: str, value: Any) -> pd.DataFrame:
    return table.assign(**{name: pd.Series([value] * len(table)).astype(table[name].dtype)})


def _is_number(series: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)


def _is_text(series: "pd.Series[Any]") -> bool:
    """Return True for a column of strings that could hold another one (a pandas categorical could not)."""
    return columns_of(series.to_frame())[0].type == "string" and not isinstance(series.dtype, pd.CategoricalDtype)


def _can_miss(series: "pd.Series[Any]") -> bool:
    return pd.api.types.is_float_dtype(series.dtype) or columns_of(series.to_frame())[0].type == "string"


_CHANGES: tuple[tuple[str, Any, int, Callable[[pd.DataFrame, Any], pd.DataFrame]], ...] = (
    ("missing", _can_miss, _MISSING_ROWS, lambda table, name: _filled(table, name, np.nan)),
    ("unseen", _is_text, _UNSEEN_ROWS, lambda table, name: _filled(table, name, "never seen")),
    ("far", _is_number, 4 * len(_FAR), _far),
)
"""Changes of one column in each row: the source, a test of the columns, rows for each column, and the change."""


def _tensor_rows(example: dict[str, Array], random: np.random.Generator, wanted: int) -> Iterator[RowGroup]:
    """Yield the example with noise of a tenth of its range, and noise alone; integers within the observed range."""
    chunk = min(_chunk_rows(example), 256)
    for position, start in enumerate(range(0, wanted, chunk)):
        count = min(chunk, wanted - start)
        rows = random.integers(0, batches.row_count(example), count)
        yield RowGroup(
            "ranges", {name: _noisy(array, rows, random, position % 2 == 0) for name, array in example.items()}
        )


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
