"""The guard of an endpoint, which finds the rows of a request that are outside of the
training rows.

`log_model` saves the ranges of the training rows (`_Rows.ranges` in
`wrap/flavor/wrap.py`). Each column is judged separately.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from math import inf
from typing import Any

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidArtifact, OutOfRange
from mlflow_deploy_plugin.core.mlmodel import MALFORMED
from mlflow_deploy_plugin.serve.runtime.artifact import Input
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, as_table, sent_arrays
from mlflow_deploy_plugin.serve.runtime.model import Predictor
from mlflow_deploy_plugin.serve.runtime.values import short_repr

RANGES_FILE = "ranges.json"
"""The file with `columns` (by name, the minimum and maximum, or all texts) and
`complete` (the columns that had no missing values). A column that is not in `columns`
is not judged.
"""
_Columns = Mapping[str, Sequence[Any]]
_Check = Callable[[Array], dict[str, Array]]
"""A function of an array that returns the rows outside, [N] bool, by column; empty if
no row is outside.
"""


class Guard:
    """The ranges of the training rows of a version.

    If `refuses` is True, `check` raises OutOfRange. The constructor raises
    InvalidArtifact if the file of the ranges is malformed.
    """

    def __init__(self, predictor: Predictor, refuses: bool) -> None:
        self._schema = predictor.schema
        self._refuses = refuses
        self._checks: dict[str, _Check] = {}
        try:
            ranges = json.loads((predictor.artifact.folder / RANGES_FILE).read_bytes())
            self._columns: _Columns = ranges["columns"]
            for entry in self._schema.sent_inputs:
                compile_check = _text_check if entry.dtype == "str" else _number_check
                self._checks[entry.name] = compile_check(entry, self._columns, ranges["complete"])
        except (*MALFORMED, OverflowError) as error:
            raise InvalidArtifact(f"its file {RANGES_FILE} is malformed: {error}") from None

    def check(self, feeds: Feeds) -> Array | None:
        """Return the column `GUARD` of the rows, [N] objects; None if all rows are
        inside. Raises OutOfRange for the first value that the endpoint refuses.
        """
        outside: dict[str, Array] = {}
        for name, array in sent_arrays(feeds).items():
            if name in self._checks:
                outside |= self._checks[name](array)
        if not outside:
            return None
        if self._refuses:
            column, rows = next(iter(outside.items()))
            row = int(rows.argmax())
            value = short_repr(self._schema.to_columns(feeds)[column].tolist()[row])
            known = short_repr(self._columns[column])
            raise OutOfRange(
                f"column {column!r}, row {row}: {value} is outside of the training rows: {known}",
                column=column,
            )
        marks = np.column_stack([*outside.values()])
        return np.array([",".join(compress(outside, row)) for row in marks], object)


def _number_check(entry: Input, columns: _Columns, complete: Sequence[str]) -> _Check:
    """Return the check of an array of numbers."""
    # A number is compared in its own type: 0.1 in 32 bits is above 0.1, and float64
    # rounds whole numbers beyond 2^53.
    dtype = np.dtype(entry.dtype)
    unbounded: tuple[float, float] = (-inf, inf)
    if dtype.kind in "iu":
        unbounded = (np.iinfo(dtype).min, np.iinfo(dtype).max)
    else:
        dtype = np.result_type(dtype, np.float16)
    bounds = np.array([columns.get(name, unbounded) for name in entry.columns], dtype)
    lows, highs = bounds.T
    is_complete = np.array([name in complete for name in entry.columns])
    limits = [*zip(lows.tolist(), highs.tolist(), is_complete.tolist(), strict=True)]
    least, most, _ = limits[0]

    def check(array: Array) -> dict[str, Array]:
        # Python compares the numbers of a row faster than numpy.
        if array.size == 1 and least <= array.item() <= most:
            return {}
        if array.size == len(limits):
            for value, (low, high, needs_value) in zip(array.ravel().tolist(), limits, strict=True):
                if not low <= value <= high and (needs_value or value == value):
                    break
            else:
                return {}
        marks = (array < lows) | (array > highs) | (np.isnan(array) & is_complete)
        if not np.count_nonzero(marks):
            return {}
        table = zip(entry.columns, as_table(marks).T, strict=True)
        return {name: rows for name, rows in table if rows.any()}

    return check


def _text_check(entry: Input, columns: _Columns, complete: Sequence[str]) -> _Check:
    """Return the check of an array of texts."""
    inside = {}
    for position, name in enumerate(entry.columns):
        if name in columns:
            missing = () if name in complete else (entry.missing, None)
            inside[position] = name, frozenset([*columns[name], *missing])

    def check(array: Array) -> dict[str, Array]:
        outside = {}
        texts = as_table(array).T.tolist()
        for position, (name, known) in inside.items():
            if not known.issuperset(texts[position]):
                outside[name] = np.array([text not in known for text in texts[position]])
        return outside

    return check
