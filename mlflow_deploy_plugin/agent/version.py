"""A version whose files are on this disk: how it is fetched, and where its failures are told."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_deploy_plugin.agent.cache import ModelCache
from mlflow_deploy_plugin.errors import NotFound, RegistryUnavailable
from mlflow_deploy_plugin.registry.connection import registry_address
from mlflow_deploy_plugin.registry.model_files import refuse_links
from mlflow_deploy_plugin.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.registry.resolve import BatchResolver, Resolution, ResolvedModel
from mlflow_deploy_plugin.registry.tags import ERROR_TAG, tag_version, untag_version
from mlflow_deploy_plugin.runtime.artifact import PYTHON_FUNCTION, Artifact, check_digests
from mlflow_deploy_plugin.runtime.pyfunc_artifact import read_served_artifact

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchedVersion:
    """One version, ready to be loaded.

    Attributes:
        identity: `ResolvedModel.identity` of what was fetched; empty where only wanted.json tells of it.
        source: where the files came from.
        runs_code: it has no ONNX form.
    """

    model: str
    version: str
    folder: Path
    aspects: dict[str, str] = field(default_factory=dict)
    identity: str = ""
    source: str = ""
    runs_code: bool = False


@dataclass(frozen=True)
class MlflowRegistry:
    """The world outside of `Follower`: MLflow, and the cache that its files come into."""

    cache: ModelCache
    lookup: BatchResolver = field(default_factory=BatchResolver)

    def resolve(self, model_uris: Sequence[str]) -> dict[str, Resolution]:
        """What each URI means now, or why that cannot be told."""
        return self.lookup.resolve(model_uris)

    def fetch(self, resolved: ResolvedModel) -> FetchedVersion:
        """Fetches and verifies; a folder on this disk is served from where it stands.

        Raises:
            InvalidArtifact, NotFound, RegistryUnavailable: see `ModelCache.fetch`.
        """
        if parse_model_uri(resolved.source).kind == "path":
            folder = Path(resolved.source)
            refuse_links(folder)
            artifact = read_served_artifact(folder)
            check_digests(artifact)
            return _described(resolved, artifact)
        folder = self.cache.fetch(resolved.source, _lasting_identity(resolved))
        self.cache.prune()
        return _described(resolved, read_served_artifact(folder))

    def report_failure(self, source: str, error: str) -> bool:
        """Tags the registered version that is `source` with the error, or takes the tag away where that is empty.

        Returns:
            False: the registry does not answer.
        """
        reference = parse_model_uri(source)
        if reference.kind != "version":
            return True
        try:
            if error:
                tag_version(reference.name, reference.selector, ERROR_TAG, error)
            else:
                untag_version(reference.name, reference.selector, ERROR_TAG)
        except NotFound:
            return True
        except RegistryUnavailable as unreachable:
            _log.warning("the version could not be tagged with its error: %s", unreachable)
            return False
        return True


def _lasting_identity(resolved: ResolvedModel) -> str | None:
    """A registered or logged model never changes its files; what stands behind a URI or in a run may."""
    if parse_model_uri(resolved.source).kind not in ("version", "logged_model"):
        return None
    return f"{registry_address()} {resolved.identity}"


def _described(resolved: ResolvedModel, artifact: Artifact) -> FetchedVersion:
    """Fills in from the MLmodel file what the registry does not say."""
    known = {
        "run_id": artifact.run_id,
        "model_id": artifact.model_id,
        "parity": artifact.parity_state,
        "git_commit": str(artifact.provenance.get("git_commit") or ""),
    }
    return FetchedVersion(
        model=resolved.name,
        version=resolved.version or artifact.model_id or "unknown",
        folder=artifact.folder,
        aspects={name: value for name, value in known.items() if value} | resolved.aspects,
        identity=resolved.identity,
        source=resolved.source,
        runs_code=artifact.flavor == PYTHON_FUNCTION,
    )
