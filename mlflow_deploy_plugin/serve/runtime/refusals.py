"""The values that the original of a model refuses. The schema refuses them before the
graph computes an answer.

scikit-learn raises an error for some missing or infinite numbers and unknown
categories, but an ONNX graph computes an answer. The parity check finds these columns
(`wrap/flavor/parity.py`), and the schema checks each request here. If a later step of
the original refuses a row, such as a logarithm of a negative number, the graph marks
the row in `REFUSED_ROWS`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from math import inf
from typing import NamedTuple

import numpy as np

from mlflow_deploy_plugin.core.errors import InferenceError, SchemaMismatch
from mlflow_deploy_plugin.core.messages import did_you_mean, join_names
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Refusals
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.values import numpy_dtype, short_repr, tensor_label

REFUSED_ROWS = "onnxserve_refused_rows"
"""The graph's output that marks refused rows, [N]. In the graph's metadata, this name
has the reason of the refusal.
"""


class CheckedColumn(NamedTuple):
    """A column of an array, or a tensor (`position` is None)."""

    position: int | None
    name: str

    @property
    def label(self) -> str:
        """The name of the column or tensor for an error message."""
        if self.position is None:
            return tensor_label(self.name)
        return f"column {self.name!r}"

    def values(self, array: Array) -> Array:
        if self.position is None or array.ndim == 1:
            return array
        return array[:, self.position]


class AcceptedValues(NamedTuple):
    """The values that a column accepts.

    Attributes:
        column: the column that accepts only these values.
        accepted: the values.
        allowed: the values as an error message lists them.
    """

    column: CheckedColumn
    accepted: frozenset[object]
    allowed: list[str]

    def refusal(self, values: Sequence[object]) -> SchemaMismatch:
        """Return the error about the first value that the column does not accept."""
        row, value = next(
            (row, value) for row, value in enumerate(values) if value not in self.accepted
        )
        # No number is suggested: 17 is not a misspelt 18.
        near = self.allowed if isinstance(value, str) else ()
        hint = did_you_mean(str(value), near, f"the allowed values are {join_names(self.allowed)}")
        reason = f"{short_repr(value)} is not a known category of the model{hint}"
        return SchemaMismatch(f"{self.column.label}, row {row}: {reason}", column=self.column.name)


class ValueCheck(NamedTuple):
    """The checks of one array of a request.

    Attributes:
        input: the name of an input of the graph, or of a block of sent numbers.
        complete: the columns that refuse missing numbers.
        finite: the columns that refuse infinite numbers.
        categories: the columns that accept only some values.
    """

    input: str
    complete: list[CheckedColumn]
    finite: list[CheckedColumn]
    categories: Sequence[AcceptedValues]


def compile_checks(
    refusals: Refusals, inputs: Iterable[Input], tensors: Mapping[str, str]
) -> list[ValueCheck]:
    """Return the checks of the arrays of a request. `inputs` are inputs of the graph or
    blocks of sent numbers.

    `tensors` maps an input to its tensor in the signature; it is empty for a signature
    of columns.
    """
    checks: list[ValueCheck] = []
    if not (refusals.missing or refusals.infinite or refusals.categories):
        return checks
    for entry in inputs:
        columns = list(map(CheckedColumn, count(), entry.columns))
        numbers = columns or [CheckedColumn(None, tensors[entry.name])]
        if numpy_dtype(entry.dtype).kind != "f":
            numbers = []
        categories = []
        for column in columns:
            learned = refusals.categories.get(column.name, ())
            # Texts are compared only with texts: if an encoder learned numbers, an
            # input of texts may contain digits.
            is_text = entry.dtype == "str"
            if learned and all(isinstance(value, str) == is_text for value in learned):
                accepted = frozenset(learned)
                allowed = sorted(map(str, learned))
                if entry.missing is not None:
                    accepted |= {entry.missing}
                    allowed.append("null")
                categories.append(AcceptedValues(column, accepted, allowed))
        check = ValueCheck(
            entry.name,
            [column for column in numbers if column.name in refusals.missing],
            [column for column in numbers if column.name in refusals.infinite],
            categories,
        )
        if any(check[1:]):
            checks.append(check)
    return checks


def check_values(checks: Iterable[ValueCheck], arrays: Mapping[str, Array]) -> None:
    """Raise SchemaMismatch if a number is missing or infinite, or a value is not a
    category of its column.
    """
    for name, complete, finite, categories in checks:
        array = arrays[name]
        if complete or finite:
            # The product is NaN or infinite if one number is. The product takes half
            # the time of `isfinite` and does not warn. Above 10,000 numbers, OpenBLAS
            # wakes threads: 8 ms on busy cores (`isfinite`: 0.04 ms).
            if array.size > 10_000:
                is_finite = np.isfinite(array).all()
            else:
                is_finite = np.vdot(array, array) < inf
            if not is_finite:
                reason = "null or NaN; the model does not accept missing values"
                _check_numbers(complete, np.isnan(array), reason)
                reason = "infinite; the model accepts only finite numbers"
                _check_numbers(finite, np.isinf(array), reason)
        for entry in categories:
            values = entry.column.values(array).tolist()
            if not entry.accepted.issuperset(values):
                raise entry.refusal(values)


def _check_numbers(columns: Iterable[CheckedColumn], refused: Array, reason: str) -> None:
    """Raise SchemaMismatch with the reason for the first of the columns that has a
    refused number. `refused` marks the numbers of the array.
    """
    if not refused.any():
        return
    for column in columns:
        rows = np.argwhere(column.values(refused))
        if len(rows):
            # A single number for all rows has no row.
            row_label = f", row {rows[0][0]}" if refused.ndim else ""
            raise SchemaMismatch(f"{column.label}{row_label}: {reason}", column=column.name)


def check_rows(refused: Array, reason: str, first_row: int = 0) -> None:
    """Raise InferenceError if the graph has marked a row. `first_row` is the number of
    the first row of `refused`.
    """
    if np.count_nonzero(refused):  # NaN is nonzero, so it also marks a refused row.
        raise InferenceError(f"row {first_row + int(np.flatnonzero(refused)[0])}: {reason}")
