"""How far two answers are apart, row by row, and how far they may be.

Tolerances, with their reasons:

    label          equal. Where the original's own margin between its two best labels is below `TIE_MARGIN`, the row is
                   a tie: it is counted apart, because either answer is a rounding of the same margin.
    probabilities  1e-4 absolute: sums over trees or layers in 32-bit floats lose two to three of seven digits.
    values         1e-4 of the value, plus 1e-4 of the spread (standard deviation) of the original's answers, so that
                   values near zero are measured on the scale of the target; of several targets, each on its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.runtime import Array, Role

TIE_MARGIN = 1e-4
ABSOLUTE = 1e-4
RELATIVE = 1e-4

ENOUGH_ROWS = 100
"""Rows that tell the spread of each value of a row."""

_FINEST = 1e-3
"""Of the spread of all values: with it, the tolerance is what 32-bit floats resolve beside the largest of them."""


@dataclass(frozen=True)
class OutputDifference:
    """One output over N rows.

    Attributes:
        absolute / relative: [N], the row's largest error; for labels 0 or 1.
        excess: [N], the error in units of its tolerance; above 1 is beyond it.
    """

    absolute: Array
    relative: Array
    excess: Array


def compare_output(role: Role, want: Array, got: Array, spread: Array | float) -> OutputDifference:
    """Compares an output [N, …] with the original's; `spread` is that of the original's answers: one, or […]."""
    if want.shape != got.shape:
        everywhere = np.full(len(want), np.inf)
        return OutputDifference(everywhere, everywhere, everywhere)
    if role == "label" or want.dtype.kind in "OUTb":
        wrong = _by_row(want != got).astype(np.float64)
        return OutputDifference(wrong, wrong, np.where(wrong > 0, np.inf, 0.0))
    want, got = want.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.where(want == got, 0.0, np.abs(want - got))  # equal infinities are equal
        allowed = ABSOLUTE if role == "probabilities" else ABSOLUTE * spread + RELATIVE * np.abs(want)
        excess = np.where(error == 0, 0.0, error / np.maximum(allowed, np.finfo(np.float32).tiny))
        relative = np.where(error == 0, 0.0, error / np.maximum(np.abs(want), np.finfo(np.float32).tiny))
    both_nan = np.isnan(want) & np.isnan(got)
    # a tolerance that grows with an infinite value would allow everything
    apart = ~(np.isfinite(want) & np.isfinite(got)) & (want != got)
    parts = [np.where(both_nan, 0.0, np.where(apart, np.inf, part)) for part in (error, relative, excess)]
    return OutputDifference(*(_by_row(part) for part in parts))


def answer_spread(answers: Array) -> Array:
    """The standard deviation of the finite answers [N, …]: […], for each value of a row; of few rows one for all."""
    if answers.dtype.kind not in "fiu":
        return np.zeros(())
    known = np.ma.masked_invalid(answers.astype(np.float64))
    overall = np.asarray(np.ma.filled(known.std(), 0.0))
    if len(answers) < ENOUGH_ROWS:
        return overall
    return np.maximum(np.ma.filled(known.std(axis=0), 0.0), overall * _FINEST)


def top_margins(probabilities: Array) -> Array:
    """[N]: how far the best label of [N, C] probabilities (or scores) leads the second."""
    if probabilities.ndim == 1:
        return np.abs(probabilities)
    if probabilities.shape[1] < 2:
        return np.full(len(probabilities), np.inf)
    best = np.sort(probabilities, axis=1)
    return np.asarray(best[:, -1] - best[:, -2])


def _by_row(values: Array) -> Array:
    return np.asarray(values.reshape(len(values), -1).max(axis=1)) if values.ndim > 1 else values


_MOST = 100
"""Rows that are looked at; where more differ, it is not a matter of ties."""

_COPIES = 20
"""Of the rows, at once in memory: there are two for each column."""


def changes_within_one_step(batch: Batch, answers_otherwise: Callable[[Batch, Array], Array]) -> Array:
    """[N]: where some small step of one number changes the original's answer.

    Args:
        batch: N rows that differ.
        answers_otherwise: (rows, the row of `batch` that each comes from) → [rows] whether the original answers them
            otherwise than that row.
    """
    count = batches.row_count(batch)
    found = np.zeros(count, dtype=bool)
    few = min(count, _MOST)
    moved = _moved(batches.take_rows(batch, slice(0, few)))
    while some := list(islice(moved, _COPIES)):
        origin = np.tile(np.arange(few), len(some))
        np.logical_or.at(found, origin, answers_otherwise(batches.concatenate(some), origin))
    return found


def _moved(batch: Batch) -> Iterator[Batch]:
    """The rows once for each floating-point column and direction, that column moved by one 32-bit step."""
    if isinstance(batch, pd.DataFrame):
        for name in batch.columns:
            series = batch[name]
            if pd.api.types.is_float_dtype(series.dtype):  # numpy's, pandas' own and Arrow's
                for values in _stepped(batches.column_values(series)):
                    yield batch.assign(**{str(name): pd.Series(values).astype(series.dtype).array})
    else:
        name, matrix = next(iter(batch.items()))
        for column in range(matrix.shape[1] if matrix.dtype.kind == "f" and matrix.ndim == 2 else 0):
            for values in _stepped(matrix[:, column]):
                copy = matrix.copy()
                copy[:, column] = values
                yield {name: copy}


def _stepped(values: Array) -> Iterator[Array]:
    """The column, a 32-bit step of its largest value lower and higher: so much a scaler's rounding may move it."""
    largest = np.nanmax(np.abs(values), initial=0.0)
    step = 2 * float(np.spacing(np.float32(largest)))
    yield (values - step).astype(values.dtype)
    yield (values + step).astype(values.dtype)
