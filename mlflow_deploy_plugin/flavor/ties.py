"""Ties: rows whose answer hangs on a rounding, so that original and ONNX form may both be right.

A label is a tie where the original's own margin is below `TIE_MARGIN` (`compare.py`). A row that was made to stand
halfway between two learned ones is a tie where the original itself answers otherwise once a number moves by one 32-bit
step. No other row is a tie of the second kind, on thresholds neither: a comparison of an input with a constant has no
rounding to hang on. If those flip, the model is repaired or refused.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.flavor import batch as batches
from mlflow_deploy_plugin.flavor.batch import Batch
from mlflow_deploy_plugin.runtime.schema import Array

_MOST = 100
"""Rows that are looked at; where more differ, it is not a matter of ties."""

_COPIES = 20
"""Of the rows, at once in memory: there are two for each column."""


def unstable(batch: Batch, answers_otherwise: Callable[[Batch, Array], Array]) -> Array:
    """[N]: where some small step of one number changes the original's answer.

    Args:
        batch: N rows that differ.
        answers_otherwise: (rows, the row of `batch` that each comes from) → [rows] whether the original answers them
            otherwise than that row.
    """
    count = batches.rows(batch)
    found = np.zeros(count, dtype=bool)
    few = min(count, _MOST)
    moved = _moved(batches.take(batch, slice(0, few)))
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
