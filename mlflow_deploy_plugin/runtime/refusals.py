"""The values that the original of a model refuses, refused before the graph computes something of them.

scikit-learn raises an error for some missing or infinite numbers and unknown categories; an ONNX graph answers them.
The proof of parity finds these columns (`flavor/parity.py`), and the schema checks each request here. If a later step
of the original refuses a row, such as a logarithm of a negative number, the graph marks it in `REFUSED_ROWS`.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError, SchemaMismatch
from mlflow_deploy_plugin.messages import did_you_mean, join_names
from mlflow_deploy_plugin.runtime.artifact import Input, Refusals
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.values import numpy_dtype, short_repr, tensor_label

REFUSED_ROWS = "onnxserve_refused_rows"
"""The graph's output [N] that marks refused rows; its metadata has the reason under the same name."""


class CheckedColumn(NamedTuple):
    """A column of an array, or a tensor, for which `position` is None."""

    position: int | None
    name: str

    @property
    def label(self) -> str:
        return tensor_label(self.name) if self.position is None else f"column {self.name!r}"

    def values(self, array: Array) -> Array:
        return array if self.position is None or array.ndim == 1 else array[:, self.position]


class ValueCheck(NamedTuple):
    """The checks of one array of a request.

    Attributes:
        input: the name of an input of the graph, or of a block of sent numbers.
        complete / finite: the columns that refuse missing or infinite numbers.
        categories: (column, known values, the values as an error shows them).
    """

    input: str
    complete: list[CheckedColumn]
    finite: list[CheckedColumn]
    categories: Sequence[tuple[CheckedColumn, frozenset[object], list[str]]]


def compile_checks(refusals: Refusals, inputs: Iterable[Input], tensors: Mapping[str, str]) -> list[ValueCheck]:
    """Return the checks of the arrays of a request; `inputs` are the graph's or the blocks of sent numbers.

    `tensors` maps an input to the signature's tensor; it is empty for a signature of columns.
    """
    checks: list[ValueCheck] = []
    if not (refusals.missing or refusals.infinite or refusals.categories):
        return checks
    for entry in inputs:
        columns = [CheckedColumn(position, name) for position, name in enumerate(entry.columns)]
        categories = []
        for column in columns:
            known = refusals.categories.get(column.name, ())
            # an input of texts may hold the digits of numbers, as its encoder learned them: these are not compared
            if known and all(isinstance(value, str) == (entry.dtype == "str") for value in known):
                missing = [] if entry.missing is None else [entry.missing]
                shown = [*sorted(map(str, known)), *(["null"] if missing else [])]
                categories.append((column, frozenset([*known, *missing]), shown))
        numbers = columns or [CheckedColumn(None, tensors[entry.name])]
        if numpy_dtype(entry.dtype).kind != "f":
            numbers = []
        complete = [column for column in numbers if column.name in refusals.missing]
        finite = [column for column in numbers if column.name in refusals.infinite]
        if complete or finite or categories:
            checks.append(ValueCheck(entry.name, complete, finite, categories))
    return checks


def check_values(checks: Iterable[ValueCheck], arrays: Mapping[str, Array]) -> None:
    """Raise SchemaMismatch if a number is missing or infinite, or a value is not a category of its column."""
    for name, complete, finite, categories in checks:
        array = arrays[name]
        # the product is NaN or infinite if one number is; it takes half the time of `isfinite`, and warns of no
        # overflow. Beyond 10,000 numbers OpenBLAS wakes threads: 8 ms on busy cores, where `isfinite` takes 0.04
        if (complete or finite) and not (
            np.isfinite(array).all() if array.size > 10_000 else np.vdot(array, array) < inf
        ):
            _refuse_numbers(complete, np.isnan(array), "null or NaN; the model takes no missing value")
            _refuse_numbers(finite, np.isinf(array), "infinite; the model takes finite numbers")
        for column, known, shown in categories:
            values = column.values(array).tolist()
            if not known.issuperset(values):
                row, value = next((row, value) for row, value in enumerate(values) if value not in known)
                near = shown if isinstance(value, str) else ()  # 17 is not meant by 18
                hint = did_you_mean(str(value), near, f"it takes {join_names(shown)}")
                why = f"{column.label}, row {row}: the model does not know {short_repr(value)}{hint}"
                raise SchemaMismatch(why, column=column.name)


def _refuse_numbers(columns: Iterable[CheckedColumn], refused: Array, reason: str) -> None:
    if not refused.any():
        return
    for column in columns:
        rows = np.argwhere(column.values(refused))
        if len(rows):
            place = f", row {rows[0][0]}" if refused.ndim else ""  # one number for all rows is in none
            raise SchemaMismatch(f"{column.label}{place}: {reason}", column=column.name)


def check_rows(refused: Array, reason: str, first_row: int = 0) -> None:
    """Raise InferenceError if the graph has marked a row; `first_row` is the position of its first row."""
    if np.count_nonzero(refused):  # so is NaN
        raise InferenceError(f"row {first_row + int(np.flatnonzero(refused)[0])}: {reason}")
