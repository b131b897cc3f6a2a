"""Stages and aliases as places a version can be moved to: who is there now, and the move itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.registry.resolve import ResolvedModel, resolve, versions_of
from mlflow_deploy_plugin.registry.rollback import ROLLED_BACK_TAG, forget_rollback

_STAGES = ("Production", "Staging", "Archived", "None")
_KEEPS_ONE = ("Production", "Staging")  # MLflow archives the others of no other stage


@dataclass(frozen=True)
class Place:
    """A stage or an alias of a registered model."""

    stage: str = ""
    alias: str = ""

    def __str__(self) -> str:
        return self.stage or f"@{self.alias}"

    @property
    def is_for_serving(self) -> bool:
        """What is brought here is meant to be served: Production or an alias, and not a stage on the way."""
        return bool(self.alias) or self.stage == "Production"

    def uri(self, model: str) -> str:
        """The reference that an endpoint follows."""
        return f"models:/{model}/{self.stage}" if self.stage else f"models:/{model}@{self.alias}"


def parse_place(text: str) -> Place:
    """`Production` or `@champion`; the case of a stage does not matter.

    Raises:
        InvalidConfig: neither a stage nor an alias.
    """
    if text.startswith("@") and len(text) > 1:
        return Place(alias=text[1:])
    for stage in _STAGES:
        if stage.lower() == text.lower():
            return Place(stage=stage)
    raise InvalidConfig(f"{text!r} is neither a stage ({', '.join(_STAGES)}) nor an alias (@champion)")


def holder(model: str, place: Place, beside: str = "") -> ResolvedModel | None:
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
            found = versions_of(client, model)
            if not found:
                client.get_registered_model(model)
            versions = [str(version.version) for version in found if version.current_stage == place.stage]
    versions = sorted((version for version in versions if version != beside), key=int)
    return resolve(f"models:/{model}/{versions[-1]}") if versions else None


def taken_back(model: str, version: str, place: Place, tags: Mapping[str, str]) -> str:
    """Say why a version that was rolled back does not go to a place where it would be served; empty where it may."""
    if not place.is_for_serving or ROLLED_BACK_TAG not in tags:
        return ""
    return (
        f"{model} version {version} does not go to {place}, it was rolled back ({tags[ROLLED_BACK_TAG]}): "
        f"`onnxserve promote {model} {version} --to {place} --force --why TEXT` promotes it all the same, and takes "
        f"its tag {ROLLED_BACK_TAG} off"
    )


def move(model: str, version: str, place: Place) -> None:
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
        if place.is_for_serving:
            forget_rollback(client, model, version)


def registered(model: str, version: str) -> ResolvedModel:
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
