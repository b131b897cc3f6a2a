"""Which variant of an endpoint answers a request: by lot, or always the same for one caller."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar


class Weighted(Protocol):
    """What routing needs to know of a variant."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> int: ...

    @property
    def shadow(self) -> bool: ...


WeightedT = TypeVar("WeightedT", bound=Weighted)


def answering(variants: Sequence[WeightedT]) -> tuple[WeightedT, ...]:
    """The variants that may answer: with a weight, and not in the shadow."""
    return tuple(variant for variant in variants if variant.weight > 0 and not variant.shadow)


def choose(variants: Sequence[WeightedT], draw: float) -> WeightedT:
    """The variant whose share of the weights `draw`, in [0, 1), falls into; `variants` are those of `answering`."""
    if len(variants) == 1:
        return variants[0]
    mark = draw * sum(variant.weight for variant in variants)
    for variant in variants:
        mark -= variant.weight
        if mark < 0:
            return variant
    return variants[-1]


def keep(variants: Sequence[WeightedT], endpoint: str, key: str) -> WeightedT:
    """The variant that `key` always comes to, in every worker and after every restart, with the shares of the weights.

    Each variant has a number from a hash of endpoint, variant and key, exponentially distributed with its weight as the
    rate; the smallest wins (weighted rendezvous hashing). A variant whose weight grows only gains keys and no other
    pair exchanges any, whatever the order of the variants is: of all ways without a memory this moves the fewest
    (Bavarian et al., "The Optimality of Correlated Sampling", 2016).
    """
    if len(variants) == 1:
        return variants[0]
    return min(variants, key=lambda variant: _waiting_time(endpoint, variant, key))


def _waiting_time(endpoint: str, variant: Weighted, key: str) -> float:
    text = f"{endpoint}\0{variant.name}\0{key}".encode(errors="surrogatepass")
    number = int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 11  # as many bits as a float has
    return -math.log((number + 0.5) / 2**53) / variant.weight
