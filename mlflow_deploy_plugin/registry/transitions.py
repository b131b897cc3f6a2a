"""Stages, aliases and tags of a registered model: the version that each selects, moving a version, and moving back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.registry.model_uri import ModelURI
from mlflow_deploy_plugin.registry.resolve import ResolvedModel, all_versions, newest, resolve

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ROLLED_BACK_TAG = "onnxserve.rolled_back"
"""On a version that was served, or tried, and taken back: out of which endpoint, and why."""


@dataclass(frozen=True)
class PreviousVersion:
    """A version that was served before another one, and how that is known."""

    version: str
    source: str


def current_version(reference: ModelURI, registry: Any = None) -> str:
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
        found = [version for version in all_versions(client, reference.name) if _means(reference, version)]
    standing = newest(found)
    return "" if standing is None else str(int(standing.version))


def repoint(reference: ModelURI, version: str) -> None:
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
            clear_rollback(client, name, version)
        except MlflowException as error:
            if error.error_code != "PERMISSION_DENIED":
                raise
            said = str(error).removeprefix("PERMISSION_DENIED: ")
            raise InvalidConfig(f"MLflow refuses {name} version {version}: {said}") from None


def previous_in_registry(reference: ModelURI, version: str, registry: Any = None) -> PreviousVersion | None:
    """The version that the stage had before `version`, as the registry shows it; None where it does not.

    Versions that were rolled back are no candidates. An alias and a tag leave no trace of where they were.

    Args:
        registry: as of `current_version`.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    if reference.kind != "stage":
        return None
    with registry_errors(f"model {reference.name}"):
        found = all_versions(registry or registry_client(), reference.name)
    versions = [one for one in found if str(one.version) != version]
    sound = [one for one in versions if ROLLED_BACK_TAG not in one.tags]
    lower = newest([one for one in sound if _means(reference, one)])
    if lower is not None:
        return PreviousVersion(str(lower.version), f"it is the next in {reference.selector}")
    archived = [one for one in sound if one.current_stage == "Archived"]
    if archived:
        last = max(archived, key=lambda one: (one.last_updated_timestamp or 0, int(one.version)))
        return PreviousVersion(str(last.version), "it was archived last")
    return None


def was_rolled_back(name: str, version: str, registry: Any = None) -> bool:
    """Raises NotFound and RegistryUnavailable as `point`."""
    with registry_errors(f"model {name} version {version}"):
        return ROLLED_BACK_TAG in (registry or registry_client()).get_model_version(name, version).tags


def clear_rollback(client: "MlflowClient", name: str, version: str) -> None:
    """A version that was rolled back and is served again may be gone back to again."""
    if ROLLED_BACK_TAG in client.get_model_version(name, version).tags:
        client.delete_model_version_tag(name, version, ROLLED_BACK_TAG)


def _point(client: Any, reference: ModelURI, version: str) -> None:
    name = reference.name
    if reference.kind == "alias":
        client.set_registered_model_alias(name, reference.selector, version)
    elif reference.kind == "tag":
        key, value = reference.tag
        client.set_model_version_tag(name, version, key, value)
        for other in all_versions(client, name):
            if str(other.version) != version and _means(reference, other):
                client.delete_model_version_tag(name, str(other.version), key)
    else:
        standing = [str(one.version) for one in all_versions(client, name) if _means(reference, one)]
        if standing != [version]:
            client.transition_model_version_stage(name, version, reference.selector, archive_existing_versions=True)


def _means(reference: ModelURI, version: "ModelVersion") -> bool:
    if reference.kind == "tag":
        key, value = reference.tag
        return bool(version.tags.get(key) == value)
    return str(version.current_stage).lower() == reference.selector.lower()


_STAGES = ("Production", "Staging", "Archived", "None")
_KEEPS_ONE = ("Production", "Staging")  # MLflow archives the others of no other stage


@dataclass(frozen=True)
class StageOrAlias:
    """A stage or an alias of a registered model."""

    stage: str = ""
    alias: str = ""

    def __str__(self) -> str:
        return self.stage or f"@{self.alias}"

    @property
    def is_served_from(self) -> bool:
        """What is brought here is meant to be served: Production or an alias, and not a stage on the way."""
        return bool(self.alias) or self.stage == "Production"

    def uri(self, model: str) -> str:
        """The reference that an endpoint follows."""
        return f"models:/{model}/{self.stage}" if self.stage else f"models:/{model}@{self.alias}"


def parse_stage_or_alias(text: str) -> StageOrAlias:
    """`Production` or `@champion`; the case of a stage does not matter.

    Raises:
        InvalidConfig: neither a stage nor an alias.
    """
    if text.startswith("@") and len(text) > 1:
        return StageOrAlias(alias=text[1:])
    for stage in _STAGES:
        if stage.lower() == text.lower():
            return StageOrAlias(stage=stage)
    raise InvalidConfig(f"{text!r} is neither a stage ({', '.join(_STAGES)}) nor an alias (@champion)")


def version_at(model: str, place: StageOrAlias, beside: str = "") -> ResolvedModel | None:
    """The version that is at the place now (in a stage the highest number counts), or None.

    Args:
        beside: a version that is left out: of one that was promoted already, this finds what it stands beside.

    Raises:
        NotFound: there is no such model.
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"model {model}"):
        client = registry_client()
        if place.alias:
            aliases = client.get_registered_model(model).aliases
            versions = [str(aliases[place.alias])] if place.alias in aliases else []
        else:
            found = all_versions(client, model)
            if not found:
                client.get_registered_model(model)
            versions = [str(version.version) for version in found if version.current_stage == place.stage]
    versions = sorted((version for version in versions if version != beside), key=int)
    return resolve(f"models:/{model}/{versions[-1]}") if versions else None


def rolled_back_refusal(model: str, version: str, place: StageOrAlias, tags: Mapping[str, str]) -> str:
    """Say why a version that was rolled back does not go to a place where it would be served; empty where it may."""
    if not place.is_served_from or ROLLED_BACK_TAG not in tags:
        return ""
    return (
        f"{model} version {version} does not go to {place}, it was rolled back ({tags[ROLLED_BACK_TAG]}): "
        f"`onnxserve promote {model} {version} --to {place} --force --why TEXT` promotes it all the same, and takes "
        f"its tag {ROLLED_BACK_TAG} off"
    )


def move_version(model: str, version: str, place: StageOrAlias) -> None:
    """Brings a version into a stage, whose other versions are archived, or sets an alias.

    That the version was rolled back once is forgotten where it is to be served again.

    Raises:
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer, or does not allow it.
    """
    with registry_errors(f"model {model} version {version}"):
        client = registry_client()
        if place.alias:
            client.set_registered_model_alias(model, place.alias, version)
        else:
            client.transition_model_version_stage(
                model, version, place.stage, archive_existing_versions=place.stage in _KEEPS_ONE
            )
        if place.is_served_from:
            clear_rollback(client, model, version)


def registered_version(model: str, version: str) -> ResolvedModel:
    """One version of a registered model.

    Raises:
        InvalidConfig: `model` is no name, or `version` no number.
        NotFound / RegistryUnavailable: there is no such version, or MLflow does not say so.
    """
    if "/" in model or ":" in model or Path(model).is_dir():
        name = model.removeprefix("models:/").partition("/")[0].partition("@")[0] if model.startswith("models:") else ""
        right = f"give its name alone, {name}" if name else "mlflow.register_model gives the model in a folder one"
        raise InvalidConfig(f"{model!r} is no name of a registered model; {right}")
    if not version.isdigit():
        raise InvalidConfig(f"{version!r} is no version of {model}; give its number")
    found = resolve(f"models:/{model}/{version}")
    if not found.name:
        raise NotFound(f"there is no model {model}")
    return found
