"""The dimensions that a graph declares: which sizes have to agree, and whether the first ones are its rows.

Dimensions have to be equal only if they share a symbolic name
(https://github.com/onnx/onnx/blob/main/docs/IR.md#tensor-shape-types). A graph computes rows if every input has a
free first dimension, all of one name or all unnamed, and an output has one too. If the first dimensions are all fixed
at 1, a request is one such row. Every other graph (sizes fixed, or not shared, or scalars) answers a request as a
whole, which counts as one row.
"""

from collections.abc import Mapping, Sequence

from mlflow_deploy_plugin.runtime.artifact import PYTHON_FUNCTION, Artifact, Column, Input, Output
from mlflow_deploy_plugin.runtime.feeds import Array

_FREE, _ONE = (-1,), (1,)

SharedDimensions = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
"""Each symbolic name that stands at several places, with those places: (input, axis)."""


def row_symbols(shape: Sequence[int]) -> tuple[str, ...]:
    """Return dimension names for a tensor whose first dimension, if it is free, is the rows of a table."""
    return tuple("rows" if (axis, size) == (0, -1) else "" for axis, size in enumerate(shape))


def shared_dimensions(inputs: Sequence[Input]) -> SharedDimensions:
    """Return the dimensions that have to be equal within a request."""
    places: dict[str, list[tuple[str, int]]] = {}
    for entry in inputs:
        for axis, name in enumerate(entry.dimension_names):
            if name:
                places.setdefault(name, []).append((entry.name, axis))
    return tuple((name, tuple(found)) for name, found in places.items() if len(found) > 1)


def sizes_match(shared: SharedDimensions, feeds: Mapping[str, Array]) -> bool:
    """Return True if dimensions of one name have one size."""
    for _, ((first, at), *others) in shared:
        size = feeds[first].shape[at]
        for name, axis in others:
            if feeds[name].shape[axis] != size:
                return False
    return True


def size_mismatch(shared: SharedDimensions, feeds: Mapping[str, Array]) -> str:
    """Return the message about feeds of which `sizes_match` is False."""
    for name, places in shared:
        sizes = [feeds[entry].shape[axis] for entry, axis in places]
        if len(set(sizes)) > 1:
            other = next(i for i, size in enumerate(sizes) if size != sizes[0])
            (one, first), (two, second) = places[0], places[other]
            return (
                f"the model's dimension {name!r} has one size, but {one!r} has {sizes[0]} (dimension {first}) and "
                f"{two!r} has {sizes[other]} (dimension {second})"
            )
    return ""


def rowless_reason(columns: Sequence[Column], inputs: Sequence[Input], outputs: Sequence[Output]) -> str:
    """Return why the first dimensions of the tensors are not rows; an empty text if they are, or if there are columns.

    Args:
        outputs: empty if they are not known.
    """
    if columns:
        return ""
    firsts = [entry.shape[:1] for entry in inputs]
    answered = {output.shape[:1] if output.dtype != "map" else _FREE for output in outputs}
    if not inputs:
        return "it has no inputs"
    if all(first == _ONE for first in firsts) and answered <= {_ONE, _FREE}:
        return ""
    for entry, first in zip(inputs, firsts, strict=True):
        if first != _FREE:
            return f"its input {entry.name!r} " + (f"has the fixed first size {first[0]}" if first else "is a scalar")
    names = {entry.dimension_names[:1] for entry in inputs}
    if len(names) > 1:
        named = ", ".join(f"{entry.name!r} ({''.join(entry.dimension_names[:1]) or 'no name'})" for entry in inputs[:5])
        return f"the first dimensions of its inputs are not the same: {named}"
    if outputs and _FREE not in answered:
        return "none of its outputs has a free first dimension"
    return ""


def no_batch_dimension_reason(artifact: Artifact) -> str:
    """Return why a request cannot have any number of rows.

    Empty if it can, and for a model without a graph, whose dimensions nobody knows.
    """
    columns, inputs = artifact.columns, artifact.inputs
    if artifact.flavor == PYTHON_FUNCTION:
        return ""
    if fixed := next((entry for entry in inputs if entry.shape[:1] == _ONE), None):
        return f"its input {fixed.name!r} has the fixed first size 1"
    if columns and (fixed := next((entry for entry in inputs if entry.shape[:1] != _FREE), None)):
        return f"its input {fixed.name!r} has no free first dimension"
    return rowless_reason(columns, inputs, artifact.outputs)
