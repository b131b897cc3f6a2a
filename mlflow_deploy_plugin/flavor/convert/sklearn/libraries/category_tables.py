"""The encoders of category_encoders, feature-engine and skrub, as tables of their numbers for each category.

Each number depends on one column, so the fitted encoder is asked for the numbers of each category that it has learned,
of a missing one, and of an unknown one.
"""

import warnings
from collections.abc import Hashable, Iterable, Mapping
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer

from mlflow_deploy_plugin.errors import ConversionError
from mlflow_deploy_plugin.flavor.convert.converted import Category
from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import Estimator
from mlflow_deploy_plugin.flavor.convert.sklearn.stand_ins import CategoryTables
from mlflow_deploy_plugin.runtime.feeds import Array

_NUMBERS = [0.0, 1.0, -7.5, 1e9]
"""The values that a column without categories is tried with: each has to stay as it is."""
_UNKNOWN = "⟨unknown⟩"
_REFUSED = -1.0
"""The number for a category that the encoder refuses, as in the graphs of scikit-learn's encoders."""
_MOST_NUMBERS = 20_000_000


def of_category_encoders(encoder: Estimator) -> CategoryTables | ColumnTransformer | None:
    mapping = getattr(getattr(encoder, "ordinal_encoder", encoder), "mapping", None) or {}
    if isinstance(mapping, list):
        mapping = {entry["col"]: entry["mapping"] for entry in mapping}
    learned = {name: getattr(values, "index", values) for name, values in mapping.items()}
    return as_tables(encoder, learned)


def of_skrub(vectorizer: Estimator) -> CategoryTables | ColumnTransformer | None:
    """Return the tables of a TableVectorizer; None if it reads dates, or texts of many words."""
    steps = getattr(vectorizer, "transformers_", {})
    learned = {name: step.categories_[0] for name, step in steps.items() if hasattr(step, "categories_")}
    others = (type(step).__name__ for name, step in steps.items() if name not in learned)
    return as_tables(vectorizer, learned) if all(other == "PassThrough" for other in others) else None


def as_tables(
    encoder: Estimator, learned: Mapping[Hashable, Iterable[Category]]
) -> CategoryTables | ColumnTransformer | None:
    """Return a table for each column, or a step for each if some have no categories; None without any category.

    `learned` are the categories of each column. Raises ConversionError if a number depends on several columns, if a
    column without categories changes, or if there are more than `_MOST_NUMBERS`.
    """
    present = {str(name): [value for value in values if not pd.isna(value)] for name, values in learned.items()}
    categories = {name: values for name, values in present.items() if values}
    if not categories:
        return None
    names = [str(name) for name in encoder.feature_names_in_]
    usual_row = pd.DataFrame({name: categories.get(name, [0.0])[:1] for name in names})
    probe = _Probe(encoder, usual_row, max(map(len, categories.values())))

    source = np.full(probe.usual.shape[1], names.index(next(iter(categories))))  # any table can have a constant
    tables: dict[str, tuple[Array, Array]] = {}
    is_taken = np.zeros(len(source), bool)
    for position, name in enumerate(names):
        if name in categories:
            known, table, depends = probe.category_column(name, categories[name])
            tables[name] = known, table
        else:
            depends = probe.number_column(name)
        if (is_taken & depends).any():
            raise probe.no_table(name)
        source[depends] = position
        is_taken |= depends

    steps: list[tuple[str, Estimator, list[str]]] = []
    for position, numbers in groupby(range(len(source)), key=lambda number: int(source[number])):
        name, step = names[position], "passthrough"
        if name in tables:
            known, table = tables[name]
            step = CategoryTables([known], [table[:, list(numbers)]])
        steps.append((str(len(steps)), step, [name]))
    if [name for _, _, [name] in steps] == list(categories) == names:
        # one step for all columns, which can be a step of another ColumnTransformer
        return CategoryTables([tables[name][0] for name in names], [step.tables[0] for _, step, _ in steps])
    return ColumnTransformer(steps).fit(usual_row)


class _Probe:
    """A fitted encoder that is asked for its numbers of a usual row with other values in one column at a time."""

    def __init__(self, encoder: Estimator, usual_row: pd.DataFrame, most_categories: int) -> None:
        self._encoder, self._usual_row = encoder, usual_row
        self._kind = type(encoder).__name__
        first = usual_row.columns[0]
        usual = self._numbers(first, usual_row[first].tolist())
        if usual is None:
            raise ConversionError(f"{self._kind} makes no numbers of the categories that it has learned")
        if usual.size * most_categories > _MOST_NUMBERS:
            raise ConversionError(f"{self._kind} makes more than {_MOST_NUMBERS:,} numbers of its categories")
        self.usual = usual

    def category_column(self, name: str, known: list[Any]) -> tuple[Array, Array, Array]:
        """Return the categories, their numbers with an unknown one's at the end, and which of the numbers differ."""
        is_text = isinstance(known[0], str)
        categories = [*known, np.nan]
        numbers = self._numbers(name, categories)
        if numbers is None:  # the encoder refuses missing values
            categories = known
            numbers = self._learned_numbers(name, known)
        unknown = self._numbers(name, [_UNKNOWN if is_text else max(known) + 1])
        depends = self._differ(numbers if unknown is None else np.concatenate([numbers, unknown]))
        last = np.where(depends, _REFUSED, self.usual) if unknown is None else unknown
        return np.array(categories, object if is_text else np.float64), np.concatenate([numbers, last]), depends

    def number_column(self, name: str) -> Array:
        """Return which of the encoder's numbers this column is; it has to stay as it is."""
        numbers = self._learned_numbers(name, _NUMBERS)
        depends = self._differ(numbers)
        if (numbers[:, depends] != np.c_[_NUMBERS]).any():
            raise self.no_table(name)
        return depends

    def no_table(self, name: str) -> ConversionError:
        return ConversionError(f"{self._kind} makes of {name!r} what is no table of its categories")

    def _differ(self, numbers: Array) -> Array:
        """Return True for each column of the numbers that is not the usual number in all rows."""
        return np.asarray(~((numbers == self.usual) | (np.isnan(numbers) & np.isnan(self.usual))).all(axis=0))

    def _learned_numbers(self, name: str, values: list[Any]) -> Array:
        numbers = self._numbers(name, values)
        if numbers is None:
            raise ConversionError(f"{self._kind} refuses values of {name!r} that it has learned")
        return numbers

    def _numbers(self, name: str, values: list[Any]) -> Array | None:
        """Return the numbers of usual rows with these values in one column; None if the encoder refuses one."""
        rows = self._usual_row.loc[[0] * len(values)].reset_index(drop=True).assign(**{name: values})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return np.asarray(self._encoder.transform(rows), np.float64)
        except Exception:  # noqa: BLE001 - the libraries raise anything
            return None
