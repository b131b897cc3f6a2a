"""Moves what a followed reference means, to a newer version or back to an earlier one, and finds which one that was."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.registry.reference import Reference
from mlflow_deploy_plugin.registry.resolve import highest, versions_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ROLLED_BACK_TAG = "onnxserve.rolled_back"
"""On a version that was served, or tried, and taken back: out of which endpoint, and why."""


@dataclass(frozen=True)
class Earlier:
    """A version that was served before another one, and how that is known."""

    version: str
    source: str


def stands_at(reference: Reference, registry: Any = None) -> str:
    """The version that the stage, the alias or the tag means now; empty where there is none.

    Args:
        registry: MLflow's registry store, in MLflow's own server; None: this process is a client.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"model {reference.name}"):
        client = registry or registry_client()
        if reference.kind == "alias":
            aliases = client.get_registered_model(reference.name).aliases
            return str(aliases.get(reference.selector, ""))
        found = [version for version in versions_of(client, reference.name) if _means(reference, version)]
    standing = highest(found)
    return "" if standing is None else str(int(standing.version))


def point(reference: Reference, version: str) -> None:
    """Makes the stage, the alias or the tag mean `version`; fine if it does already.

    What else is in the stage is archived, since its highest number counts; of a tag, the others lose it. That the
    version was rolled back once is forgotten.

    Raises:
        InvalidConfig: MLflow refuses it; the message is MLflow's, or the gate's.
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException  # here: a second

    name = reference.name
    with registry_errors(f"model {name} version {version}"):
        try:
            client = registry_client()
            _point(client, reference, version)
            forget_rollback(client, name, version)
        except MlflowException as error:
            if error.error_code != "PERMISSION_DENIED":
                raise
            said = str(error).removeprefix("PERMISSION_DENIED: ")
            raise InvalidConfig(f"MLflow refuses {name} version {version}: {said}") from None


def earlier_in_registry(reference: Reference, version: str, registry: Any = None) -> Earlier | None:
    """The version that the stage had before `version`, as the registry shows it; None where it does not.

    Versions that were rolled back are no candidates. An alias and a tag leave no trace of where they were.

    Args:
        registry: as of `stands_at`.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    if reference.kind != "stage":
        return None
    with registry_errors(f"model {reference.name}"):
        found = versions_of(registry or registry_client(), reference.name)
    versions = [one for one in found if str(one.version) != version]
    sound = [one for one in versions if ROLLED_BACK_TAG not in one.tags]
    lower = highest([one for one in sound if _means(reference, one)])
    if lower is not None:
        return Earlier(str(lower.version), f"it is the next in {reference.selector}")
    archived = [one for one in sound if one.current_stage == "Archived"]
    if archived:
        last = max(archived, key=lambda one: (one.last_updated_timestamp or 0, int(one.version)))
        return Earlier(str(last.version), "it was archived last")
    return None


def was_rolled_back(name: str, version: str, registry: Any = None) -> bool:
    """Raises NotFound and RegistryUnavailable as `point`."""
    with registry_errors(f"model {name} version {version}"):
        return ROLLED_BACK_TAG in (registry or registry_client()).get_model_version(name, version).tags


def forget_rollback(client: "MlflowClient", name: str, version: str) -> None:
    """A version that was rolled back and is served again may be gone back to again."""
    if ROLLED_BACK_TAG in client.get_model_version(name, version).tags:
        client.delete_model_version_tag(name, version, ROLLED_BACK_TAG)


def _point(client: Any, reference: Reference, version: str) -> None:
    name = reference.name
    if reference.kind == "alias":
        client.set_registered_model_alias(name, reference.selector, version)
    elif reference.kind == "tag":
        key, value = reference.tag
        client.set_model_version_tag(name, version, key, value)
        for other in versions_of(client, name):
            if str(other.version) != version and _means(reference, other):
                client.delete_model_version_tag(name, str(other.version), key)
    else:
        standing = [str(one.version) for one in versions_of(client, name) if _means(reference, one)]
        if standing != [version]:
            client.transition_model_version_stage(name, version, reference.selector, archive_existing_versions=True)


def _means(reference: Reference, version: "ModelVersion") -> bool:
    if reference.kind == "tag":
        key, value = reference.tag
        return bool(version.tags.get(key) == value)
    return str(version.current_stage).lower() == reference.selector.lower()
