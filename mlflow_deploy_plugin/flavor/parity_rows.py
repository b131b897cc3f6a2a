"""The rows for the proof of parity: the user's own, rows drawn from the example column by column, and boundary values.

Boundary values are thresholds, categories, terms and learned rows of the model. Numbers far outside are added. The seed
is fixed: the same model and example give the same rows.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, cycle, islice, starmap
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from onnx import ModelProto

from mlflow_deploy_plugin.flavor.batch import Batch, column_type, missing_value, unseen_category
from mlflow_deploy_plugin.flavor.convert.converted import BoundaryValues, Category
from mlflow_deploy_plugin.flavor.parity import RowGroup
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.runtime.feeds import Array

MIN_PARITY_ROWS = 1_000

_MAX_GIVEN_ROWS = 5_000  # of the example, and of parity_data
_THRESHOLD_ROWS = 600
_LEARNED_ROWS = 200
_CATEGORY_ROWS = 200  # for each column; of many columns fewer, so that all have `_ALL_CATEGORY_ROWS`
_ALL_CATEGORY_ROWS = 4_000
_TEXT_ROWS = 240
_FAR = (-1e6, -3e4, -1e3, -30.0, -3.0, 3.0, 30.0, 1e3, 3e4, 1e6)  # factors of the largest number of a column
_FAR_TOGETHER = (*_FAR, 0.0, 1e-30)
_FAR_ROWS = 96  # with all columns far
_MISSING_ROWS = 24  # for each column
_UNSEEN_ROWS = 8
_INFINITE_ROWS = 2
_CODES = 20  # a number with no more distinct values is a code, and is drawn as observed
_MATRIX_COLUMNS = 2_000
_CHANGED_VALUES = 4_000_000  # in a wide table only some columns are changed: rows for all would grow as its square
_CHANGED_COLUMNS = 100
_CHUNK_ELEMENTS = 4_000_000  # of a tensor, at once in memory
_OTHER_SIZES = 8  # for tensors with free sizes
_OTHER_SIZE_ROWS = 8


def symbolic_sizes(proto: ModelProto) -> dict[str, dict[int, str]]:
    """Return the symbols of the free sizes, except the rows, by the axes of each of a graph's inputs."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    return {
        name: {
            axis: size.dim_param or f"{name}_{axis}" for axis, size in enumerate(sizes) if axis and not size.dim_value
        }
        for name, sizes in shapes.items()
    }


def parity_rows(
    example: Batch,
    parity_data: Batch | None,
    boundary_values: BoundaryValues,
    sizes: Mapping[str, Mapping[int, str]] | None = None,
    left_out: dict[str, str] | None = None,
) -> Iterator[RowGroup]:
    """Yield the example, `parity_data`, and generated rows, at least `MIN_PARITY_ROWS` together.

    Rows of other `sizes` (`symbolic_sizes`) are included. `left_out` gets the error of each failed generator.
    """
    random = np.random.default_rng(0)
    given = 0
    for source, data in (("example", example), ("parity_data", parity_data)):
        if data is None:
            continue
        if len(data) > _MAX_GIVEN_ROWS:
            data = data.take(np.sort(random.choice(len(data), _MAX_GIVEN_ROWS, replace=False)))
        for part in [data] if data.is_table else data.chunks(_chunk_rows(data)):
            given += len(part)
            yield RowGroup(source, part, generated=False)
    for name, draw in _generators(example, boundary_values, MIN_PARITY_ROWS - given, sizes or {}, random):
        try:
            yield from draw()
        except Exception as error:  # noqa: BLE001 - pandas and numpy may raise any class
            if left_out is not None:
                left_out[name] = one_line(error)


_Generator: TypeAlias = tuple[str, Callable[[], Iterable[RowGroup]]]
"""The name of a generator, and a function that draws its rows."""


def _generators(
    example: Batch,
    boundary_values: BoundaryValues,
    wanted: int,
    sizes: Mapping[str, Mapping[int, str]],
    random: np.random.Generator,
) -> Iterator[_Generator]:
    if isinstance(example.data, pd.DataFrame):
        yield from _TableRows(example.data, random).generators(boundary_values, wanted)
        return
    yield "other sizes", lambda: _other_sizes(example, sizes, random)
    name, array = next(iter(example.tensors.items()))
    if len(example.tensors) > 1 or array.ndim != 2 or array.shape[1] > _MATRIX_COLUMNS:
        yield "ranges", lambda: _tensor_rows(example, random, max(wanted, 200))
        yield "far together", lambda: [RowGroup("far together", _far_tensors(example, random), alone=True)]
        return
    table = pd.DataFrame(array, columns=[str(position) for position in range(array.shape[1])])

    def as_matrices(draw: Callable[[], Iterable[RowGroup]]) -> Iterator[RowGroup]:
        for group in draw():
            matrix = pd.DataFrame(group.batch.data).to_numpy(dtype=array.dtype)
            yield replace(group, batch=Batch({name: matrix}), columns=(name,) * len(group.columns))

    for source, draw in _TableRows(table, random).generators(boundary_values, wanted):
        if source != "missing" or array.dtype.kind not in "OUT":  # no signature of tensors has a missing text
            yield source, partial(as_matrices, draw)


def _chunk_rows(tensors: Batch) -> int:
    return max(_CHUNK_ELEMENTS // max(tensors.row_size, 1), 2)


_Change = Callable[[pd.Series, pd.Series], pd.Series]
"""The change of drawn values of a column, given the example's whole column."""


@dataclass(frozen=True)
class _TableRows:
    example: pd.DataFrame
    random: np.random.Generator

    def generators(self, boundary_values: BoundaryValues, wanted: int) -> Iterator[_Generator]:
        yield "ranges", lambda: [RowGroup("ranges", Batch(self.by_column(600, self.in_range)))]
        yield "observed", lambda: [RowGroup("observed", Batch(self.by_column(max(wanted, 400), self.observed)))]
        if boundary_values.edges:
            yield "thresholds", lambda: [RowGroup("thresholds", Batch(self.at_edges(boundary_values.edges)))]
        yield "learned", lambda: chain.from_iterable(map(self.at_learned, boundary_values.rows))
        yield "categories", lambda: self.at_categories(boundary_values.categories)
        yield "vocabulary", lambda: starmap(self.vocabulary, boundary_values.texts.items())
        for change in _CHANGES:
            yield change[0], partial(self.changed, *change)
        yield "unseen categories", self.unseen_categories
        yield "far", self.far

    def at_learned(self, learned: Mapping[str, Array]) -> Iterator[RowGroup]:
        yield RowGroup("learned", Batch(self.learned(learned)))
        yield RowGroup("halfway", Batch(self.learned(learned, halfway=True)), may_tie=True)

    def vocabulary(self, name: str, terms: tuple[str, ...]) -> RowGroup:
        texts = [*("", " ", "\t\n  ", "!", "é"), *(self.sentence(terms, number) for number in range(_TEXT_ROWS))]
        table = self.some(len(texts)).assign(**{name: _as(texts, self.example[name].dtype)})
        return RowGroup("vocabulary", Batch(table), alone=True)

    def changed(
        self, source: str, fits: Callable[[pd.Series], bool], count: int, change: _Change, compared: bool
    ) -> Iterator[RowGroup]:
        """Yield rows in which one column is changed; the arguments are an entry of `_CHANGES`."""
        if names := self.some_columns(fits, count):
            table = self.one_changed(dict.fromkeys(names, count), change)
            yield RowGroup(source, Batch(table), block=count, columns=tuple(map(str, names)), compared=compared)

    def unseen_categories(self) -> Iterator[RowGroup]:
        """Yield rows in which one column of pandas categories has another category; XGBoost refuses its whole table."""
        for name in self.some_columns(lambda series: isinstance(series.dtype, pd.CategoricalDtype), _UNSEEN_ROWS):
            table = self.some(_UNSEEN_ROWS)
            if (unseen := unseen_category(table[name])) is not None:
                table[name] = unseen
                yield RowGroup("unseen", Batch(table), block=_UNSEEN_ROWS, columns=(str(name),))

    def far(self) -> Iterator[RowGroup]:
        if numbers := self.some_columns(_is_number, 4 * len(_FAR)):
            yield RowGroup("far", Batch(self.one_changed(dict.fromkeys(numbers, 4 * len(_FAR)), _far)))
            yield RowGroup("far together", Batch(self.far_together()), alone=True)

    def at_categories(self, learned: Mapping[str, tuple[Category, ...]]) -> Iterator[RowGroup]:
        """Yield rows in which one column has a category, and rows in which it has a value that resembles one."""
        names = self.some_columns(lambda series: series.name in learned, _UNSEEN_ROWS)
        allowed = min(_ALL_CATEGORY_ROWS, _CHANGED_VALUES // self.example.shape[1]) // max(len(names), 1)
        most = min(max(allowed, _UNSEEN_ROWS), _CATEGORY_ROWS)
        if learned and most < _CATEGORY_ROWS:  # in few rows all columns of a wide table show as many categories
            table = self.some(_CATEGORY_ROWS)
            for name, values in learned.items():
                if chosen := self.some_categories(name, values, _CATEGORY_ROWS):
                    with contextlib.suppress(TypeError, ValueError):  # the column's type may not take them
                        table[name] = _as(list(islice(cycle(chosen), len(table))), table[name].dtype)
            yield RowGroup("categories together", Batch(table), block=_UNSEEN_ROWS)
        for source, values_of in (("categories", list), ("near categories", _near)):
            changed: dict[Any, pd.Series] = {}
            for name in names:
                chosen = self.some_categories(name, values_of(learned[name]), most)
                whole = -(-len(chosen) // _UNSEEN_ROWS) * _UNSEEN_ROWS
                with contextlib.suppress(TypeError, ValueError):  # as above
                    changed[name] = _as(list(islice(cycle(chosen), whole)), self.example[name].dtype)
            if lengths := {name: len(series) for name, series in changed.items() if len(series)}:
                columns = [str(name) for name, rows in lengths.items() for _ in range(rows // _UNSEEN_ROWS)]
                table = self.one_changed(lengths, lambda _, example: changed[example.name])  # noqa: B023 - called here
                yield RowGroup(source, Batch(table), block=_UNSEEN_ROWS, columns=tuple(columns))

    def some_categories(self, name: str, values: Sequence[Category], most: int) -> list[Category]:
        """Return at most so many of the values that the column can hold."""
        dtype = self.example[name].dtype
        # A value that is not a category would be missing, which an integer cannot be.
        if isinstance(dtype, pd.CategoricalDtype) and column_type(self.example[name]) != "string":
            values = [value for value in values if value in dtype.categories]
        return [values[position] for position in self.random.permutation(len(values))[:most]]

    def one_changed(self, rows: Mapping[Any, int], change: _Change) -> pd.DataFrame:
        """Return rows in which one column is changed, as one table: a table per column would take quadratic time."""
        table = self.some(sum(rows.values()))
        start = 0
        for name, count in rows.items():
            column, end = table[name], start + count
            changed = change(column.iloc[start:end].reset_index(drop=True), self.example[name])
            parts = [column.iloc[:start], changed, column.iloc[end:]]
            table[name] = pd.concat([part for part in parts if len(part)], ignore_index=True)
            start = end
        return table

    def some(self, count: int) -> pd.DataFrame:
        return self.example.iloc[self.random.integers(0, len(self.example), count)].reset_index(drop=True)

    def some_columns(self, fits: Callable[[pd.Series], bool], rows: int) -> list[str]:
        """Return the columns that fit, in order; in a wide table only as many as allow `rows` for each."""
        names = [name for name in self.example.columns if fits(self.example[name])]
        most = min(max(_CHANGED_VALUES // (rows * self.example.shape[1]), 1), _CHANGED_COLUMNS)
        if len(names) <= most:
            return names
        return [names[position] for position in np.sort(self.random.choice(len(names), most, replace=False))]

    def by_column(self, count: int, draw: Callable[[pd.Series, int], pd.Series]) -> pd.DataFrame:
        """Draw each column by itself, so that new combinations come up."""
        return pd.DataFrame({name: draw(self.example[name], count) for name in self.example.columns})

    def observed(self, series: pd.Series, count: int) -> pd.Series:
        return series.iloc[self.random.integers(0, len(series), count)].reset_index(drop=True)

    def in_range(self, series: pd.Series, count: int) -> pd.Series:
        """Draw between the smallest and the largest value, or around an only value; draw codes as observed."""
        if pd.api.types.is_float_dtype(series.dtype) and series.nunique() == 1:
            only, reach = float(series.dropna().iloc[0]), _reach(series)
            if abs(only) <= reach:  # it is neither infinite nor immense
                return pd.Series(self.random.uniform(only - reach, only + reach, count)).astype(series.dtype)
        if not _is_number(series) or series.nunique() <= _CODES:
            return self.observed(series, count)
        if pd.api.types.is_integer_dtype(series.dtype):
            smallest, largest = int(series.min()), int(series.max())
            kind = np.int64 if smallest < 0 else np.uint64
            drawn = self.random.integers(smallest, largest, count, dtype=kind, endpoint=True)
            return pd.Series(drawn).astype(series.dtype)
        low, high = _finite_range(series.to_numpy(dtype=np.float64, na_value=np.nan))
        # the halves' range is finite
        return pd.Series(2 * self.random.uniform(low / 2, high / 2, count)).astype(series.dtype)

    def sentence(self, terms: tuple[str, ...], number: int) -> str:
        """Return a text of terms, one of them in another case, or joined to characters that may belong to a word."""
        words = [terms[place] for place in self.random.integers(0, len(terms), self.random.integers(1, 6))]
        spoilt = self.random.integers(0, len(words))
        words[spoilt] = _SPOILING[number % len(_SPOILING)](words[spoilt])
        return str(self.random.choice([" ", " ", "  ", ", ", "\n", "\u00a0"])).join(words)

    def at_edges(self, edges: Mapping[str, Array]) -> pd.DataFrame:
        """Return rows with values on an edge, on its 32-bit rounding, between both, or one step away from them."""
        count = _THRESHOLD_ROWS
        table = self.some(count)
        for name, values in edges.items():
            series = table[name]
            numbers = values[np.abs(values) < np.finfo(np.float32).max]
            if not _is_number(series) or not len(numbers):
                continue
            chosen = self.random.choice(numbers.astype(np.float64), count)
            if pd.api.types.is_integer_dtype(series.dtype):
                moved = np.floor(chosen) + self.random.integers(0, 2, count)
            else:
                single = chosen.astype(np.float32)
                steps = [
                    np.nextafter(one, one.dtype.type(end)) for one in (chosen, single) for end in (np.inf, -np.inf)
                ]
                ways = [chosen, single, chosen / 2 + single / 2, *steps]
                moved = np.choose(self.random.integers(0, len(ways), count), ways)
            keep = self.random.random(count) < 0.5
            table[name] = pd.Series(np.where(keep, series, moved)).astype(self.example[name].dtype)
        return table

    def learned(self, learned: Mapping[str, Array], halfway: bool = False) -> pd.DataFrame:
        """Return rows that the model has learned, or the middle between two of them, at the same distance from both."""
        table = self.some(_LEARNED_ROWS)
        left, right = self.random.integers(0, len(next(iter(learned.values()))), (2, _LEARNED_ROWS))
        for name, values in learned.items():
            if _is_number(self.example[name]):
                moved = values[left] / 2 + values[right] / 2 if halfway else values[left]
                table[name] = _as(moved, self.example[name].dtype)
        return table

    def far_together(self) -> pd.DataFrame:
        """Multiply all numbers of a row by one factor; each factor comes once in every block of rows."""
        table = self.some(_FAR_ROWS)
        factors = np.resize(np.array(_FAR_TOGETHER), _FAR_ROWS)
        for name in self.example:
            if _is_number(self.example[name]):
                reach = _reach(self.example[name])
                numbers = np.clip(table[name].to_numpy(dtype=np.float64, na_value=np.nan), -reach, reach)
                table[name] = _as(np.where(np.isnan(numbers), reach, numbers) * factors, self.example[name].dtype)
        return table


def _finite_range(values: Array) -> tuple[float, float]:
    """Return the smallest and the largest finite number, NaN if there is none."""
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if known.size else (np.nan, np.nan)


def _near(categories: Iterable[Category]) -> list[Category]:
    """Return values that look like a category but are not categories."""
    found: list[Category] = []
    for value in categories:
        if isinstance(value, str):
            found += [value.upper(), value.lower(), f"{value} ", f" {value}", f"{value}é", value[:-1]]
        elif isinstance(value, float | np.floating) and np.isfinite(value):
            found += [np.nextafter(value, -np.inf), np.nextafter(value, np.inf), value + 0.5, -value]
        elif isinstance(value, int | np.integer) and not isinstance(value, bool):
            found += [value + 1, -value]
    return found


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


def _far(column: pd.Series, _: pd.Series) -> pd.Series:
    """Multiply the column's largest number by `_FAR` and, in further rows, each row's own number."""
    reach, factors = _reach(column), np.resize(np.array(_FAR), len(column))
    own = np.clip(np.nan_to_num(column.to_numpy(dtype=np.float64, na_value=np.nan)), -reach, reach)
    some = np.where(np.arange(len(column)) < len(_FAR), reach, own)
    return _as(factors * some, column.dtype)


def _reach(series: pd.Series) -> float:
    """Return the largest number of a column, at least 1, and so small that 32 bits hold a million times it."""
    low, high = _finite_range(series.to_numpy(dtype=np.float64, na_value=np.nan))
    reach = max(abs(low), abs(high))
    return min(reach, 1e30) if reach > 1 else 1.0


def _as(values: Any, dtype: Any) -> pd.Series:
    """Return a column of the type; whole numbers are rounded and clipped to its bounds."""
    if pd.api.types.is_integer_dtype(dtype):
        bounds = np.iinfo(getattr(dtype, "numpy_dtype", dtype))
        within = np.clip(
            np.nan_to_num(np.asarray(values, dtype=np.float64)), max(bounds.min, -(2**53)), min(bounds.max, 2**53)
        )
        return pd.Series(np.round(within).astype(np.int64)).astype(dtype)
    if isinstance(dtype, pd.CategoricalDtype):  # A value that is not a category is missing.
        return pd.Series(pd.Categorical.from_codes(dtype.categories.get_indexer(pd.Index(values)), dtype=dtype))
    # pandas 3 would infer texts from objects, and NaN from None
    return pd.Series(values, dtype=object if pd.api.types.is_object_dtype(dtype) else None).astype(dtype)


def _is_number(series: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)


_CHANGES: tuple[tuple[str, Callable[[pd.Series], bool], int, _Change, bool], ...] = (
    (
        "missing",
        lambda series: pd.api.types.is_float_dtype(series.dtype) or column_type(series) == "string",
        _MISSING_ROWS,
        # one row stays whole: an original may refuse a column that is missing throughout
        lambda column, example: column.where(np.arange(len(column)) == 0, missing_value(example)),
        True,
    ),
    (
        "unseen",
        lambda series: column_type(series) == "string" and not isinstance(series.dtype, pd.CategoricalDtype),
        _UNSEEN_ROWS,
        lambda column, _: pd.Series("never seen", column.index).astype(column.dtype),
        True,
    ),
    (
        "infinite",
        lambda series: pd.api.types.is_float_dtype(series.dtype),
        _INFINITE_ROWS,
        lambda column, _: _as([np.inf, -np.inf], column.dtype),
        False,
    ),
)
"""The source, a test of columns, rows for each column, the change, and True if the answers are compared."""


def _tensor_rows(example: Batch, random: np.random.Generator, wanted: int) -> Iterator[RowGroup]:
    """Yield the example with noise of a tenth of its range, and pure noise; integers within the observed range."""
    chunk = min(_chunk_rows(example), 256)
    for position, start in enumerate(range(0, wanted, chunk)):
        count = min(chunk, wanted - start)
        rows = random.integers(0, len(example), count)
        is_around = position % 2 == 0
        noisy = {name: _noisy(array, rows, random, is_around) for name, array in example.tensors.items()}
        yield RowGroup("ranges", Batch(noisy))


def _noisy(array: Array, rows: Array, random: np.random.Generator, around: bool) -> Array:
    if array.dtype.kind not in "fiu":
        return np.asarray(array[rows])
    shape = (len(rows), *array.shape[1:])
    if array.dtype.kind in "iu":
        return random.integers(array.min(), array.max(), shape, dtype=array.dtype, endpoint=True)
    low, high = _finite_range(array)
    if low == high:  # zeros, as many write for an example
        low, high = low - max(abs(low), 1.0), high + max(abs(high), 1.0)
    if around:
        with np.errstate(over="ignore"):
            return np.asarray(array[rows] + random.normal(size=shape) * (high / 2 - low / 2) * 0.2).astype(array.dtype)
    return (2 * random.uniform(low / 2, high / 2, shape)).astype(array.dtype)


def _far_tensors(example: Batch, random: np.random.Generator) -> Batch:
    """Return rows of the example, all numbers of a row multiplied by one factor of `_FAR_TOGETHER`."""
    factors = np.resize(np.array(_FAR_TOGETHER), min(_FAR_ROWS, _chunk_rows(example)))
    rows = random.integers(0, len(example), len(factors))

    def far(array: Array) -> Array:
        if array.dtype.kind != "f":
            return np.asarray(array[rows])
        bounds = np.finfo(array.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            moved = array[rows].astype(np.float64) * factors.reshape(-1, *[1] * (array.ndim - 1))
        return np.clip(moved, bounds.min, bounds.max).astype(array.dtype)

    return Batch({name: far(array) for name, array in example.tensors.items()})


def _other_sizes(
    example: Batch, sizes: Mapping[str, Mapping[int, str]], random: np.random.Generator
) -> Iterator[RowGroup]:
    """Yield rows of other lengths: tensors are cut, or repeated. Sizes of one symbol are the same in all tensors."""
    only = next(iter(sizes.values()), {}) if len(sizes) == 1 else {}  # the only tensor may have no name
    found = {name: sizes.get(name, only) for name in example.tensors}
    most = {
        symbol: 2 * example.tensors[name].shape[axis] for name, axes in found.items() for axis, symbol in axes.items()
    }
    for _ in range(_OTHER_SIZES if most else 0):
        chosen = random.integers(0, len(example), _OTHER_SIZE_ROWS)
        drawn = {symbol: np.arange(random.integers(1, size, endpoint=True)) for symbol, size in most.items()}
        changed = dict(example.take(chosen).tensors)
        for name, axes in found.items():
            for axis, symbol in axes.items():
                changed[name] = changed[name].take(drawn[symbol], axis, mode="wrap")
        yield RowGroup("other sizes", Batch(changed))
