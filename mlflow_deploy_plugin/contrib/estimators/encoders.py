"""Convert the encoders of category_encoders, and skrub's vectorizers, to tables of
numbers per category.

Each number depends on one column, so the fitted encoder is called for each known
category, for a missing value, and for an unknown category.
"""

import warnings
from collections.abc import Hashable, Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer

from mlflow_deploy_plugin.core.errors import ConversionError
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.converted import Category
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import CategoryTables

_NUMBERS = [0.0, 1.0, -7.5, 1e9]
"""The test values for a column without categories, which the encoder must not change.
"""
_UNKNOWN = "⟨unknown⟩"
_REFUSED = -1.0
"""The number for a category that the encoder refuses, as in the graphs of
scikit-learn's encoders.
"""
_MOST_NUMBERS = 20_000_000


def stand_in(encoder: Estimator) -> CategoryTables | ColumnTransformer | None:
    """Return the tables of an encoder, or None without categories, and for a
    TableVectorizer that reads dates or free text. Raises the errors of `_as_tables`.
    """
    if type(encoder).__module__.startswith("category_encoders."):
        mapping = getattr(getattr(encoder, "ordinal_encoder", encoder), "mapping", None) or {}
        if isinstance(mapping, list):
            mapping = {entry["col"]: entry["mapping"] for entry in mapping}
        learned = {name: getattr(values, "index", values) for name, values in mapping.items()}
        return _as_tables(encoder, learned)
    steps = getattr(encoder, "transformers_", {})
    learned = {
        name: step.categories_[0] for name, step in steps.items() if hasattr(step, "categories_")
    }
    kinds = (type(step).__name__ for name, step in steps.items() if name not in learned)
    if all(other == "PassThrough" for other in kinds):
        return _as_tables(encoder, learned)
    return None


def _as_tables(
    encoder: Estimator, learned: Mapping[Hashable, Iterable[Category]]
) -> CategoryTables | ColumnTransformer | None:
    """Return a table per column, or a step per column if some columns have no
    categories, or None without categories.

    Args:
        encoder: the fitted encoder.
        learned: the known categories per column.

    Raises:
        ConversionError: a number depends on several columns, a column without
            categories changes, or there are more than `_MOST_NUMBERS` numbers.
    """
    categories = {}
    for name, values in learned.items():
        present = [value for value in values if not pd.isna(value)]
        if present:
            categories[str(name)] = present
    if not categories:
        return None
    names = [str(name) for name in encoder.feature_names_in_]
    usual_row = pd.DataFrame({name: categories.get(name, [0.0])[:1] for name in names})
    probe = _Probe(encoder, usual_row, max(map(len, categories.values())))
    steps = _steps(probe, names, categories)
    step_names = [name for _, _, [name] in steps]
    if step_names == list(categories) == names:
        # A single step for all columns can be nested in another ColumnTransformer.
        return CategoryTables(
            [step.categories_[0] for _, step, _ in steps], [step.tables[0] for _, step, _ in steps]
        )
    return ColumnTransformer(steps).fit(usual_row)


def _steps(
    probe: "_Probe", names: list[str], categories: Mapping[str, list[Any]]
) -> list[tuple[str, Estimator, list[str]]]:
    """Return a step (its name, the step, its column) for each run of numbers that
    depend on the same column. Raises ConversionError if a number depends on several
    columns.
    """
    tables: dict[str, _Table] = {}
    # Constant numbers may be in any table.
    default_source = names.index(next(iter(categories)))
    source = np.full(probe.usual.shape[1], default_source)
    is_taken = np.zeros(len(source), bool)
    for position, name in enumerate(names):
        if name in categories:
            tables[name] = probe.category_column(name, categories[name])
            depends = tables[name].depends
        else:
            depends = probe.number_column(name)
        if (is_taken & depends).any():
            raise probe.no_table(name)
        source[depends] = position
        is_taken |= depends

    steps: list[tuple[str, Estimator, list[str]]] = []
    for position, numbers in groupby(range(len(source)), key=lambda number: int(source[number])):
        name = names[position]
        step = "passthrough"
        if name in tables:
            table = tables[name]
            step = CategoryTables([table.categories], [table.numbers[:, [*numbers]]])
        steps.append((str(len(steps)), step, [name]))
    return steps


class _Table(NamedTuple):
    """The numbers of a column's categories.

    Attributes:
        numbers: the numbers per category, [categories + 1, numbers]; the last row is
            for unknown categories.
        depends: True for the numbers that vary, [numbers].
    """

    categories: Array
    numbers: Array
    depends: Array


class _Probe:
    """A probe, which calls a fitted encoder with a typical row in which one column is
    changed.
    """

    def __init__(self, encoder: Estimator, usual_row: pd.DataFrame, most_categories: int) -> None:
        self._encoder = encoder
        self._usual_row = usual_row
        self._kind = type(encoder).__name__
        first = usual_row.columns[0]
        usual = self._numbers(first, usual_row[first].tolist())
        if usual is None:
            raise ConversionError(f"{self._kind} returns no numbers for its known categories")
        if usual.size * most_categories > _MOST_NUMBERS:
            raise ConversionError(
                f"{self._kind} returns more than {_MOST_NUMBERS:,} numbers for its categories"
            )
        self.usual = usual

    def category_column(self, name: str, learned: list[Any]) -> _Table:
        """Return the numbers of the learned categories, of missing values if the
        encoder accepts them, and of an unknown category.
        """
        categories = [*learned, np.nan]
        numbers = self._numbers(name, categories)
        if numbers is None:  # The encoder refuses missing values.
            categories = learned
            numbers = self._learned_numbers(name, learned)
        dtype: type = object
        unknown: Category = _UNKNOWN
        if not isinstance(learned[0], str):
            dtype = np.float64
            unknown = max(learned) + 1
        numbers_of_unknown = self._numbers(name, [unknown])
        if numbers_of_unknown is None:  # The encoder refuses unknown categories.
            numbers_of_unknown = np.where(self._differ(numbers), _REFUSED, self.usual)
        all_numbers = np.concatenate([numbers, numbers_of_unknown])
        return _Table(np.array(categories, dtype), all_numbers, self._differ(all_numbers))

    def number_column(self, name: str) -> Array:
        """Return a mask of the outputs that contain the column. Raises ConversionError
        if the encoder changes it.
        """
        numbers = self._learned_numbers(name, _NUMBERS)
        depends = self._differ(numbers)
        if (numbers[:, depends] != np.c_[_NUMBERS]).any():
            raise self.no_table(name)
        return depends

    def no_table(self, name: str) -> ConversionError:
        return ConversionError(f"{self._kind} does not map {name!r} to a table of its categories")

    def _differ(self, numbers: Array) -> Array:
        """Return a mask of the output columns that differ from the typical row in any
        row.
        """
        are_missing = np.isnan(numbers) & np.isnan(self.usual)
        return np.asarray(~((numbers == self.usual) | are_missing).all(axis=0))

    def _learned_numbers(self, name: str, values: list[Any]) -> Array:
        """Return the numbers of values that the encoder must accept. Raises
        ConversionError if it refuses one.
        """
        numbers = self._numbers(name, values)
        if numbers is None:
            raise ConversionError(f"{self._kind} refuses known values of {name!r}")
        return numbers

    def _numbers(self, name: str, values: list[Any]) -> Array | None:
        """Return the numbers of typical rows with `values` in one column, or None if
        the encoder refuses a value.
        """
        usual_rows = self._usual_row.loc[[0] * len(values)].reset_index(drop=True)
        rows = usual_rows.assign(**{name: values})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return np.asarray(self._encoder.transform(rows), np.float64)
        except Exception:  # noqa: BLE001 - the libraries may raise any error.
            return None
