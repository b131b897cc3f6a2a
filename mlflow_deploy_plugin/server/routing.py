"""Which variant of an endpoint answers a request."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Weighted(Protocol):
    """What routing needs to know of a variant."""

    @property
    def weight(self) -> int: ...

    @property
    def shadow(self) -> bool: ...


WeightedT = TypeVar("WeightedT", bound=Weighted)


def answering(variants: Sequence[WeightedT]) -> tuple[WeightedT, ...]:
    """The variants that may answer: with a weight, and not in the shadow."""
    return tuple(variant for variant in variants if variant.weight > 0 and not variant.shadow)


def choose(variants: Sequence[WeightedT], draw: float) -> WeightedT:
    """The variant whose share of the weights `draw`, in [0, 1), falls into; `variants` are those of `answering`.

    A random draw a request gives the weights; a hash of a key as the draw makes a caller stick to its variant.
    """
    if len(variants) == 1:
        return variants[0]
    mark = draw * sum(variant.weight for variant in variants)
    for variant in variants:
        mark -= variant.weight
        if mark < 0:
            return variant
    return variants[-1]
