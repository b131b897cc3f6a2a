"""The registered models behind endpoints, as this MLflow server's own registry has them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.gate import GatePolicy, policy_from_tags
from mlflow_deploy_plugin.registry import (
    ROLLED_BACK_TAG,
    GateStatus,
    StageOrAlias,
    gate_status_of,
    parse_stage_or_alias,
    registered_model_uris,
)
from mlflow_deploy_plugin.spec import EndpointSpec
from mlflow_deploy_plugin.ui.blockers import ALREADY_THERE, gate_blocker, promotion_blocker

_VERSIONS = 6


@dataclass(frozen=True)
class PromotionTarget:
    """A stage or @alias to promote a version to; `refusal` says why it may not go there, and is empty if it may."""

    place: str
    refusal: str = ""

    @property
    def shown(self) -> str:
        """Return the entry of a list, which has no room for the whole reason."""
        if not self.refusal:
            return self.place
        return f"{self.place} – {ALREADY_THERE if self.refusal == ALREADY_THERE else 'it was rolled back'}"


@dataclass(frozen=True)
class VersionRow:
    """One version of a registered model.

    Attributes:
        report: the address of its gate's report, or empty.
        rolled_back: the endpoint that it was rolled back from, and why; empty if it was not.
        targets: the stages and aliases that are followed, and the other stages.
    """

    number: str
    stage: str
    aliases: tuple[str, ...]
    standing: GateStatus
    report: str = ""
    rolled_back: str = ""
    targets: tuple[PromotionTarget, ...] = ()


@dataclass(frozen=True)
class ModelCard:
    """A registered model with its newest versions, and all with an alias or in Production or Staging.

    Attributes:
        gated: the stages and aliases that only a passed version may take.
        error: why this is not known; nothing can be promoted or judged then.
        no_gate: why the gate would be refused here; empty if it would not.
    """

    name: str
    versions: tuple[VersionRow, ...] = ()
    gated: tuple[str, ...] = ()
    error: str = ""
    no_gate: str = ""


def model_cards(registry: Any, specs: Iterable[EndpointSpec], link: Any, has_account: bool) -> list[ModelCard]:
    """Return a card for each model that the endpoints refer to.

    Args:
        registry: MLflow's registry store.
        link: the tag of a gate's report → its address.
        has_account: True if the caller has an account, so that others may have fewer permissions.
    """
    followed: dict[str, set[str]] = {}
    for spec in specs:
        for reference in registered_model_uris(spec):
            targets = followed.setdefault(reference.name, set())
            if reference.kind == "stage":
                targets.add(reference.selector.title())
            elif reference.kind == "alias":
                targets.add(f"@{reference.selector}")
    return [_card(registry, name, targets, link, has_account) for name, targets in sorted(followed.items())]


def _card(registry: Any, name: str, targets: set[str], link: Any, has_account: bool) -> ModelCard:
    from mlflow.exceptions import MlflowException

    stages = [stage for stage in ("Production", "Staging", "Archived") if stage not in targets]
    chosen = (*sorted(targets, key=lambda target: (target.startswith("@"), target)), *stages)
    try:
        model = registry.get_registered_model(name)
        quote = '"' if "'" in name else "'"
        found = list(registry.search_model_versions(f"name = {quote}{name}{quote}", max_results=200))
    except MlflowException as error:
        return ModelCard(name, error=" ".join(str(error).split())[:300])
    by_version: dict[str, list[str]] = {}
    for alias, version in model.aliases.items():
        by_version.setdefault(str(version), []).append(alias)
    found.sort(key=lambda one: int(one.version), reverse=True)
    shown = [
        one
        for index, one in enumerate(found)
        if index < _VERSIONS or one.current_stage in ("Production", "Staging") or str(one.version) in by_version
    ]
    try:
        policy = policy_from_tags(name, model.tags)
    except InvalidConfig as error:
        versions = tuple(_row(one, by_version, link, ()) for one in shown)
        return ModelCard(name, versions, error=error.message, no_gate=error.message)
    applied = policy or GatePolicy()  # as for `onnxserve promote`
    holders = {place: _holders(place, found, model.aliases) for place in map(parse_stage_or_alias, chosen)}
    versions = tuple(
        _row(
            one,
            by_version,
            link,
            tuple(
                PromotionTarget(str(place), promotion_blocker(name, str(one.version), place, one.tags, applied, there))
                for place, there in holders.items()
            ),
        )
        for one in shown
    )
    gated = (*policy.gated_stages, *(f"@{alias}" for alias in policy.gated_aliases)) if policy is not None else ()
    return ModelCard(name, versions, gated, no_gate=gate_blocker(applied, has_account))


def _holders(place: StageOrAlias, versions: Iterable[Any], aliases: Mapping[str, Any]) -> frozenset[str]:
    """Return the versions that the stage or alias has."""
    if place.alias:
        return frozenset([str(aliases[place.alias])] if place.alias in aliases else [])
    return frozenset(str(one.version) for one in versions if one.current_stage == place.stage)


def _row(found: Any, aliases: dict[str, list[str]], link: Any, targets: tuple[PromotionTarget, ...]) -> VersionRow:
    number, standing = str(found.version), gate_status_of(found.tags)
    stage = found.current_stage if found.current_stage != "None" else ""
    rolled_back = found.tags.get(ROLLED_BACK_TAG, "")
    stands = tuple(sorted(aliases.get(number, ())))
    return VersionRow(number, stage, stands, standing, link(standing.report), rolled_back, targets)
