"""The encoders of category_encoders, feature-engine and skrub, as tables of what they make of each category.

They have some thirty formulas, and one form: each number depends on one column. So the fitted encoder is asked for the
numbers of each category that it has learned, of a missing one and of an unknown one, and the graph looks these up. The
proof then compares the model's answers on rows that were not asked here.
"""

import warnings
from copy import deepcopy
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer

from mlflow_deploy_plugin.errors import ConversionError
from mlflow_deploy_plugin.flavor.convert.sklearn.additive import as_additive, is_additive
from mlflow_deploy_plugin.flavor.convert.sklearn.engineered import as_column_steps
from mlflow_deploy_plugin.flavor.convert.sklearn.estimators import CategoryTables, sub_estimators, thawed
from mlflow_deploy_plugin.runtime import Array

_NUMBERS = [0.0, 1.0, -7.5, 1e9]
"""The values by which a column without categories is tried: it has to stay as it is."""
_UNKNOWN = "⟨unknown⟩"
_REFUSED = -1.0
"""The numbers of a category that the encoder refuses, as in the graphs of scikit-learn's encoders."""
_MOST_NUMBERS = 20_000_000


def with_category_tables(fitted: Any) -> Any:
    """Return the estimator, or a copy with tables in the place of the encoders and additive models of other libraries.

    Raises:
        ConversionError: an encoder makes one number of several columns, changes a column without categories, or has
            more than `_MOST_NUMBERS`; or as `as_additive`.
    """
    fitted = thawed(fitted)
    tables: dict[int, Any] = {
        id(part): steps for part in sub_estimators(fitted) if (steps := as_column_steps(part)) is not None
    }
    found = [part for part in sub_estimators(fitted) if id(part) not in tables and _learned(part)]
    within = {id(getattr(part, "ordinal_encoder", None)) for part in found}
    tables |= {id(part): _as_tables(part) for part in found if id(part) not in within}
    tables |= {id(part): as_additive(part) for part in sub_estimators(fitted) if is_additive(part)}
    return deepcopy(fitted, tables) if tables else fitted


def _learned(part: Any) -> dict[str, list[Any]]:
    """Return the categories that an encoder has learned, by their column; none for any other estimator."""
    module = type(part).__module__
    learned: Any = {}
    if module.startswith("category_encoders."):
        learned = getattr(getattr(part, "ordinal_encoder", part), "mapping", None) or {}
    elif module.startswith("feature_engine.encoding."):
        learned = getattr(part, "encoder_dict_", {})
    elif module.startswith("skrub."):
        steps = getattr(part, "transformers_", {})
        learned = {name: step.categories_[0] for name, step in steps.items() if hasattr(step, "categories_")}
        if any(type(step).__name__ != "PassThrough" for name, step in steps.items() if name not in learned):
            learned = {}  # dates, and texts of many words
    if isinstance(learned, list):
        learned = {one["col"]: one["mapping"] for one in learned}
    known = {
        str(name): values.index if isinstance(values, pd.Series | pd.DataFrame) else values
        for name, values in learned.items()
    }
    present = {name: [value for value in values if not pd.isna(value)] for name, values in known.items()}
    return {name: values for name, values in present.items() if values}


def _as_tables(encoder: Any) -> CategoryTables | ColumnTransformer:
    """Return a table for each column, or a step for each where some columns stay as they are."""
    learned = _learned(encoder)
    names = [str(name) for name in encoder.feature_names_in_]
    row = pd.DataFrame({name: learned.get(name, [0.0])[:1] for name in names})
    first = _answers(encoder, row, names[0], row[names[0]].tolist())
    if first is None:
        raise ConversionError(f"{type(encoder).__name__} makes no numbers of the categories that it has learned")
    if first.size * max(map(len, learned.values())) > _MOST_NUMBERS:
        raise ConversionError(f"{type(encoder).__name__} makes more than {_MOST_NUMBERS:,} numbers of its categories")
    source = np.full(first.shape[1], -1)  # the position of the column that each number depends on
    categories, tables = {}, {}
    for position, name in enumerate(names):
        asked, unknown = _NUMBERS, None
        if known := learned.get(name):
            asked = known if _answers(encoder, row, name, [np.nan]) is None else [*known, np.nan]
            categories[name] = np.array(asked, object if isinstance(known[0], str) else np.float64)
            unknown = _answers(encoder, row, name, [_UNKNOWN if isinstance(known[0], str) else max(known) + 1])
        numbers = _answers(encoder, row, name, asked)
        if numbers is None:
            raise ConversionError(f"{type(encoder).__name__} refuses values of {name!r} that it has learned")
        if known:
            numbers = np.concatenate([numbers, first if unknown is None else unknown])
        depends = ~((numbers == first) | (np.isnan(numbers) & np.isnan(first))).all(axis=0)
        is_changed = not known and (numbers[:, depends] != np.c_[_NUMBERS]).any()
        if is_changed or (source[depends] >= 0).any():
            raise ConversionError(f"{type(encoder).__name__} makes of {name!r} what is no table of its categories")
        if known and unknown is None:
            numbers[-1, depends] = _REFUSED
        source[depends], tables[name] = position, numbers
    source[source < 0] = names.index(next(iter(learned)))  # constants, as an intercept

    steps: list[tuple[str, Any, list[str]]] = []
    for position, places in groupby(range(len(source)), key=lambda place: int(source[place])):
        name, step = names[position], "passthrough"
        if name in learned:
            step = CategoryTables([categories[name]], [tables[name][:, list(places)]])
        steps.append((str(len(steps)), step, [name]))
    if [name for _, _, [name] in steps] == list(learned) == names:  # a step of a ColumnTransformer can be one
        return CategoryTables(list(categories.values()), [step.tables[0] for _, step, _ in steps])
    return ColumnTransformer(steps).fit(row)


def _answers(encoder: Any, row: pd.DataFrame, name: str, values: list[Any]) -> Array | None:
    """Return the numbers of rows that have these values in one column; None if the encoder refuses one."""
    rows = row.loc[[0] * len(values)].reset_index(drop=True).assign(**{name: values})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(encoder.transform(rows), np.float64)
    except Exception:  # noqa: BLE001 - whatever the library raises
        return None
