"""A test if requests to a version may be batched: it computes two rows alone and together."""

from collections.abc import Mapping

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError
from mlflow_deploy_plugin.runtime.dimensions import no_batch_dimension_reason
from mlflow_deploy_plugin.runtime.feeds import Array, Feeds, repeat_row
from mlflow_deploy_plugin.runtime.model import Predictor

_RELATIVE, _ABSOLUTE = 1e-2, 1e-6
"""A graph that mixes its rows is further off than half precision, TF32 or another order of sums."""


def unbatchable_reason(predictor: Predictor, feeds: Feeds) -> str:
    """Return why the rows of several requests cannot be computed together; an empty text if they can.

    Every input needs a free first dimension and every output one entry a row, and the answer to a row must not depend
    on the rows beside it.

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
        second = repeat_row(feeds, 1) if len(next(iter(feeds.values()))) > 1 else _different_row(predictor, first)
        alone = predictor.run(first), predictor.run(second)
        together = predictor.run({name: np.concatenate([first[name], second[name]]) for name in first})
    except InferenceError as error:
        return f"it cannot compute two rows together: {error.message}"
    for name, array in together.items():
        if array.shape[:1] != (2,) or any(part[name].shape[:1] != (1,) for part in alone):
            return f"its output {name!r} does not have one entry a row"
        if not all(_is_close(array[i : i + 1], part[name]) for i, part in enumerate(alone)):
            return f"its output {name!r} depends on the rows beside it"
    return ""


def _different_row(predictor: Predictor, first: Feeds) -> Feeds:
    """Return a row that differs if the model takes it: a mean over two equal rows would not be noticed."""
    second: Feeds = {}
    for name, array in first.items():
        if array.dtype.kind == "f":
            array = (array + 1).astype(array.dtype)
        elif array.dtype.kind in "iub":
            array = (array == 0).astype(array.dtype)
        second[name] = array
    try:
        predictor.run(second)
    except InferenceError:  # an unseen category, an index that the graph does not have
        return first
    return second


def _is_close(batched: Array, alone: Array) -> bool:
    if batched.shape != alone.shape:
        return False
    if batched.dtype.kind == "f":
        finite = np.abs(alone[np.isfinite(alone)])
        scale = float(finite.max()) if finite.size else 0.0
        return bool(np.allclose(batched, alone, rtol=_RELATIVE, atol=_RELATIVE * scale + _ABSOLUTE, equal_nan=True))
    if batched.dtype.kind == "O" and any(isinstance(value, Mapping) for value in alone.flat):
        return True  # class → probability; the labels beside it tell
    return bool(np.array_equal(batched, alone))
