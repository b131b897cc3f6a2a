"""The values that the original of a model refuses, refused before the graph computes something of them.

scikit-learn raises an error for a missing number where nothing imputes it, for an infinite one, and for a category
that an encoder without `handle_unknown` has not learned. An ONNX graph answers them: a label made of NaN, a row of
zeros. The proof of parity finds which columns these are (`flavor/parity.py`), and the schema checks the feeds of each
request here.

A step within the original may refuse what the steps before it have made, as a regression does with the logarithm of
a negative number. The graph itself then marks such rows, in the output `REFUSED_ROWS`.
"""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, NamedTuple

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError, SchemaMismatch, did_you_mean, join_names
from mlflow_deploy_plugin.runtime.artifact import Input, Refusals
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.values import numpy_dtype, short_repr, tensor_label

REFUSED_ROWS = "onnxserve_refused_rows"
"""The output of a graph, [N], that is 0 but for rows that the original refuses; and the key of the reason in its
metadata. It is none of the model's outputs."""


class ValueCheck(NamedTuple):
    """An array of a request, and the columns of it that are checked.

    Attributes:
        input: the name of an input of the graph, or of a block of sent numbers.
        whole: (position, column) of those that take no missing number; the position is -1 for a tensor.
        finite: the same of those that take no infinite number.
        categories: (position, column, the values that it takes, the same for an error).
    """

    input: str
    whole: list[tuple[int, str]]
    finite: list[tuple[int, str]]
    categories: list[tuple[int, str, frozenset[Any], list[str]]]


def compile_checks(refusals: Refusals, inputs: Iterable[Input], tensors: Mapping[str, str]) -> list[ValueCheck]:
    """Return the checks of the arrays of a request.

    Args:
        inputs: of the graph, or the blocks of what was sent.
        tensors: input → the tensor of the signature that feeds it; empty for a signature of columns.
    """
    checks: list[ValueCheck] = []
    if not (refusals.missing or refusals.infinite or refusals.categories):
        return checks
    for entry in inputs:
        columns = list(enumerate(entry.columns)) or [(-1, tensors[entry.name])]
        kind = numpy_dtype(entry.dtype).kind
        whole, finite = (
            [(position, name) for position, name in columns if kind == "f" and name in refused]
            for refused in (refusals.missing, refusals.infinite)
        )
        categories = []
        for position, name in columns:
            known = refusals.categories.get(name, ()) if entry.columns else ()
            # an input of texts may hold the digits of numbers, as its encoder learned them
            if known and all(isinstance(value, str) == (kind == "O") for value in known):
                missing = [] if entry.missing is None else [entry.missing]
                shown = [*sorted(map(str, known)), *(["null"] if missing else [])]
                categories.append((position, name, frozenset([*known, *missing]), shown))
        if whole or finite or categories:
            checks.append(ValueCheck(entry.name, whole, finite, categories))
    return checks


def check_values(checks: Iterable[ValueCheck], arrays: Mapping[str, Array]) -> None:
    """Check the values of a request.

    Raises:
        SchemaMismatch: a number is missing or infinite, or a value is no category of its column.
    """
    for check in checks:
        name, whole, finite, categories = check
        array = arrays[name]
        # the product is NaN or infinite if one number is; it takes half the time of `isnan` and `any`, and warns of no
        # overflow
        if (whole or finite) and not np.vdot(array, array) < inf:
            _refuse(check, array)
        for position, _, known, _ in categories:
            if not known.issuperset(_column(array, position).tolist()):
                _refuse(check, array)


def check_rows(refused: Array, reason: str, first_row: int = 0) -> None:
    """Check the rows that a graph has marked; `first_row` is the place of the first one in the request.

    Raises:
        InferenceError: one is marked.
    """
    if np.count_nonzero(refused):  # so is NaN
        raise InferenceError(f"row {first_row + int(np.flatnonzero(refused)[0])}: {reason}")


def _refuse(check: ValueCheck, array: Array) -> None:
    for columns, is_refused, reason in (
        (check.whole, np.isnan, "null or NaN; the model takes no missing value"),
        (check.finite, np.isinf, "infinite; the model takes finite numbers"),
    ):
        if not columns or not is_refused(array).any():
            continue
        for position, column in columns:
            values = array if position < 0 else _column(array, position)
            if len(found := np.argwhere(is_refused(values))):
                called = f"column {column!r}" if position >= 0 else tensor_label(column)
                raise SchemaMismatch(f"{called}, row {found[0][0]}: {reason}")
    for position, column, known, shown in check.categories:
        for row, value in enumerate(_column(array, position).tolist()):
            if value not in known:
                near = shown if isinstance(value, str) else ()  # 17 is not meant by 18
                hint = did_you_mean(str(value), near, f"it takes {join_names(shown)}")
                raise SchemaMismatch(f"column {column!r}, row {row}: the model does not know {short_repr(value)}{hint}")


def _column(array: Array, position: int) -> Array:
    return array if array.ndim == 1 else array[:, position]
