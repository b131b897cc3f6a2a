"""How far two answers are apart, row by row, and how far they may be.

Tolerances, with their reasons:

    label          equal. Where the original's own margin between its two best labels is below `TIE_MARGIN`, the row is
                   a tie: it is counted apart, because either answer is a rounding of the same margin.
    probabilities  1e-4 absolute: sums over trees or layers in 32-bit floats lose two to three of seven digits.
    values         1e-4 of the value, plus 1e-4 of the spread (standard deviation) of the original's answers, so that
                   values near zero are measured on the scale of the target; of several targets, each on its own.
"""

from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.runtime.artifact import Role
from mlflow_deploy_plugin.runtime.schema import Array

TIE_MARGIN = 1e-4
ABSOLUTE = 1e-4
RELATIVE = 1e-4

ENOUGH_ROWS = 100
"""Rows that tell the spread of each value of a row."""

_FINEST = 1e-3
"""Of the spread of all values: with it, the tolerance is what 32-bit floats resolve beside the largest of them."""


@dataclass(frozen=True)
class Difference:
    """One output over N rows.

    Attributes:
        absolute / relative: [N], the row's largest error; for labels 0 or 1.
        excess: [N], the error in units of its tolerance; above 1 is beyond it.
    """

    absolute: Array
    relative: Array
    excess: Array


def difference(role: Role, want: Array, got: Array, spread: Array | float) -> Difference:
    """Compares an output [N, …] with the original's; `spread` is that of the original's answers: one, or […]."""
    if want.shape != got.shape:
        everywhere = np.full(len(want), np.inf)
        return Difference(everywhere, everywhere, everywhere)
    if role == "label" or want.dtype.kind in "OUTb":
        wrong = _by_row(want != got).astype(np.float64)
        return Difference(wrong, wrong, np.where(wrong > 0, np.inf, 0.0))
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
    return Difference(*(_by_row(part) for part in parts))


def spread(answers: Array) -> Array:
    """The standard deviation of the finite answers [N, …]: […], for each value of a row; of few rows one for all."""
    if answers.dtype.kind not in "fiu":
        return np.zeros(())
    known = np.ma.masked_invalid(answers.astype(np.float64))
    overall = np.asarray(np.ma.filled(known.std(), 0.0))
    if len(answers) < ENOUGH_ROWS:
        return overall
    return np.maximum(np.ma.filled(known.std(axis=0), 0.0), overall * _FINEST)


def margins(probabilities: Array) -> Array:
    """[N]: how far the best label of [N, C] probabilities (or scores) leads the second."""
    if probabilities.ndim == 1:
        return np.abs(probabilities)
    if probabilities.shape[1] < 2:
        return np.full(len(probabilities), np.inf)
    best = np.sort(probabilities, axis=1)
    return np.asarray(best[:, -1] - best[:, -2])


def _by_row(values: Array) -> Array:
    return np.asarray(values.reshape(len(values), -1).max(axis=1)) if values.ndim > 1 else values
