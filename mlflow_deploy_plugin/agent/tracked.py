"""What the agent knows of one model URI: the version that is served for it, and what went wrong with it."""

from dataclasses import dataclass

from mlflow_deploy_plugin.agent.version import FetchedVersion
from mlflow_deploy_plugin.errors import ModelError, OnnxserveError
from mlflow_deploy_plugin.server.state import WantedVariant
from mlflow_deploy_plugin.spec import VariantSpec


@dataclass
class Tracked:
    """One model URI.

    Attributes:
        version: what is to be served for it; None until something could be fetched.
        previous: what was served before, to go back to when the workers cannot load `version`.
        refused: identity of a version that cannot be served, so that it is not tried again and again.
        refusal: why not.
        error: why the last look at the registry failed, and `failed` how.
        due: when to look at the registry next.
    """

    version: FetchedVersion | None = None
    previous: FetchedVersion | None = None
    refused: str = ""
    refusal: str = ""
    error: str = ""
    failed: type[OnnxserveError] = OnnxserveError
    failures: int = 0
    due: float = 0.0

    def failure(self) -> OnnxserveError | None:
        """Why the newest version is not to be had, or not to be loaded; None: nothing is known against it."""
        if self.refusal:
            return ModelError(self.refusal)
        return self.failed(self.error) if self.error else None

    def refuse(self, uri: str, version: FetchedVersion, error: str) -> None:
        """The workers could not load `version`, the wanted one: back to what was served before it."""
        self.refused = version.identity
        self.refusal = f"{uri}: version {version.version} cannot be loaded: {error}"
        if self.previous is not None:
            self.refusal += f"; version {self.previous.version} is served on"
            self.version, self.previous = self.previous, None

    def look_anew(self) -> None:
        """The registry is asked at once, and what was refused is tried again."""
        self.due, self.refused, self.refusal = 0.0, "", ""


def wanted_variant(variant: VariantSpec, version: FetchedVersion) -> WantedVariant:
    return WantedVariant(
        model_uri=variant.model,
        model=version.model,
        version=version.version,
        folder=version.folder,
        weight=variant.weight,
        shadow=variant.shadow,
        aspects=version.aspects,
    )
