"""The registered models behind endpoints, as this MLflow server's own registry has them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.gate.policy import policy_of
from mlflow_deploy_plugin.registry.reference import registered_references
from mlflow_deploy_plugin.registry.rollback import ROLLED_BACK_TAG
from mlflow_deploy_plugin.registry.tags import Standing, standing_of
from mlflow_deploy_plugin.spec import EndpointSpec

_VERSIONS = 6


@dataclass(frozen=True)
class Version:
    """One version of a registered model.

    Attributes:
        report: the address of its gate's report, or empty.
        rolled_back: out of which endpoint it was taken back, and why; empty where it was not.
    """

    number: str
    stage: str
    aliases: tuple[str, ...]
    standing: Standing
    report: str = ""
    rolled_back: str = ""


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model with its newest versions, and those that stand somewhere.

    Attributes:
        gated: the stages and aliases that only a passed version may take; `error` says why nobody knows.
        targets: the stages and @aliases that are followed.
    """

    name: str
    versions: tuple[Version, ...] = ()
    gated: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    error: str = ""


def registered_models(registry: Any, specs: Iterable[EndpointSpec], link: Any) -> list[RegisteredModel]:
    """All models that the endpoints refer to.

    Args:
        registry: MLflow's registry store.
        link: the tag of a gate's report → its address.
    """
    followed: dict[str, set[str]] = {}
    for spec in specs:
        for reference in registered_references(spec):
            targets = followed.setdefault(reference.name, set())
            if reference.kind == "stage":
                targets.add(reference.selector.title())
            elif reference.kind == "alias":
                targets.add(f"@{reference.selector}")
    return [_model(registry, name, targets, link) for name, targets in sorted(followed.items())]


def _model(registry: Any, name: str, targets: set[str], link: Any) -> RegisteredModel:
    from mlflow.exceptions import MlflowException

    stages = [stage for stage in ("Production", "Staging", "Archived") if stage not in targets]
    chosen = (*sorted(targets, key=lambda target: (target.startswith("@"), target)), *stages)
    try:
        model = registry.get_registered_model(name)
        found = list(registry.search_model_versions(_filter(name), max_results=200))
    except MlflowException as error:
        return RegisteredModel(name, error=" ".join(str(error).split())[:300], targets=chosen)
    by_version: dict[str, list[str]] = {}
    for alias, version in model.aliases.items():
        by_version.setdefault(str(version), []).append(alias)
    found.sort(key=lambda one: int(one.version), reverse=True)
    shown = [
        one
        for index, one in enumerate(found)
        if index < _VERSIONS or one.current_stage in ("Production", "Staging") or str(one.version) in by_version
    ]
    versions = tuple(_version(one, by_version, link) for one in shown)
    try:
        policy = policy_of(name, model.tags)
    except InvalidConfig as error:
        return RegisteredModel(name, versions, (), chosen, error.message)
    gated = (*policy.gated_stages, *(f"@{alias}" for alias in policy.gated_aliases)) if policy is not None else ()
    return RegisteredModel(name, versions, gated, chosen)


def _version(found: Any, aliases: dict[str, list[str]], link: Any) -> Version:
    number, standing = str(found.version), standing_of(found.tags)
    stage = found.current_stage if found.current_stage != "None" else ""
    taken_back = found.tags.get(ROLLED_BACK_TAG, "")
    return Version(number, stage, tuple(sorted(aliases.get(number, ()))), standing, link(standing.report), taken_back)


def _filter(name: str) -> str:
    quote = '"' if "'" in name else "'"
    return f"name = {quote}{name}{quote}"
