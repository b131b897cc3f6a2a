"""Feeds: arrays by ONNX input name, the rows first. `NarrowedFeeds` also carry the values that the client sent.

A graph often takes 32-bit floating-point numbers where the signature says `long` or `double`. Capture, masking and
other versions need the values as they were sent, so feeds that lost precision carry them along. The schema decides that
without a look at the values, and only if the types of the signature do not fit into those of the graph
(`Schema.sent_inputs`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
"""Arrays by ONNX input name."""


class NarrowedFeeds(dict[str, Array]):
    """Feeds, and the same rows as they were sent.

    Attributes:
        sent: arrays in the types of the signature, by the name of an entry of `Schema.sent_inputs`.
    """

    __slots__ = ("sent",)
    sent: Mapping[str, Array]


def narrowed_feeds(fed: Mapping[str, Array], sent: Mapping[str, Array]) -> NarrowedFeeds:
    """Return feeds and the same rows as they were sent. A constructor of the class would take three times as long."""
    feeds = NarrowedFeeds(fed)
    feeds.sent = sent
    return feeds


def sent_arrays(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the arrays as they were sent: the feeds themselves unless the graph has narrowed them."""
    return feeds.sent if isinstance(feeds, NarrowedFeeds) else feeds


def concatenate_feeds(parts: Sequence[Mapping[str, Array]]) -> Feeds:
    """Return the rows of several feeds, one after the other.

    Raises:
        ValueError: their arrays have different shapes.
    """
    fed = _concatenate(parts)
    if all(isinstance(part, NarrowedFeeds) for part in parts):
        return narrowed_feeds(fed, _concatenate([sent_arrays(part) for part in parts]))
    return fed


def slice_feeds(feeds: Mapping[str, Array], rows: slice) -> Feeds:
    """Return some of the rows, as views."""
    fed = {name: array[rows] for name, array in feeds.items()}
    if isinstance(feeds, NarrowedFeeds):
        return narrowed_feeds(fed, {name: array[rows] for name, array in feeds.sent.items()})
    return fed


def repeat_row(feeds: Feeds, number: int, times: int = 1) -> Feeds:
    """Return one row of every input, repeated; a view for a single time."""
    rows = {name: array[number : number + 1] for name, array in feeds.items()}
    return rows if times == 1 else {name: np.repeat(array, times, axis=0) for name, array in rows.items()}


def row_count(arrays: Mapping[str, Array]) -> int:
    """Return the number of rows: the largest if they differ, 0 if no array has rows."""
    return max((len(array) for array in arrays.values() if array.ndim), default=0)


def _concatenate(parts: Sequence[Mapping[str, Array]]) -> Feeds:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
