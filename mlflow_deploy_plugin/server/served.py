"""What is in memory, as plain values: loaded versions in their places. Immutable, replaced as a whole by a swap."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflow_deploy_plugin.runtime import Batcher, Predictor, RemotePredictor
from mlflow_deploy_plugin.server import routing
from mlflow_deploy_plugin.server.capture import CapturedModel
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
    def absences(self) -> dict[str, str]:
        """By version: why it cannot answer just now; empty: it can."""
        return {variant.loaded.version: variant.loaded.unavailable_reason for variant in self.variants.values()}


def served_endpoint(variants: Mapping[str, ServedVariant], sticky: StickySpec | None = None) -> ServedEndpoint:
    """The endpoint of these variants, each with what it has to know of the others."""
    shadows = [variant for variant in variants.values() if variant.shadow]
    if len(routing.answering(tuple(variants.values()))) < 2:
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
    return ServedEndpoint(variants, routing.answering(tuple(variants.values())), sticky)


Table = Mapping[str, ServedEndpoint]
