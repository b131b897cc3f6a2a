"""The rows of the parity check: rows from the user, rows drawn from the example per
column, and boundary values.

Boundary values are the model's thresholds, categories, terms and training rows, and
numbers far outside the example. The seed is fixed, so the same model and example yield
the same rows.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, cycle, islice, product, starmap
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.random import Generator
from onnx import ModelProto
from pandas.api.types import (
    is_bool_dtype,
    is_float_dtype,
    is_integer_dtype,
    is_numeric_dtype,
    is_object_dtype,
)

from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.batch import (
    Batch,
    column_type,
    missing_value,
    unseen_category,
)
from mlflow_deploy_plugin.wrap.convert.converted import BoundaryValues, Category
from mlflow_deploy_plugin.wrap.evaluation.disturbances import value_range, within_type
from mlflow_deploy_plugin.wrap.flavor.parity import RowGroup

MIN_PARITY_ROWS = 1_000

_MAX_GIVEN_ROWS = 5_000  # the maximum number of rows of the example, and of parity_data
_THRESHOLD_ROWS = 600
_LEARNED_ROWS = 200
_CATEGORY_ROWS = 200  # rows per column; fewer if all columns would exceed `_ALL_CATEGORY_ROWS`
_ALL_CATEGORY_ROWS = 4_000
_TEXT_ROWS = 240
_RANGE_ROWS = 600
_LEAST_OBSERVED_ROWS = 400
_LEAST_TENSOR_ROWS = 200
# factors of the largest number of a column
_FAR = (-1e6, -3e4, -1e3, -30.0, -3.0, 3.0, 30.0, 1e3, 3e4, 1e6)
_FAR_COLUMN_ROWS = 4 * len(_FAR)
_FAR_TOGETHER = (*_FAR, 0.0, 1e-30)
_SENTINELS = (-999.0, -9999.0, 9999.0, 999_999_999.0, -1e9, 1e9, -1e12, 1e12, -1e15, 1e15)
"""Numbers that people use for a missing value, and numbers whose squares have more
digits than a 32-bit float.
"""
_SENTINEL_COLUMNS = 10  # columns of a group: `changes_within_one_step` tries at most 100 rows
_FAR_ROWS = 96  # rows with large numbers in all columns
_MISSING_ROWS = 24  # rows per column
_UNSEEN_ROWS = 8
_INFINITE_ROWS = 2
# A numeric column with at most 20 distinct values is a code; only observed values are
# drawn.
_CODES = 20
_MATRIX_COLUMNS = 2_000
_CHANGED_VALUES = 4_000_000  # limit for wide tables; the cost grows with the square of the columns
_CHANGED_COLUMNS = 100
_CHUNK_ELEMENTS = 4_000_000  # elements of a tensor in memory at a time
_OTHER_SIZES = 8  # draws of sizes for free axes
_OTHER_SIZE_ROWS = 8
_ODD_TEXTS = ("", " ", "\t\n  ", "!", "é")
_SEPARATORS = (" ", " ", "  ", ", ", "\n", "\u00a0")

_Columns: TypeAlias = Mapping[str, Array]
"""Values by column, all of one length unless they are edges."""
_FreeAxes: TypeAlias = Mapping[str, Mapping[int, str]]
"""The symbols of the free axes by tensor and axis."""


def symbolic_sizes(proto: ModelProto) -> dict[str, dict[int, str]]:
    """Return the symbols of the free axes by graph input and axis, without the row
    axis. An axis without a symbol is named after its input.
    """
    symbols = {}
    for value in proto.graph.input:
        dimensions = enumerate(value.type.tensor_type.shape.dim)
        symbols[value.name] = {
            axis: size.dim_param or f"{value.name}_{axis}"
            for axis, size in dimensions
            if axis > 0 and not size.dim_value
        }
    return symbols


def parity_rows(
    example: Batch,
    parity_data: Batch | None,
    boundary_values: BoundaryValues,
    sizes: _FreeAxes | None = None,
    left_out: dict[str, str] | None = None,
) -> Iterator[RowGroup]:
    """Yield the example, `parity_data`, and generated rows: at least `MIN_PARITY_ROWS`
    in total.

    Args:
        example: the user's example.
        parity_data: additional rows, or None.
        boundary_values: the values at which the model may change its prediction.
        sizes: the symbols of the free axes by tensor and axis. Some rows get other
            sizes of these axes.
        left_out: a mapping to which the errors of failed generators are added by name.
    """
    random = np.random.default_rng(0)
    given_count = 0
    for source, rows in (("example", example), ("parity_data", parity_data)):
        if rows is None:
            continue
        if len(rows) > _MAX_GIVEN_ROWS:
            positions = random.choice(len(rows), _MAX_GIVEN_ROWS, replace=False)
            rows = rows.take(np.sort(positions))
        given_count += len(rows)
        parts = [rows] if rows.is_table else rows.chunks(_chunk_rows(rows))
        for part in parts:
            yield RowGroup(source, part, generated=False)
    missing_count = MIN_PARITY_ROWS - given_count
    for name, draw in _generators(example, boundary_values, missing_count, sizes or {}, random):
        try:
            yield from draw()
        except Exception as error:  # noqa: BLE001 - pandas and numpy may raise any error.
            if left_out is not None:
                left_out[name] = one_line(error)


_Draw: TypeAlias = Callable[[], Iterable[RowGroup]]
_Generator: TypeAlias = tuple[str, _Draw]
"""The name of a generator and a function that draws its rows."""


def _generators(
    example: Batch,
    boundary_values: BoundaryValues,
    row_count: int,
    sizes: _FreeAxes,
    random: Generator,
) -> Iterator[_Generator]:
    """Yield the generators: by column for a table and for a single matrix, otherwise by
    tensor.

    Args:
        row_count: the number of rows that are missing for `MIN_PARITY_ROWS`.
        sizes: the symbols of the free axes by tensor and axis.
    """
    if isinstance(example.data, pd.DataFrame):
        yield from _TableRows(example.data, random).generators(boundary_values, row_count)
        return
    yield "other sizes", lambda: _other_sizes(example, sizes, random)
    name, array = next(iter(example.tensors.items()))
    if len(example.tensors) == 1 and array.ndim == 2 and array.shape[1] <= _MATRIX_COLUMNS:
        columns = [str(position) for position in range(array.shape[1])]
        table_rows = _TableRows(pd.DataFrame(array, columns=columns), random)
        for source, draw in table_rows.generators(boundary_values, row_count):
            # A tensor of strings cannot have missing values.
            if source != "missing" or array.dtype.kind not in "OUT":
                yield source, partial(_draw_matrices, draw, name, array.dtype)
        return
    tensor_count = max(row_count, _LEAST_TENSOR_ROWS)
    yield "ranges", lambda: _tensor_rows(example, random, tensor_count)
    yield (
        "far together",
        lambda: [RowGroup("far together", _far_tensors(example, random), alone=True)],
    )


def _draw_matrices(draw: _Draw, name: str, dtype: np.dtype[Any]) -> Iterator[RowGroup]:
    """Yield the drawn tables as matrices of the tensor `name`."""
    for group in draw():
        matrix = pd.DataFrame(group.batch.data).to_numpy(dtype=dtype)
        yield replace(group, batch=Batch({name: matrix}), columns=(name,) * len(group.columns))


def _chunk_rows(tensors: Batch) -> int:
    return max(_CHUNK_ELEMENTS // max(tensors.row_size, 1), 2)


_Change = Callable[[pd.Series, pd.Series], pd.Series]
"""A function that changes a column of drawn rows. The function's second argument is the
example's column.
"""


@dataclass(frozen=True)
class _ColumnChange:
    """A change of one column at a time.

    Attributes:
        source: the name of the changed rows.
        fits: a function that returns True for a column that can be changed.
        row_count: the number of changed rows per column.
        change: the function that changes the column.
        compared: False if the rows only determine which columns the original refuses.
    """

    source: str
    fits: Callable[[pd.Series], bool]
    row_count: int
    change: _Change
    compared: bool = True


@dataclass(frozen=True)
class _TableRows:
    """The rows that are drawn from the example, a table."""

    example: pd.DataFrame
    random: Generator

    def generators(self, boundary_values: BoundaryValues, row_count: int) -> Iterator[_Generator]:
        """Yield the generators of a table, each with its name. The one of observed
        values draws at least `row_count` rows.
        """
        count = max(row_count, _LEAST_OBSERVED_ROWS)
        yield "ranges", lambda: [self.columns("ranges", _RANGE_ROWS, self.draw_in_range)]
        yield "observed", lambda: [self.columns("observed", count, self.draw_observed)]
        if edges := boundary_values.edges:
            yield "thresholds", lambda: [RowGroup("thresholds", Batch(self.at_edges(edges)))]
        yield "learned", lambda: chain.from_iterable(map(self.at_learned, boundary_values.rows))
        yield "categories", lambda: self.at_categories(boundary_values.categories)
        yield "vocabulary", lambda: starmap(self.vocabulary, boundary_values.texts.items())
        for column_change in _CHANGES:
            yield column_change.source, partial(self.changed, column_change)
        yield "unseen categories", self.unseen_categories
        yield "far", self.far
        yield "sentinels", partial(self.sentinels, boundary_values.farthest)

    def at_learned(self, learned: _Columns) -> Iterator[RowGroup]:
        yield RowGroup("learned", Batch(self.training_rows(learned)))
        midpoints = self.training_rows(learned, is_halfway=True)
        yield RowGroup("halfway", Batch(midpoints), may_tie=True)

    def vocabulary(self, name: str, terms: tuple[str, ...]) -> RowGroup:
        sentences = [self.draw_sentence(terms, number) for number in range(_TEXT_ROWS)]
        texts = [*_ODD_TEXTS, *sentences]
        column = _as_series(texts, self.example[name].dtype)
        table = self.draw_rows(len(texts)).assign(**{name: column})
        return RowGroup("vocabulary", Batch(table), alone=True)

    def changed(self, column_change: _ColumnChange) -> Iterator[RowGroup]:
        """Yield a table in which each row has one changed column, unless no column
        fits.
        """
        count = column_change.row_count
        names = self.fitting_columns(column_change.fits, count)
        if names:
            table = self.change_one_column(dict.fromkeys(names, count), column_change.change)
            yield RowGroup(
                column_change.source,
                Batch(table),
                block=count,
                columns=tuple(map(str, names)),
                compared=column_change.compared,
            )

    def unseen_categories(self) -> Iterator[RowGroup]:
        """Yield a table per categorical column, with an unknown category in each row:
        XGBoost refuses such a table.
        """
        names = self.fitting_columns(
            lambda series: isinstance(series.dtype, pd.CategoricalDtype), _UNSEEN_ROWS
        )
        for name in names:
            table = self.draw_rows(_UNSEEN_ROWS)
            unseen = unseen_category(table[name])
            if unseen is not None:
                table[name] = unseen
                yield RowGroup("unseen", Batch(table), block=_UNSEEN_ROWS, columns=(str(name),))

    def far(self) -> Iterator[RowGroup]:
        """Yield rows with large numbers in one column, and rows with large numbers in
        all columns.
        """
        names = self.fitting_columns(_is_number, _FAR_COLUMN_ROWS)
        if names:

            def multiply(column: pd.Series, _: pd.Series) -> pd.Series:
                # The first rows contain multiples of the column's largest number.
                reach = _reach(column)
                factors = np.resize(np.array(_FAR), len(column))
                values = np.clip(np.nan_to_num(_as_floats(column)), -reach, reach)
                is_first = np.arange(len(column)) < len(_FAR)
                return _as_series(factors * np.where(is_first, reach, values), column.dtype)

            table = self.change_one_column(dict.fromkeys(names, _FAR_COLUMN_ROWS), multiply)
            yield RowGroup("far", Batch(table))
            yield RowGroup("far together", Batch(self.far_together()), alone=True)

    def sentinels(self, farthest: float) -> Iterator[RowGroup]:
        """Yield rows with the numbers of `_SENTINELS` up to `farthest` in one column or
        in all.
        """
        values = [value for value in _SENTINELS if abs(value) <= farthest]
        names = self.fitting_columns(_is_number, len(values))
        if not names:
            return
        for start in range(0, len(names), _SENTINEL_COLUMNS):
            row_counts = dict.fromkeys(names[start : start + _SENTINEL_COLUMNS], len(values))
            table = self.change_one_column(
                row_counts, lambda column, _: _as_series(values, column.dtype)
            )
            yield RowGroup("sentinels", Batch(table), may_tie=True)
        table = self.draw_rows(len(values))
        for name in self.example:
            if _is_number(table[name]):
                table[name] = _as_series(values, table[name].dtype)
        yield RowGroup("sentinels together", Batch(table), may_tie=True)

    def at_categories(self, learned: Mapping[str, tuple[Category, ...]]) -> Iterator[RowGroup]:
        """Yield rows in which one column contains a learned category, or a value that
        is similar to a category. `learned` are the categories by column.
        """
        names = self.fitting_columns(lambda series: series.name in learned, _UNSEEN_ROWS)
        all_rows = min(_ALL_CATEGORY_ROWS, _CHANGED_VALUES // self.example.shape[1])
        rows_per_column = all_rows // max(len(names), 1)
        category_limit = min(max(rows_per_column, _UNSEEN_ROWS), _CATEGORY_ROWS)
        if learned and category_limit < _CATEGORY_ROWS:  # In a wide table, set all columns at once.
            yield self.all_categories(learned)
        for source, values_of in (("categories", list), ("near categories", _similar_values)):
            values = {name: values_of(learned[name]) for name in names}
            changed = self.category_columns(values, category_limit, _UNSEEN_ROWS)
            if changed:
                yield self.one_category(source, changed)

    def all_categories(self, learned: Mapping[str, tuple[Category, ...]]) -> RowGroup:
        """Return rows in which all columns contain learned categories."""
        table = self.draw_rows(_CATEGORY_ROWS)
        columns = self.category_columns(learned, _CATEGORY_ROWS, _CATEGORY_ROWS)
        for name, column in columns.items():
            table[name] = column
        return RowGroup("categories together", Batch(table), block=_UNSEEN_ROWS)

    def one_category(self, source: str, changed: Mapping[Any, pd.Series]) -> RowGroup:
        """Return rows of which each has one changed column, in blocks of rows with the
        same column. `changed` are the new values by column.
        """
        row_counts = {name: len(series) for name, series in changed.items()}
        columns: list[str] = []
        for name, count in row_counts.items():
            columns += [str(name)] * (count // _UNSEEN_ROWS)
        table = self.change_one_column(row_counts, lambda _, example: changed[example.name])
        return RowGroup(source, Batch(table), block=_UNSEEN_ROWS, columns=tuple(columns))

    def category_columns(
        self, values: Mapping[str, Sequence[Category]], limit: int, block: int
    ) -> dict[Any, pd.Series]:
        """Return random categories by column. Columns whose type excludes the
        categories are left out.

        Args:
            values: the categories of each column.
            limit: the maximum number of categories per column.
            block: the categories are repeated to fill whole blocks of so many rows.
        """
        columns = {}
        for name, categories in values.items():
            drawn = self.draw_categories(name, categories, limit)
            block_count = -(-len(drawn) // block)
            repeated = list(islice(cycle(drawn), block_count * block))
            with contextlib.suppress(TypeError, ValueError):
                columns[name] = _as_series(repeated, self.example[name].dtype)
        return {name: series for name, series in columns.items() if len(series)}

    def draw_categories(self, name: str, values: Sequence[Category], limit: int) -> list[Category]:
        """Return at most `limit` random values that the column's type allows."""
        dtype = self.example[name].dtype
        # A value outside the categories would become missing, and integers cannot be
        # missing.
        if isinstance(dtype, pd.CategoricalDtype) and column_type(self.example[name]) != "string":
            values = [value for value in values if value in dtype.categories]
        return [values[position] for position in self.random.permutation(len(values))[:limit]]

    def change_one_column(self, row_counts: Mapping[Any, int], change: _Change) -> pd.DataFrame:
        """Return one table in which each row has one changed column: a table per column
        would take quadratic time. `row_counts` are the changed rows per column.
        """
        table = self.draw_rows(sum(row_counts.values()))
        start = 0
        for name, count in row_counts.items():
            column = table[name]
            end = start + count
            changed = change(column.iloc[start:end].reset_index(drop=True), self.example[name])
            parts = [column.iloc[:start], changed, column.iloc[end:]]
            table[name] = pd.concat([part for part in parts if len(part)], ignore_index=True)
            start = end
        return table

    def draw_rows(self, count: int) -> pd.DataFrame:
        positions = self.random.integers(0, len(self.example), count)
        return self.example.iloc[positions].reset_index(drop=True)

    def fitting_columns(self, fits: Callable[[pd.Series], bool], rows_per_column: int) -> list[str]:
        """Return the columns that fit, in order. A wide table is sampled, because each
        column adds `rows_per_column` rows.
        """
        names = [name for name in self.example.columns if fits(self.example[name])]
        column_values = rows_per_column * self.example.shape[1]
        limit = min(max(_CHANGED_VALUES // column_values, 1), _CHANGED_COLUMNS)
        if len(names) <= limit:
            return names
        positions = np.sort(self.random.choice(len(names), limit, replace=False))
        return [names[position] for position in positions]

    def columns(
        self, source: str, count: int, draw: Callable[[pd.Series, int], pd.Series]
    ) -> RowGroup:
        """Draw each column independently, which yields new combinations of values."""
        drawn = {name: draw(self.example[name], count) for name in self.example.columns}
        return RowGroup(source, Batch(pd.DataFrame(drawn)))

    def draw_observed(self, series: pd.Series, count: int) -> pd.Series:
        positions = self.random.integers(0, len(series), count)
        return series.iloc[positions].reset_index(drop=True)

    def draw_in_range(self, series: pd.Series, count: int) -> pd.Series:
        """Draw between the smallest and the largest value, or around a constant. For
        codes, draw observed values.
        """
        if is_float_dtype(series.dtype) and series.nunique() == 1:
            constant = float(series.dropna().iloc[0])
            reach = _reach(series)
            if abs(constant) <= reach:  # Infinite and very large constants are excluded.
                drawn = self.random.uniform(constant - reach, constant + reach, count)
                return pd.Series(drawn).astype(series.dtype)
        if not _is_number(series) or series.nunique() <= _CODES:
            return self.draw_observed(series, count)
        if is_integer_dtype(series.dtype):
            return self.draw_integers(series, count)
        low, high = value_range(_as_floats(series), np.nan)
        # Halves avoid an overflow of the range.
        drawn = 2 * self.random.uniform(low / 2, high / 2, count)
        return pd.Series(drawn).astype(series.dtype)

    def draw_integers(self, series: pd.Series, count: int) -> pd.Series:
        """Draw between the smallest and the largest integer of the column."""
        smallest = int(series.min())
        largest = int(series.max())
        # The largest numbers of a column of uint64 exceed int64.
        dtype = np.int64 if smallest < 0 else np.uint64
        drawn = self.random.integers(smallest, largest, count, dtype=dtype, endpoint=True)
        return pd.Series(drawn).astype(series.dtype)

    def draw_sentence(self, terms: tuple[str, ...], number: int) -> str:
        """Return a text of random terms, one of which is changed, for example its case
        or its adjacent characters. `number` selects the change.
        """
        word_count = self.random.integers(1, 6)
        positions = self.random.integers(0, len(terms), word_count)
        words = [terms[position] for position in positions]
        changed = self.random.integers(0, len(words))
        spoil = _SPOILING[number % len(_SPOILING)]
        words[changed] = spoil(words[changed])
        separator = str(self.random.choice(_SEPARATORS))
        return separator.join(words)

    def at_edges(self, edges: _Columns) -> pd.DataFrame:
        """Return rows in which about half of the numbers of each column with edges are
        at or next to an edge.
        """
        table = self.draw_rows(_THRESHOLD_ROWS)
        for name, values in edges.items():
            series = table[name]
            numbers = values[np.abs(values) < np.finfo(np.float32).max]
            if not _is_number(series) or not len(numbers):
                continue
            moved = self.draw_near_edges(numbers.astype(np.float64), series.dtype)
            is_kept = self.random.random(len(moved)) < 0.5
            mixed = pd.Series(np.where(is_kept, series, moved))
            table[name] = mixed.astype(self.example[name].dtype)
        return table

    def draw_near_edges(self, edges: Array, dtype: Any) -> Array:
        """Return numbers at one of the edges, at its 32-bit rounding, halfway between
        the two, or one float away; for an integer dtype, the integers around an edge.
        """
        drawn = self.random.choice(edges, _THRESHOLD_ROWS)
        if is_integer_dtype(dtype):
            return np.asarray(np.floor(drawn) + self.random.integers(0, 2, len(drawn)))
        # Numbers that may be rounded to an edge are next to it.
        single = drawn.astype(np.float32)
        candidates = [drawn, single, drawn / 2 + single / 2]
        for edge, end in product((drawn, single), (np.inf, -np.inf)):
            candidates.append(np.nextafter(edge, edge.dtype.type(end)))
        choices = self.random.integers(0, len(candidates), len(drawn))
        return np.asarray(np.choose(choices, candidates))

    def training_rows(self, learned: _Columns, is_halfway: bool = False) -> pd.DataFrame:
        """Return training rows of the model or, if `is_halfway`, midpoints of two
        training rows.
        """
        table = self.draw_rows(_LEARNED_ROWS)
        learned_count = len(next(iter(learned.values())))
        left, right = self.random.integers(0, learned_count, (2, _LEARNED_ROWS))
        for name, values in learned.items():
            if _is_number(self.example[name]):
                moved = values[left]
                if is_halfway:
                    moved = moved / 2 + values[right] / 2
                table[name] = _as_series(moved, self.example[name].dtype)
        return table

    def far_together(self) -> pd.DataFrame:
        """Multiply all numbers of a row by the same factor. The factors alternate from
        row to row.
        """
        table = self.draw_rows(_FAR_ROWS)
        factors = np.resize(np.array(_FAR_TOGETHER), _FAR_ROWS)
        for name in self.example:
            column = self.example[name]
            if not _is_number(column):
                continue
            reach = _reach(column)
            numbers = np.clip(_as_floats(table[name]), -reach, reach)
            present = np.where(np.isnan(numbers), reach, numbers)
            table[name] = _as_series(present * factors, column.dtype)
        return table


def _similar_values(categories: Iterable[Category]) -> list[Category]:
    """Return values that are similar to the categories."""
    similar: list[Category] = []
    for value in categories:
        if isinstance(value, str):
            similar += [
                value.upper(),
                value.lower(),
                f"{value} ",
                f" {value}",
                f"{value}é",
                value[:-1],
            ]
        elif isinstance(value, float | np.floating) and np.isfinite(value):
            similar += [
                np.nextafter(value, -np.inf),
                np.nextafter(value, np.inf),
                value + 0.5,
                -value,
            ]
        elif isinstance(value, int | np.integer) and not isinstance(value, bool):
            similar += [value + 1, -value]
    return similar


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


def _reach(series: pd.Series) -> float:
    """Return a column's largest magnitude, limited to 1 to 1e30, so that products with
    `_FAR` fit into 32 bits.
    """
    low, high = value_range(_as_floats(series), np.nan)
    reach = max(abs(low), abs(high))
    return min(reach, 1e30) if reach > 1 else 1.0


def _as_floats(series: pd.Series) -> Array:
    return series.to_numpy(dtype=np.float64, na_value=np.nan)


def _as_series(values: Any, dtype: Any) -> pd.Series:
    """Return a column of the dtype. Values for integers are rounded and clipped to the
    bounds of the dtype.
    """
    if is_integer_dtype(dtype):
        numbers = np.nan_to_num(np.asarray(values, dtype=np.float64))
        plain_dtype = np.dtype(getattr(dtype, "numpy_dtype", dtype))
        return pd.Series(within_type(numbers, plain_dtype)).astype(dtype)
    if isinstance(dtype, pd.CategoricalDtype):  # Values outside the categories are missing.
        codes = dtype.categories.get_indexer(pd.Index(values))
        return pd.Series(pd.Categorical.from_codes(codes, dtype=dtype))
    # Without the dtype, pandas 3 would infer strings from objects, and NaN from None.
    inferred = object if is_object_dtype(dtype) else None
    return pd.Series(values, dtype=inferred).astype(dtype)


def _is_number(series: pd.Series) -> bool:
    return is_numeric_dtype(series.dtype) and not is_bool_dtype(series.dtype)


_CHANGES = (
    _ColumnChange(
        "missing",
        fits=lambda series: is_float_dtype(series.dtype) or column_type(series) == "string",
        row_count=_MISSING_ROWS,
        # The first row keeps its value: an original may refuse a column in which all
        # values are missing.
        change=lambda column, example: column.where(
            np.arange(len(column)) == 0, missing_value(example)
        ),
    ),
    _ColumnChange(
        "unseen",
        fits=lambda series: (
            column_type(series) == "string" and not isinstance(series.dtype, pd.CategoricalDtype)
        ),
        row_count=_UNSEEN_ROWS,
        change=lambda column, _: pd.Series("never seen", column.index).astype(column.dtype),
    ),
    _ColumnChange(
        "infinite",
        fits=lambda series: is_float_dtype(series.dtype),
        row_count=_INFINITE_ROWS,
        change=lambda column, _: _as_series([np.inf, -np.inf], column.dtype),
        compared=False,
    ),
)


def _tensor_rows(example: Batch, random: Generator, row_count: int) -> Iterator[RowGroup]:
    """Yield example rows with noise (a tenth of the range) and, in every second group,
    pure noise. Integers are drawn from the range.
    """
    group_size = min(_chunk_rows(example), 256)
    for position, start in enumerate(range(0, row_count, group_size)):
        count = min(group_size, row_count - start)
        rows = random.integers(0, len(example), count)
        keeps_rows = position % 2 == 0
        noisy = {
            name: _draw_noise(array, rows, random, keeps_rows)
            for name, array in example.tensors.items()
        }
        yield RowGroup("ranges", Batch(noisy))


def _draw_noise(array: Array, rows: Array, random: Generator, keeps_rows: bool) -> Array:
    """Return as many rows as there are positions in `rows`.

    Numbers are drawn from the range of the array or, if `keeps_rows`, floats are the
    rows with noise. Other values are the unchanged rows.
    """
    if array.dtype.kind not in "fiu":
        return np.asarray(array[rows])
    shape = (len(rows), *array.shape[1:])
    if array.dtype.kind in "iu":
        return random.integers(array.min(), array.max(), shape, dtype=array.dtype, endpoint=True)
    low, high = value_range(array, np.nan)
    if low == high:  # A constant example has no range.
        low = low - max(abs(low), 1.0)
        high = high + max(abs(high), 1.0)
    if keeps_rows:
        with np.errstate(over="ignore"):
            noise = random.normal(size=shape) * (high / 2 - low / 2) * 0.2
            return np.asarray(array[rows] + noise).astype(array.dtype)
    return (2 * random.uniform(low / 2, high / 2, shape)).astype(array.dtype)


def _far_tensors(example: Batch, random: Generator) -> Batch:
    """Return rows of the example in which all floats are multiplied by a factor of
    `_FAR_TOGETHER`, within the bounds of their type.
    """
    factors = np.resize(np.array(_FAR_TOGETHER), min(_FAR_ROWS, _chunk_rows(example)))
    rows = example.take(random.integers(0, len(example), len(factors)))
    tensors = dict(rows.tensors)
    for name, array in tensors.items():
        if array.dtype.kind == "f":
            column = factors.reshape(-1, *[1] * (array.ndim - 1))
            with np.errstate(over="ignore", invalid="ignore"):
                moved = array.astype(np.float64) * column
            bounds = np.finfo(array.dtype)
            tensors[name] = np.clip(moved, bounds.min, bounds.max).astype(array.dtype)
    return Batch(tensors)


def _other_sizes(example: Batch, sizes: _FreeAxes, random: Generator) -> Iterator[RowGroup]:
    """Yield rows with other sizes of the free axes, truncated or repeated. A symbol has
    one size in all tensors.
    """
    single_axes: Mapping[int, str] = {}
    if len(sizes) == 1:  # A single tensor may be unnamed.
        [single_axes] = sizes.values()
    free_axes = {name: sizes.get(name, single_axes) for name in example.tensors}
    largest_sizes = {}
    for name, axes in free_axes.items():
        for axis, symbol in axes.items():
            largest_sizes[symbol] = 2 * example.tensors[name].shape[axis]
    if not largest_sizes:
        return
    for _ in range(_OTHER_SIZES):
        positions = random.integers(0, len(example), _OTHER_SIZE_ROWS)
        indices = {
            symbol: np.arange(random.integers(1, largest, endpoint=True))
            for symbol, largest in largest_sizes.items()
        }
        changed = dict(example.take(positions).tensors)
        for name, axes in free_axes.items():
            for axis, symbol in axes.items():
                changed[name] = changed[name].take(indices[symbol], axis, mode="wrap")
        yield RowGroup("other sizes", Batch(changed))
