"""Formulas of steps with string columns: category encoders and SimpleImputer.

skl2onnx's encoders assign missing strings a separate number (OrdinalEncoder), and fail
for fractions and, with grouped categories, for unseen values (OneHotEncoder). Its
SimpleImputer fails for strings, indicators and 64-bit floats.
"""

from itertools import compress

import numpy as np
import pandas as pd
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.converted import Category
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import MISSING, marks_nan
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.rows import Formula, Rows
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import (
    SAMPLE_ROWS,
    TracedArray,
    take,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import CategoryTables

_NO_COLUMN = -1.0
"""The code of a dropped or unknown category, which has no column."""


def ordinals(model: OrdinalEncoder, rows: Rows) -> TracedArray:
    """Return the code of each row's category per column. The codes of missing and
    unknown categories may be NaN. Raises NotImplementedError for infrequent categories.
    """
    if getattr(model, "_infrequent_enabled", False):
        raise NotImplementedError("OrdinalEncoder with infrequent categories")
    if model.handle_unknown == "use_encoded_value":
        unknown = float(model.unknown_value)
    else:
        unknown = _NO_COLUMN
    parts = []
    for position, (column, categories) in enumerate(
        zip(rows.columns(), model.categories_, strict=True)
    ):
        codes = [float(code) for code in range(len(categories))]
        if position in model._missing_indices:  # NaN is missing, but None is a category.
            codes[model._missing_indices[position]] = float(model.encoded_missing_value)
        parts.append(encoded(column, categories, codes, unknown))
    return np.hstack(parts)


def target_means(model: TargetEncoder, rows: Rows) -> TracedArray:
    """Return the target mean (per class) of each row's category. Unknown categories get
    the mean of all rows.
    """
    columns = rows.columns()
    means = np.atleast_1d(model.target_mean_)
    parts = []
    for index, encoding in enumerate(model.encodings_):
        position, target = divmod(index, len(means))
        parts.append(
            encoded(
                columns[position],
                model.categories_[position],
                encoding.tolist(),
                float(means[target]),
            )
        )
    return np.hstack(parts)


def one_hot(model: OneHotEncoder, rows: Rows) -> TracedArray:
    """Return 1 in the column of each row's category, otherwise 0. Dropped and grouped
    categories have no column.
    """
    parts = []
    for position, (column, categories) in enumerate(
        zip(rows.columns(), model.categories_, strict=True)
    ):
        # A dropped category, and infrequent categories without a column, have the code
        # -1.
        codes = np.arange(len(categories))
        infrequent = -1
        if model._infrequent_enabled:
            groups = model._default_to_infrequent_mappings[position]
            if groups is not None:  # The last group contains the infrequent categories.
                codes = np.asarray(groups)
                infrequent = int(codes.max())
        dropped = None if model.drop_idx_ is None else model.drop_idx_[position]
        if dropped is not None:
            # The codes above the dropped code are moved down by one.
            dropped_code = codes[int(dropped)]
            codes = np.where(codes == dropped_code, -1, codes - (codes > dropped_code))
            if infrequent == dropped_code:
                infrequent = -1
            else:
                infrequent -= infrequent > dropped_code
        unknown = _NO_COLUMN
        if model.handle_unknown in ("infrequent_if_exist", "warn"):
            unknown = infrequent
        code = encoded(column, categories, codes.astype(float).tolist(), unknown)
        columns = np.arange(codes.max() + 1, dtype=np.float32)
        parts.append((code == columns).astype(np.float32))
    return np.hstack(parts)


def looked_up(model: CategoryTables, rows: Rows) -> TracedArray:
    """Return the numbers of each row's category from the table of its column. The last
    entry of a table is for unknown categories.
    """
    parts = []
    entries = zip(rows.columns(), model.categories_, model.tables, strict=True)
    for column, categories, table in entries:
        codes = [*map(float, range(len(categories)))]
        code = encoded(column, categories, codes, unknown=float(len(categories)))
        parts.append(take(table.astype(float), code.reshape(-1).astype(np.int64)))
    return np.hstack(parts)


def encoded(
    column: TracedArray, categories: Array, codes: list[float], unknown: float
) -> TracedArray:
    """Return the code of each row's category, [N, 1]: 32-bit floats, or 64-bit floats
    if 32 bits would change a code.

    Args:
        column: the column [N, 1] of strings, integers or floats.
        categories: the categories, of which some may be missing values.
        codes: the code of each category.
        unknown: the code of all other values.
    """
    table = np.array([*codes, unknown], float)
    if not np.array_equal(table.astype(np.float32), table, equal_nan=True):
        # LabelEncoder has no 64-bit floats, so it returns positions in a table.
        *positions, last = map(float, range(len(table)))
        code = encoded(column, categories, positions, last)
        return take(table[:, None], code.reshape(-1).astype(np.int64))
    is_gap = np.array([*map(is_missing, categories)], bool) & (column.dtype.kind != "O")
    keys = list(compress(categories, ~is_gap))
    values = list(compress(codes, ~is_gap))
    if column.dtype == np.float64:
        # LabelEncoder does not support 64-bit floats.
        equal = column == np.array(keys or [np.nan], float)
        code = equal.astype(np.float32) @ np.array(values or [0.0], np.float32)[:, None]
        code = np.where(np.any(equal, axis=1, keepdims=True), code, np.float32(unknown))
    else:
        attribute, convert = _KEYS[column.dtype.kind]
        code = column.emit(
            "LabelEncoder",
            [column],
            np.ones((SAMPLE_ROWS, 1), np.float32),
            **{attribute: [convert(key) for key in keys]},
            values_floats=values,
            default_float=float(unknown),
        )
    if column.dtype.kind == "i" or not is_gap.any():
        return code
    return np.where(np.isnan(column), np.float32(codes[is_gap.argmax()]), code)


_KEYS: dict[str, tuple[str, type]] = {
    "O": ("keys_strings", str),
    "i": ("keys_int64s", int),
    "f": ("keys_floats", float),
}
"""The attribute of LabelEncoder with the keys of an input type, and the type of the
keys.
"""


def is_missing(entry: Category) -> bool:
    return bool(pd.isna(entry)) or entry == MISSING


def imputed(model: SimpleImputer, rows: Rows) -> TracedArray:
    """Return the columns with filled gaps, in the dtype of the first column, and the
    missing indicators. Raises NotImplementedError for unsupported options.
    """
    x = rows.raw
    marked = model.indicator_.features_.tolist() if model.add_indicator else []
    if x.dtype.kind == "O":
        if marked:
            raise NotImplementedError(_UNSUPPORTED_IMPUTER)
        return np.where(x == np.array([MISSING], object), np.asarray(model.statistics_, object), x)
    if not marks_nan(model):
        raise NotImplementedError(_UNSUPPORTED_IMPUTER)
    if x.dtype.kind == "i":  # Integers have no gaps.
        return x
    filler = np.asarray(model.statistics_, x.dtype)
    if np.isnan(filler).any():
        raise NotImplementedError("SimpleImputer that dropped a column without any value")
    gaps = np.isnan(x)
    filled = np.where(gaps, filler, x)
    if marked:
        return np.hstack([filled, gaps[:, marked].astype(x.dtype)])
    return filled


_UNSUPPORTED_IMPUTER = (
    "SimpleImputer with missing_values other than NaN, or add_indicator for strings"
)
FORMULAS: dict[type, Formula] = {
    OrdinalEncoder: ordinals,
    TargetEncoder: target_means,
    OneHotEncoder: one_hot,
    CategoryTables: looked_up,
    SimpleImputer: imputed,
}
