"""Tolerances and ties of parity, the comparison of the original's predictions with
those of the ONNX form.

| output        | tolerance                                                         |
|---------------|-------------------------------------------------------------------|
| label         | equal, except for ties                                            |
| probabilities | 1e-3 of the probability, and at most 1e-4                         |
| values        | 1e-4 of the value plus 1e-4 of the standard deviation of the      |
|               | original's predictions for the target                             |
| 16-bit values | 1e-2 instead of 1e-4, if the original predicts 16-bit floats      |

Summing trees or layers in 32-bit floats loses two to three of seven digits. Values near
zero need the scale of the target.

A tie is a row whose prediction depends on rounding, so that the original and the ONNX
form may both be right. Ties are counted separately. A label is a tie if the original's
margin between its two best labels is below `TIE_MARGIN`. A row halfway between two
training rows is a tie if a change of an input by two 32-bit steps changes the
original's prediction. A row of a neural network is a tie if rounding errors in inputs
or weights change the prediction. A row on a threshold is not a tie, since comparing an
input with a constant involves no rounding.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pandas as pd
from pandas.api.types import is_float_dtype, is_integer_dtype, is_numeric_dtype

from mlflow_deploy_plugin.serve.runtime.agreement import (
    LABELS,
    Agreement,
    Tolerance,
    largest_of_rows,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Role
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.batch import Batch, column_values

TIE_MARGIN = 1e-4
ABSOLUTE = 1e-4
OF_PROBABILITY = 1e-3
"""The relative tolerance of small probabilities, on which a log loss depends."""
RELATIVE = 1e-4
SHORT_RELATIVE = 1e-2
"""The relative tolerance for 16-bit floats, which have three digits."""
ENOUGH_ROWS = 100
"""The minimum number of rows from which a separate spread is computed for each value of
a row.
"""
_TINY = float(np.finfo(np.float32).tiny)
_FINEST = 1e-3
"""The minimum spread of a single value, as a share of the overall spread."""
_MAX_UNSTABLE_ROWS = 100
"""The maximum number of rows that are checked for ties. If more rows differ, ties are
not the cause.
"""
ROUNDINGS = 8
"""The number of rounding steps by which each number of a neural network is moved: its
layers cause similar errors.
"""
_ROUNDED_COPIES = 8
"""The number of copies of each row of a neural network. In each copy, the numbers are
moved in random directions.
"""
_EXACT = 2**24  # 32-bit floats represent all integers up to this number
_COPIES = 20
"""The maximum number of copies of the rows in memory at a time; each column needs two
copies.
"""


def parity_tolerance(
    role: Role, want: Array, spread: Array | float, least_probability: float = 0.0
) -> Tolerance:
    """Return the tolerance for an output of the original. `spread` is one number, or
    one per value of a row. Probabilities below `least_probability` need not agree.
    """
    if role == "label":
        return LABELS
    if role == "probabilities":
        # Originals subtract the second probability from 1, in their own floats.
        rounding = np.full(want.shape[1:], 4 * np.finfo(np.float64).eps)
        if want.shape[1:] == (2,) and want.dtype == np.float32:
            rounding[0] = 4 * np.finfo(np.float32).eps
        return Tolerance(rounding + least_probability, OF_PROBABILITY, most=ABSOLUTE, numbers="fiu")
    relative = SHORT_RELATIVE if want.dtype == np.float16 else RELATIVE
    return Tolerance(absolute=relative * spread + _TINY, relative=relative, numbers="fiu")


def relative_errors(agreement: Agreement, want: Array) -> Array:
    """Return the largest error of each row, [N], as a share of the original's number; 0
    or 1 for labels.
    """
    if not agreement.are_numbers:
        return largest_of_rows(agreement.differences)
    magnitudes = np.where(np.isfinite(want), np.abs(want.astype(np.float64)), 0.0)
    with np.errstate(over="ignore"):
        return largest_of_rows(agreement.differences / np.maximum(magnitudes, _TINY))


def answer_spread(answers: Array) -> Array:
    """Return the standard deviation of finite predictions [N, …] per value of a row
    […], or one number for few rows.
    """
    if answers.dtype.kind not in "fiu":
        return np.zeros(())
    finite = np.ma.masked_invalid(answers.astype(np.float64))
    overall = np.asarray(np.ma.filled(finite.std(), 0.0))
    if len(answers) < ENOUGH_ROWS:
        return overall
    return np.maximum(np.ma.filled(finite.std(axis=0), 0.0), overall * _FINEST)


def top_margins(probabilities: Array) -> Array:
    """Return the margins [N] between the best and the second label in [N, C]
    probabilities or scores.
    """
    if probabilities.ndim == 1:
        return np.abs(probabilities)
    if probabilities.shape[1] < 2:
        return np.full(len(probabilities), np.inf)
    ascending = np.sort(probabilities, axis=1)
    return np.asarray(ascending[:, -1] - ascending[:, -2])


def changes_within_one_step(
    batch: Batch, answers_otherwise: Callable[[Batch, Array], Array], is_net: bool = False
) -> Array:
    """Return [N] booleans: True for a row if a small change of its numbers changes the
    original's prediction.

    Args:
        batch: N rows.
        answers_otherwise: a function of changed rows and the index in `batch` of each
            row, [rows]. It returns [rows] booleans.
        is_net: True to move all numbers of a row together, otherwise each number is
            moved separately.
    """
    changes = np.zeros(len(batch), dtype=bool)
    row_count = min(len(batch), _MAX_UNSTABLE_ROWS)
    rows = batch.take(slice(0, row_count))
    if is_net:
        random = np.random.default_rng(0)
        moved_batches: Iterator[Batch] = (
            _moved_by_roundings(rows, random) for _ in range(_ROUNDED_COPIES)
        )
        copies_at_a_time = 1
    else:
        moved_batches = _moved_by_a_step(rows)
        copies_at_a_time = _COPIES
    while batches := list(islice(moved_batches, copies_at_a_time)):
        origin = np.tile(np.arange(row_count), len(batches))
        is_changed = answers_otherwise(Batch.joined(batches), origin)
        np.logical_or.at(changes, origin, is_changed)
    return changes


def _moved_by_a_step(batch: Batch) -> Iterator[Batch]:
    """Yield a copy of the rows per column of numbers and direction, with the column
    moved down or up by two 32-bit steps.

    Columns of small integers are left out, because 32-bit floats represent them
    exactly.
    """
    if isinstance(batch.data, pd.DataFrame):
        for name, series in batch.data.items():
            for moved in _stepped_column(series):
                yield Batch(batch.data.assign(**{str(name): moved.array}))
        return
    name, matrix = next(iter(batch.data.items()))
    if matrix.dtype.kind != "f" or matrix.ndim != 2:
        return
    for column in range(matrix.shape[1]):
        for values in _stepped(matrix[:, column]):
            copy = matrix.copy()
            copy[:, column] = values
            yield Batch({name: copy})


def _moved_by_roundings(batch: Batch, random: np.random.Generator) -> Batch:
    """Return the rows with all numbers moved. The rows of a text model are unchanged:
    only its weights can be moved.
    """
    table = batch.data
    if not isinstance(table, pd.DataFrame):
        return Batch({name: moved_by_roundings(array, random) for name, array in table.items()})
    if not all(map(is_numeric_dtype, table.dtypes)):
        return batch
    numbers = table.to_numpy(np.float32)  # A neural network reads 32-bit floats.
    return Batch(pd.DataFrame(moved_by_roundings(numbers, random), columns=table.columns))


def moved_by_roundings(values: Array, random: np.random.Generator) -> Array:
    """Move each float up or down at random by `ROUNDINGS` relative rounding steps."""
    if values.dtype.kind != "f":
        return values
    # A rounded sum is the exact sum of changed numbers: Higham, Accuracy and Stability
    # of Numerical Algorithms, 3.1.
    steps = random.choice([-ROUNDINGS, ROUNDINGS], values.shape) * np.finfo(values.dtype).eps
    return np.asarray(values * (1 + steps).astype(values.dtype))


def _stepped_column(series: pd.Series) -> Iterator[pd.Series]:
    """Yield the column moved down and up by two 32-bit steps, with its own type.
    Columns that hold other values than numbers, and columns of small integers, yield
    nothing. An integer that would leave the type is not moved.
    """
    if is_float_dtype(series.dtype):  # The checks include types of pandas and Arrow.
        for values in _stepped(column_values(series)):
            yield pd.Series(values).astype(series.dtype)
        return
    if not is_integer_dtype(series.dtype):
        return
    numbers = series.to_numpy(np.float64, na_value=np.nan)
    if not (np.abs(numbers) > _EXACT).any():
        return
    # "Int64" and "int64[pyarrow]" hold int64.
    dtype = np.dtype(str(series.dtype).partition("[")[0].lower())
    bounds = np.iinfo(dtype)
    # The step of a small integer is below one half, and becomes zero.
    steps = np.rint(_step_sizes(numbers))
    steps_down = np.where(numbers - steps >= bounds.min, steps, 0)
    steps_up = np.where(numbers + steps < bounds.max, steps, 0)
    yield series - steps_down.astype(dtype)
    yield series + steps_up.astype(dtype)


def _stepped(values: Array) -> Iterator[Array]:
    """Yield the column of floats moved down and up by two 32-bit steps."""
    steps = _step_sizes(values)
    yield (values - steps).astype(values.dtype)
    yield (values + steps).astype(values.dtype)


def _step_sizes(values: Array) -> Array:
    """Return two 32-bit steps of the usual magnitude of the column: a scaler may round
    as coarsely.

    Larger numbers are moved by two of their own steps. Their steps would change the
    other rows too much.
    """
    magnitudes = np.abs(values.astype(np.float64))
    usual = 0.0 if np.isnan(magnitudes).all() else np.nanmedian(magnitudes)
    steps = np.spacing(np.fmax(magnitudes, usual).astype(np.float32))
    return 2 * steps.astype(np.float64)
