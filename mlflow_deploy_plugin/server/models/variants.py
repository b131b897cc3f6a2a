"""What is in memory, as plain values: loaded versions in their places. Immutable, replaced as a whole by a swap."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, TypeVar

from mlflow_deploy_plugin.runtime import Batcher, Feeds, Predictor, RemotePredictor, Schema, sent_arrays
from mlflow_deploy_plugin.server.capture.captured_model import CapturedModel
from mlflow_deploy_plugin.spec import CaptureSpec, StickySpec


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """One version in memory. `eq=False`: two loads of one version are two.

    Attributes:
        batcher: joins its requests; None: each is computed alone.
        seconds_per_row: what computing one row alone took at warm-up; infinite where that is not known.
        is_deterministic: the same question is known to have the same answer.
    """

    model: str
    version: str
    folder: Path
    predictor: Predictor
    captured: CapturedModel
    batcher: Batcher | None = None
    seconds_per_row: float = float("inf")
    is_deterministic: bool = False

    @property
    def is_batched(self) -> bool:
        return self.batcher is not None

    @property
    def unavailable_reason(self) -> str:
        """Why it cannot answer just now, though it is loaded; empty: it can."""
        return self.predictor.unavailable_reason if isinstance(self.predictor, RemotePredictor) else ""


@dataclass(frozen=True)
class ServedVariant:
    """A loaded version in its place: what one request is answered by. Several may have the same one.

    Attributes:
        captured: what is kept of its requests, as `capture` says.
        shadows: those that get a copy of what it has answered: the endpoint's, without any of the very same version.
        key: the input column whose value chooses among the variants that answer; None: no column does, or there is
            no choice.
        has_others: the endpoint has other variants, so that an answer says by which it was given.
    """

    endpoint: str
    name: str
    weight: int
    shadow: bool
    loaded: LoadedVersion
    capture: CaptureSpec
    captured: CapturedModel
    aspects: Mapping[str, str] = field(default_factory=dict)
    shadows: "tuple[ServedVariant, ...]" = ()
    key: str | None = None
    has_others: bool = False


@dataclass(frozen=True)
class ServedEndpoint:
    """The variants of an endpoint that are in memory, those among them that may answer, and what chooses one."""

    variants: Mapping[str, ServedVariant]
    answering: tuple[ServedVariant, ...]
    sticky: StickySpec | None = None

    @property
    def versions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(variant.loaded.version for variant in self.variants.values()))

    @property
    def unavailable_reasons(self) -> dict[str, str]:
        """By version: why it cannot answer just now; empty: it can."""
        return {variant.loaded.version: variant.loaded.unavailable_reason for variant in self.variants.values()}


def make_served_endpoint(variants: Mapping[str, ServedVariant], sticky: StickySpec | None = None) -> ServedEndpoint:
    """The endpoint of these variants, each with what it has to know of the others."""
    shadows = [variant for variant in variants.values() if variant.shadow]
    if len(answering_variants(tuple(variants.values()))) < 2:
        sticky = None
    if len(variants) > 1:
        variants = {
            name: replace(
                variant,
                shadows=tuple(shadow for shadow in shadows if shadow.loaded is not variant.loaded),
                key=sticky.key if sticky else None,
                has_others=True,
            )
            for name, variant in variants.items()
        }
    return ServedEndpoint(variants, answering_variants(tuple(variants.values())), sticky)


ServedTable = Mapping[str, ServedEndpoint]


class Weighted(Protocol):
    """What routing needs to know of a variant."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> int: ...

    @property
    def shadow(self) -> bool: ...


WeightedT = TypeVar("WeightedT", bound=Weighted)


def answering_variants(variants: Sequence[WeightedT]) -> tuple[WeightedT, ...]:
    """The variants that may answer: with a weight, and not in the shadow."""
    return tuple(variant for variant in variants if variant.weight > 0 and not variant.shadow)


def weighted_variant(variants: Sequence[WeightedT], draw: float) -> WeightedT:
    """The variant whose share of the weights `draw`, in [0, 1), falls into; `variants` are those of `answering`."""
    if len(variants) == 1:
        return variants[0]
    mark = draw * sum(variant.weight for variant in variants)
    for variant in variants:
        mark -= variant.weight
        if mark < 0:
            return variant
    return variants[-1]


def sticky_variant(variants: Sequence[WeightedT], endpoint: str, key: str) -> WeightedT:
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


def has_sticky_column(schema: Schema, column: str) -> bool:
    """Whether `key_of` can find it in a request."""
    return any(column in (entry.columns or (entry.name,)) for entry in schema.inputs)


def sticky_key(schema: Schema, feeds: Feeds, column: str) -> str | None:
    """The first row's value of a column (of a tensor: its first number) as text; None: there is none, or it is missing.

    A whole number has the same text in every type, so that a version that takes it as another type knows its callers;
    so has a boolean, which is 1 or 0.
    """
    arrays = sent_arrays(feeds)
    for entry in schema.sent_inputs:
        array = arrays.get(entry.name)
        if array is None or not array.size or column not in (entry.columns or (entry.name,)):
            continue
        place = entry.columns.index(column) if entry.columns else 0
        value = array.reshape(len(array) if array.ndim else 1, -1)[0, place]
        value = value if isinstance(value, str | None) else value.item()
        if value is None or value != value or (entry.missing is not None and value == entry.missing):
            return None
        is_whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
        return str(int(value)) if is_whole else str(value)
    return None
