"""A copy of one answered request, on its way to a shadow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_deploy_plugin.runtime import Array, Feeds, OpaqueBody, sent_arrays
from mlflow_deploy_plugin.server.packing import RequestRecord
from mlflow_deploy_plugin.server.served import LoadedVersion, ServedVariant

_TEXT_BYTES = 64  # an object of str, without its characters

Kinds = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""The dtype and a row's shape of each array."""


@dataclass(slots=True)
class Copy:
    """One request for one shadow.

    Attributes:
        record: of the answer; the shadow's captured rows have the same ids and times.
        is_captured: whether the answer is captured, and so the shadow's.
        feeds / outputs: of the variant that has answered.
        body: what a pyfunc reads itself.
        size: bytes that it holds.
    """

    shadow: ServedVariant
    answered_by: LoadedVersion
    record: RequestRecord
    is_captured: bool
    feeds: Feeds
    outputs: Mapping[str, Array]
    body: OpaqueBody | None
    size: int

    @property
    def rows(self) -> int:
        return self.answered_by.predictor.schema.count_rows(self.feeds)

    def goes_with(self, first: "Copy", kinds: Kinds) -> bool:
        """Whether one run may compute both; `kinds` are those of the feeds of `first`."""
        return (
            self.shadow.loaded is first.shadow.loaded
            and (self.shadow.endpoint, self.shadow.name) == (first.shadow.endpoint, first.shadow.name)
            and self.answered_by is first.answered_by
            and self.answered_by.predictor.schema.has_rows
            and self.body is None
            and self.outputs.keys() == first.outputs.keys()
            and kinds_of(self.feeds) == kinds
        )


def kinds_of(feeds: Feeds) -> Kinds:
    """What has to be the same for two requests to be computed in one run."""
    return {name: (array.dtype, array.shape[1:]) for name, array in {**feeds, **sent_arrays(feeds)}.items()}


def joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The rows of all of them, array by array."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def kept(array: Array) -> Array:
    """An array of a batch's is a view that would keep the whole batch in memory."""
    base = array.base
    return array.copy() if isinstance(base, np.ndarray) and base.nbytes > array.nbytes else array


def bytes_of(arrays: Mapping[str, Array]) -> int:
    """What the arrays hold in memory, about."""
    held = 0
    for array in arrays.values():
        held += array.nbytes
        if array.dtype.char == "O":
            held += sum(_TEXT_BYTES + (len(value) if isinstance(value, str) else 0) for value in array.flat)
    return held
