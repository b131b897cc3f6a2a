"""What is in memory, as plain values: loaded versions in their places. Immutable, replaced as a whole by a swap."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_deploy_plugin.runtime.batcher import Batcher
from mlflow_deploy_plugin.runtime.predictor import Predictor, Remote
from mlflow_deploy_plugin.server.capture import CapturedModel
from mlflow_deploy_plugin.spec import CaptureSpec


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
    def absence(self) -> str:
        """Why it cannot answer just now, though it is loaded; empty: it can."""
        return self.predictor.absence if isinstance(self.predictor, Remote) else ""


@dataclass(frozen=True)
class ServedVariant:
    """A loaded version in its place: what one request is answered by."""

    endpoint: str
    name: str
    weight: int
    shadow: bool
    loaded: LoadedVersion
    capture: CaptureSpec
    aspects: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServedEndpoint:
    """The variants of an endpoint that are in memory, and those among them that may answer."""

    variants: Mapping[str, ServedVariant]
    answering: tuple[ServedVariant, ...]

    @property
    def versions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(variant.loaded.version for variant in self.variants.values()))


Table = Mapping[str, ServedEndpoint]
