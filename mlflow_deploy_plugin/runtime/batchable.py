"""Whether requests to a version may be joined: found out by computing two rows alone and together."""

from collections.abc import Mapping

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError
from mlflow_deploy_plugin.runtime.dimensions import no_batch_dimension_reason
from mlflow_deploy_plugin.runtime.model import Predictor
from mlflow_deploy_plugin.runtime.schema import Array, Feeds

_RELATIVE, _ABSOLUTE = 1e-2, 1e-6
"""A graph that mixes its rows is further off than half precision, TF32 or another order of sums."""


def unbatchable_reason(predictor: Predictor, feeds: Feeds) -> str:
    """Why the rows of several requests cannot be computed together; empty: they can.

    Every input needs a free first dimension and every output one entry a row, and a row's answer must not depend on
    the rows beside it.

    Args:
        feeds: one row or more that the model computes.
    """
    if reason := no_batch_dimension_reason(predictor.artifact):
        return f"it has no batch dimension: {reason}"
    if len({len(array) for array in feeds.values()}) != 1:
        return "its inputs do not have the same number of rows"
    if not all(map(len, feeds.values())):
        return "its example has no rows"
    first = repeat_row(feeds, 0)
    try:
        second = repeat_row(feeds, 1) if len(next(iter(feeds.values()))) > 1 else _another(predictor, first)
        alone = predictor.run(first), predictor.run(second)
        together = predictor.run({name: np.concatenate([first[name], second[name]]) for name in first})
    except InferenceError as error:
        return f"it cannot compute two rows together: {error.message}"
    for name, array in together.items():
        if array.shape[:1] != (2,) or any(part[name].shape[:1] != (1,) for part in alone):
            return f"its output {name!r} does not have one entry a row"
        if not all(_agree(array[i : i + 1], part[name]) for i, part in enumerate(alone)):
            return f"its output {name!r} depends on the rows beside it"
    return ""


def repeat_row(feeds: Feeds, number: int, times: int = 1) -> Feeds:
    """One row of every input, `times` over; views where once is enough."""
    rows = {name: array[number : number + 1] for name, array in feeds.items()}
    return rows if times == 1 else {name: np.repeat(array, times, axis=0) for name, array in rows.items()}


def _another(predictor: Predictor, first: Feeds) -> Feeds:
    """A row that differs, where the model takes it: a mean over two equal rows would not be noticed."""
    second = {name: _changed(array) for name, array in first.items()}
    try:
        predictor.run(second)
    except InferenceError:  # an unseen category, an index that the graph does not have
        return first
    return second


def _changed(array: Array) -> Array:
    if array.dtype.kind == "f":
        return (array + 1).astype(array.dtype)
    return (array == 0).astype(array.dtype) if array.dtype.kind in "iub" else array


def _agree(joined: Array, alone: Array) -> bool:
    if joined.shape != alone.shape:
        return False
    if joined.dtype.kind == "f":
        finite = np.abs(alone[np.isfinite(alone)])
        scale = float(finite.max()) if finite.size else 0.0
        return bool(np.allclose(joined, alone, rtol=_RELATIVE, atol=_RELATIVE * scale + _ABSOLUTE, equal_nan=True))
    if joined.dtype.kind == "O" and any(isinstance(value, Mapping) for value in alone.flat):
        return True  # class → probability; the labels beside it tell
    return bool(np.array_equal(joined, alone))
