"""Feeds that have lost something on their way into the graph, and still know what was sent.

A graph often takes 32-bit floating-point numbers where the signature says `long` or `double`. What is captured, masked
or given to another version is what was sent, so such feeds carry it along: without a look at the values, and only
where the signature's types do not go into the graph's (`Schema.sent_inputs`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mlflow_deploy_plugin.runtime.values import Array


class NarrowedFeeds(dict[str, Array]):
    """Arrays by ONNX input name, the batch first, and the same rows as they were sent.

    Attributes:
        sent: arrays by the name of an entry of `Schema.sent_inputs`, in the signature's types.
    """

    __slots__ = ("sent",)

    def __init__(self, fed: Mapping[str, Array], sent: Mapping[str, Array]) -> None:
        super().__init__(fed)
        self.sent = sent


def sent_arrays(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays in which nothing is lost: the feeds themselves, unless the graph has narrowed them."""
    return feeds.sent if isinstance(feeds, NarrowedFeeds) else feeds


def concatenate_feeds(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The rows of feeds of one kind, one after the other.

    Raises:
        ValueError: their arrays have different shapes.
    """
    fed = _joined(parts)
    return NarrowedFeeds(fed, _joined([sent_arrays(part) for part in parts])) if _are_narrowed(parts) else fed


def slice_feeds(feeds: Mapping[str, Array], rows: slice) -> dict[str, Array]:
    """Some of the rows."""
    fed = {name: array[rows] for name, array in feeds.items()}
    if isinstance(feeds, NarrowedFeeds):
        return NarrowedFeeds(fed, {name: array[rows] for name, array in feeds.sent.items()})
    return fed


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _are_narrowed(parts: Sequence[Mapping[str, Array]]) -> bool:
    return all(isinstance(part, NarrowedFeeds) for part in parts)
