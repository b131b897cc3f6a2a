"""Feeds (arrays by ONNX input name, rows first) and the dimensions that a graph
declares for its inputs.

`NarrowedFeeds` also contain the values as they were sent, since a graph may take
narrower numbers than the signature.

Dimensions must be equal only if they share a symbolic name
(https://github.com/onnx/onnx/blob/main/docs/IR.md#tensor-shape-types). A graph computes
rows if every input has a free first dimension, the first dimensions all have the same
name or no name, and an output has a free first dimension. If all first dimensions are
fixed at 1, a request is a single row. For any other graph, a request also counts as one
row.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Column, Input, Output

Array = npt.NDArray[Any]
Dtype = np.dtype[Any]
Feeds = dict[str, Array]

_FREE = (-1,)
_ONE = (1,)
_TEXT_BYTES = 64  # The size of a str object without its characters.

ArrayLayout = tuple[str, str, Sequence[int], int]
"""The name, dtype (`str`: texts), shape and number of bytes of an array."""
SharedDimensions = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
"""The dimensions, as (input, axis), of each symbolic name that several dimensions
share.
"""


class NarrowedFeeds(dict[str, Array]):
    """Feeds and the same rows as they were sent. `sent` is keyed by the name of an
    entry of `Schema.sent_inputs`.
    """

    __slots__ = ("sent",)
    sent: Mapping[str, Array]


def object_array(values: Sequence[object]) -> Array:
    """Return values as an array of objects, [N]. np.array would unpack lists and
    mappings.
    """
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def as_table(array: Array) -> Array:
    """Return an array as a table, [N, values per row]. numpy's reshape cannot derive
    the width if N is 0.
    """
    return array.reshape(len(array), prod(array.shape[1:]))


def narrowed_feeds(fed: Mapping[str, Array], sent: Mapping[str, Array]) -> NarrowedFeeds:
    """Return feeds that contain the same rows as they were sent. A constructor would
    take three times as long.
    """
    feeds = NarrowedFeeds(fed)
    feeds.sent = sent
    return feeds


def sent_arrays(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the arrays as they were sent: the feeds, unless the graph takes narrower
    numbers.
    """
    if isinstance(feeds, NarrowedFeeds):
        return feeds.sent
    return feeds


def concatenate_feeds(parts: Sequence[Mapping[str, Array]]) -> Feeds:
    """Return the concatenated rows of several feeds. Raises ValueError if their shapes
    differ.
    """
    if all(isinstance(part, NarrowedFeeds) for part in parts):
        return narrowed_feeds(join_arrays(parts), join_arrays(list(map(sent_arrays, parts))))
    return join_arrays(parts)


def join_arrays(parts: Sequence[Mapping[str, Array]]) -> Feeds:
    """Return the concatenated rows of each array. A single part is not copied."""
    if len(parts) == 1:
        return dict(parts[0])
    joined = {}
    for name in parts[0]:
        joined[name] = np.concatenate([part[name] for part in parts])
    return joined


def slice_feeds(feeds: Mapping[str, Array], rows: slice) -> Feeds:
    """Return these rows of every array, as views."""
    fed = {name: array[rows] for name, array in feeds.items()}
    if isinstance(feeds, NarrowedFeeds):
        return narrowed_feeds(fed, {name: array[rows] for name, array in feeds.sent.items()})
    return fed


def repeat_row(feeds: Feeds, number: int, times: int = 1) -> Feeds:
    """Return one row of every input, repeated, as a read-only view."""
    return {
        name: np.broadcast_to(array[number], (times, *array.shape[1:]))
        for name, array in feeds.items()
    }


def row_count(arrays: Mapping[str, Array]) -> int:
    """Return the number of rows of the arrays: the maximum if the numbers differ, 0 if
    no array has rows.
    """
    return max((len(array) for array in arrays.values() if array.ndim), default=0)


def sample_positions(total: int, most: int, random: int | np.random.Generator) -> Array:
    """Return at most `most` distinct positions below `total`, in ascending order.
    `random` is a seed or a generator.
    """
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(random).choice(total, most, replace=False))


def array_bytes(arrays: Mapping[str, Array]) -> int:
    """Return the approximate number of bytes of the arrays in memory."""
    total = 0
    for array in arrays.values():
        total += array.nbytes
        if array.dtype.char == "O":
            total += _TEXT_BYTES * array.size
            total += sum(len(value) for value in array.flat if isinstance(value, str))
    return total


def pack_arrays(
    arrays: Mapping[str, Array], dump_texts: Callable[[list[object]], bytes]
) -> tuple[list[ArrayLayout], list[memoryview]]:
    """Return the layout of each array, which can be written as JSON, and the contents
    of the arrays.
    """
    layout: list[ArrayLayout] = []
    contents: list[memoryview] = []
    for name, array in arrays.items():
        if array.dtype.kind == "O":
            dtype = "str"
            content = memoryview(dump_texts(array.reshape(-1).tolist()))
        else:
            dtype = array.dtype.str
            content = np.ascontiguousarray(array).data
        layout.append((name, dtype, array.shape, content.nbytes))
        contents.append(content)
    return layout, contents


def unpack_arrays(
    layout: Iterable[ArrayLayout], content: memoryview, load_texts: Callable[[bytes], list[object]]
) -> tuple[dict[str, Array], memoryview]:
    """Return the arrays that `pack_arrays` packed, and the rest of `content`. Arrays of
    numbers are views of `content`.

    Raises ValueError or TypeError if the layout or the contents are malformed.
    """
    arrays = {}
    for name, dtype, shape, size in layout:
        if dtype == "str":
            array = object_array(load_texts(bytes(content[:size])))
        elif np.dtype(dtype).kind not in "fiub":
            raise ValueError(f"an array has the unsupported dtype {dtype}")
        else:
            array = np.frombuffer(content[:size], dtype=dtype)
        arrays[name] = array.reshape(shape)
        content = content[size:]
    return arrays, content


def shared_dimensions(inputs: Sequence[Input]) -> SharedDimensions:
    """Return the dimensions of the inputs that have a symbolic name in common."""
    by_name: dict[str, list[tuple[str, int]]] = {}
    for entry in inputs:
        for axis, name in enumerate(entry.dimension_names):
            if name:
                by_name.setdefault(name, []).append((entry.name, axis))
    return tuple(
        (name, tuple(dimensions)) for name, dimensions in by_name.items() if len(dimensions) > 1
    )


def size_mismatch(shared: SharedDimensions, feeds: Mapping[str, Array]) -> str:
    """Return a message about dimensions that share a name but not a size; empty if
    there are no such dimensions.
    """
    for name, dimensions in shared:
        first_input, first_axis = dimensions[0]
        expected = feeds[first_input].shape[first_axis]
        for entry, axis in dimensions[1:]:
            size = feeds[entry].shape[axis]
            if size != expected:
                return (
                    f"the model's dimension {name!r} must have one size, but {first_input!r} has "
                    f"{expected} (dimension {first_axis}) and {entry!r} has {size} (dimension "
                    f"{axis})"
                )
    return ""


def rowless_reason(
    columns: Sequence[Column], inputs: Sequence[Input], outputs: Sequence[Output]
) -> str:
    """Return the reason why the first dimensions are not rows; empty if they are, or if
    the model has columns.
    """
    if columns:
        return ""
    firsts = [entry.shape[:1] for entry in inputs]
    answered = {_FREE if output.dtype == "map" else output.shape[:1] for output in outputs}
    if not inputs:
        return "it has no inputs"
    if all(first == _ONE for first in firsts) and answered <= {_ONE, _FREE}:
        return ""
    for entry, first in zip(inputs, firsts, strict=True):
        if not first:
            return f"its input {entry.name!r} is a scalar"
        if first != _FREE:
            return f"its input {entry.name!r} has the fixed first size {first[0]}"
    if len({entry.dimension_names[:1] for entry in inputs}) > 1:
        dimensions = []
        for entry in inputs[:5]:
            dimension = "".join(entry.dimension_names[:1]) or "no name"
            dimensions.append(f"{entry.name!r} ({dimension})")
        return f"the first dimensions of its inputs are not the same: {', '.join(dimensions)}"
    if outputs and _FREE not in answered:
        return "none of its outputs has a free first dimension"
    return ""


def no_batch_dimension_reason(artifact: Artifact) -> str:
    """Return the reason why a request has a fixed number of rows; empty if the number
    is free or there is no graph.
    """
    columns = artifact.columns
    if artifact.flavor == PYTHON_FUNCTION:
        return ""
    for entry in artifact.inputs:
        if entry.shape[:1] == _ONE:
            return f"its input {entry.name!r} has the fixed first size 1"
    for entry in artifact.inputs:
        if columns and entry.shape[:1] != _FREE:
            return f"its input {entry.name!r} has no free first dimension"
    return rowless_reason(columns, artifact.inputs, artifact.outputs)
