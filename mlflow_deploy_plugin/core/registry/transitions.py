"""Stages, aliases and tags of a registered model: selecting and moving versions, and
the audit trail of the moves.
"""

import json
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from heapq import merge
from operator import attrgetter
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.messages import did_you_mean
from mlflow_deploy_plugin.core.registry.connection import (
    is_unity_catalog,
    registry_address,
    registry_client,
    registry_errors,
    send_headers,
)
from mlflow_deploy_plugin.core.registry.model_uri import (
    STAGES,
    ModelURI,
    parse_model_uri,
    registered_model_names,
)
from mlflow_deploy_plugin.core.registry.resolution import (
    ResolvedModel,
    all_versions,
    newest,
    resolve,
    selects,
)
from mlflow_deploy_plugin.core.store.people import ANONYMOUS, CURRENT_ACT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from mlflow_deploy_plugin.core.store.audit import AuditEvent
    from mlflow_deploy_plugin.core.store.store import Store

ACT_HEADER = "X-Onnxserve-Act"
"""The header with the id of the act that a request to MLflow's server belongs to."""
_ACTS = ("promote", "refused", "rollback")
_STEPS = ("gate", "transition", "alias")
ROLLED_BACK_TAG = "onnxserve.rolled_back"
"""The tag of a version that was rolled back: the endpoint and the reason."""


@contextmanager
def one_act() -> Iterator[None]:
    """Give the events of this block, and of its requests to MLflow's server, the id of
    one act.
    """
    _send_acts()
    token = CURRENT_ACT.set(secrets.token_hex(8))
    try:
        yield
    finally:
        CURRENT_ACT.reset(token)


@cache  # The cache registers the header only once.
def _send_acts() -> None:
    """Let MLflow's client send the id of the current act."""

    def read() -> dict[str, str]:
        act = CURRENT_ACT.get()
        return {ACT_HEADER: act} if act else {}

    send_headers(read)


def event_history(
    store: "Store",
    endpoint: str | None,
    model: str | None,
    registry: str = "",
    *,
    actions: Collection[str] = (),
    actor: str = "",
    newest_first: bool = False,
) -> "Iterator[AuditEvent]":
    """Yield the events of an endpoint and its registered models (or only of `model`),
    oldest first, without the events of other registries than `registry`. `actions` and
    `actor` select events as in `Store.events`.

    The trail may not fit in memory.
    """
    from mlflow_deploy_plugin.core.store.audit import is_of_registry  # Images lack SQLAlchemy.

    select = partial(store.events, actions=actions, actor=actor, newest_first=newest_first)
    streams = [select(endpoint, model)]
    if endpoint is not None and model is None:
        for name in models_served_by(store, endpoint) or ():
            # A model event with an endpoint belongs only to the trail of that endpoint.
            streams.append(event for event in select(None, name) if not event.endpoint)
    merged = merge(*streams, key=attrgetter("at"), reverse=newest_first)
    return (event for event in merged if is_of_registry(event, registry))


def without_step_events(events: "Sequence[AuditEvent]") -> "list[AuditEvent]":
    """Remove the steps of a promotion or a rollback, because the promotion or rollback
    has its own event, and the intentions that have a result.

    The steps are the gate run, the move, and the move of the earlier version to the
    archive. Each caller of MLflow's server may send the id of an act, so a step is the
    last event of its kind before the act, and has the same result.
    """
    from mlflow_deploy_plugin.core.store.audit import ACT, INTEND, INTENTION

    results = {str(event.detail.get(INTENTION)) for event in events if event.action != INTEND}
    # The last gate run, and the last move to each place, of each model.
    last = {}
    steps = set()
    for event in sorted(events, key=attrgetter("at")):
        act = event.detail.get(ACT)
        moved = event.detail.get("moved")
        if not isinstance(moved, dict):  # Other writers of the store may write any document.
            moved = {}
        place = str(moved.get("place", event.action))
        before = moved.get("before", event.after)
        if event.action == INTEND and str(event.detail.get(INTENTION, "")) in results:
            steps.add(id(event))
        elif event.action in _STEPS:
            last[event.model, place] = event, (act, event.version, before)
        elif event.action in _ACTS and act:
            outcomes = {
                "gate": (act, event.version, event.detail.get("gate")),
                place: (act, event.version, before),
                "Archived": (act, before, ""),
            }
            for key, outcome in outcomes.items():
                step, found = last.get((event.model, key), (event, ()))
                # A server without accounts does not know the actor of a move.
                is_unknown = key != "gate" and step.actor.startswith(ANONYMOUS)
                if found == outcome and (is_unknown or step.actor == event.actor):
                    steps.add(id(step))
    return [event for event in events if id(event) not in steps]


def event_as_json(event: "AuditEvent") -> str:
    return json.dumps(
        {**asdict(event), "at": event.at.isoformat()},
        ensure_ascii=False,
        default=str,
    )


def models_served_by(store: "Store", endpoint: str) -> list[str] | None:
    """Return the registered models that an endpoint serves or last served; None if the
    spec is missing or too new.
    """
    with suppress(InvalidConfig):
        stored = store.endpoint(endpoint)
        if stored is not None and stored.spec.variants:
            return registered_model_names(stored.spec)
    # pydantic and YAML take 0.1 s.
    from mlflow_deploy_plugin.core.spec.document import load_stored_specs

    names: list[str] | None = None
    for event in store.events(endpoint, newest_first=True):
        if text := event.detail.get("spec"):
            try:
                (spec,) = load_stored_specs(text)
            except InvalidConfig:
                return None
            names = registered_model_names(spec)
            if spec.variants:
                break
    return names


@dataclass(frozen=True)
class StageOrAlias:
    stage: str = ""
    alias: str = ""

    def __str__(self) -> str:
        return self.stage or f"@{self.alias}"

    @property
    def is_served_from(self) -> bool:
        """True for Production and an alias, because endpoints follow them. Other stages
        are not served.
        """
        return bool(self.alias) or self.stage == "Production"

    def uri(self, model: str) -> str:
        if self.stage:
            return f"models:/{model}/{self.stage}"
        return f"models:/{model}@{self.alias}"


def parse_stage_or_alias(text: str) -> StageOrAlias:
    """Parse `Production`, in any case, or `@champion`. Raises InvalidConfig for any
    other text, and for a stage of a registry without stages.
    """
    if text.startswith("@") and len(text) > 1:
        return StageOrAlias(alias=text[1:])
    if stage := STAGES.get(text.lower()):
        if is_unity_catalog():
            raise InvalidConfig(
                f"Unity Catalog has no stages such as {stage}: specify an alias, such as @champion",
            )
        return StageOrAlias(stage=stage)
    alias = text or "champion"
    hint = did_you_mean(text, STAGES.values(), f"for the alias, specify '@{alias}'")
    raise InvalidConfig(
        f"{text!r} is neither a stage ({', '.join(STAGES.values())}) nor an alias{hint}",
    )


def version_at(model: str, place: StageOrAlias, exclude: str = "") -> ResolvedModel | None:
    """Return the version that now has the stage or alias, or None. Raises NotFound if
    there is no such model.
    """
    if number := current_version(parse_model_uri(place.uri(model)), exclude=exclude):
        return resolve(f"models:/{model}/{number}")
    with registry_errors(f"model {model}"):
        # This call raises NotFound if the model does not exist.
        registry_client().get_registered_model(model)
    return None


def current_version(
    uri: ModelURI,
    registry: "MlflowClient | None" = None,
    exclude: str = "",
) -> str:
    """Return the version that the URI's stage, alias or tag selects (the highest number
    if several match), or "".
    """
    with registry_errors(f"model {uri.name}"):
        client = registry or registry_client()
        if uri.kind == "alias":
            version = str(client.get_registered_model(uri.name).aliases.get(uri.selector, ""))
            return "" if version == exclude else version
        selected = newest(
            [item for number, item in _selected(client, uri).items() if number != exclude],
        )
    if selected is None:
        return ""
    return str(int(selected.version))


def move_version(uri: ModelURI, version: str, clears_rollback: bool = True) -> None:
    """Make the stage, alias or tag select only `version`. With `clears_rollback`,
    delete the version's rolled-back tag. Other versions in Production or Staging are
    archived, because the highest number is served. A tag is removed from other
    versions. Raises InvalidConfig if MLflow or the gate refuses the move, and NotFound
    if the version is missing.
    """
    from mlflow.exceptions import MlflowException  # The import takes a second.

    name = uri.name
    with registry_errors(f"model {name} version {version}"):
        try:
            client = registry_client()
            if uri.kind == "alias":
                client.set_registered_model_alias(name, uri.selector, version)
            else:
                _select_alone(client, uri, version)
            if clears_rollback and ROLLED_BACK_TAG in client.get_model_version(name, version).tags:
                client.delete_model_version_tag(name, version, ROLLED_BACK_TAG)
        except MlflowException as error:
            code = error.error_code
            if uri.kind == "stage" and code in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
                raise InvalidConfig(
                    f"{name} version {version} cannot be moved to {uri.place}, because MLflow at "
                    f"{registry_address()} has no stages: use an alias, such as @champion",
                ) from None
            if code not in ("PERMISSION_DENIED", "INVALID_PARAMETER_VALUE"):
                raise
            reason = str(error).removeprefix(f"{code}: ")
            raise InvalidConfig(
                f"MLflow refuses {uri.place} for {name} version {version}: {reason}",
            ) from None


def _select_alone(client: "MlflowClient", uri: ModelURI, version: str) -> None:
    """Move the version to the stage or tag, and remove the earlier versions from the
    stage or tag.
    """
    name = uri.name
    before = _selected(client, uri)
    if uri.kind == "tag":
        if before.keys() == {version}:
            return
        client.set_model_version_tag(name, version, *uri.tag)
        for other in _superseded(uri, version, before, _selected(client, uri)):
            client.delete_model_version_tag(name, other, uri.tag[0])
        # Another client moved the tag back and removed it from this version.
        if not _selected(client, uri):
            client.set_model_version_tag(name, version, *uri.tag)
        return
    client.transition_model_version_stage(name, version, uri.selector)
    if uri.selector.capitalize() in ("Production", "Staging"):  # MLflow archives the same stages.
        # Move the versions one by one: MLflow's archive_existing_versions fails on
        # PostgreSQL (psycopg 3).
        for other in _superseded(uri, version, before, _selected(client, uri)):
            client.transition_model_version_stage(name, other, "Archived")


def _selected(client: "MlflowClient", uri: ModelURI) -> "dict[str, ModelVersion]":
    """Return the versions that the stage or tag of a URI selects, by number."""
    return {
        str(item.version): item for item in all_versions(client, uri.name) if selects(uri, item)
    }


def _superseded(
    uri: ModelURI,
    version: str,
    before: "Mapping[str, ModelVersion]",
    after: "Mapping[str, ModelVersion]",
) -> list[str]:
    """Return the versions that must leave a stage or a tag after `version` was moved to
    it.

    Other clients may have moved versions at the same time. In a stage, the version that
    was moved last remains, so `version` may have to leave. MLflow does not record the
    time of a tag, so all versions that were tagged at the same time keep the tag, and
    the highest number is used.
    """
    if version not in after:
        return []
    if uri.kind == "tag":
        return [number for number in after if number in before and number != version]

    def moved_at(number: str) -> tuple[int, int]:
        return after[number].last_updated_timestamp or 0, int(number)

    unmoved = {
        key
        for key in after
        if key in before and moved_at(key)[0] == before[key].last_updated_timestamp
    }
    last = max(after.keys() - unmoved | {version}, key=moved_at)
    return [number for number in after if number != last]


@dataclass(frozen=True)
class PreviousVersion:
    """The version that was served before a later version, and the source of this
    information.
    """

    version: str
    source: str


def previous_in_registry(
    uri: ModelURI,
    version: str,
    registry: "MlflowClient | None" = None,
) -> PreviousVersion | None:
    """Return the version that had the stage before `version`. Skip rolled-back
    versions. Aliases have no history.
    """
    if uri.kind != "stage":
        return None
    with registry_errors(f"model {uri.name}"):
        versions = all_versions(registry or registry_client(), uri.name)
    candidates = [
        item
        for item in versions
        if str(item.version) != version and ROLLED_BACK_TAG not in item.tags
    ]
    if (lower := newest([item for item in candidates if selects(uri, item)])) is not None:
        source = f"it is the next highest version in {uri.selector}"
        return PreviousVersion(str(lower.version), source)
    if archived := [item for item in candidates if item.current_stage == "Archived"]:
        last = max(
            archived,
            key=lambda item: (item.last_updated_timestamp or 0, int(item.version)),
        )
        return PreviousVersion(str(last.version), "it was archived last")
    return None


def was_rolled_back(name: str, version: str, registry: "MlflowClient | None" = None) -> bool:
    """Return True if the version has the rolled-back tag. Raises NotFound if the
    version does not exist.
    """
    with registry_errors(f"model {name} version {version}"):
        client = registry or registry_client()
        return ROLLED_BACK_TAG in client.get_model_version(name, version).tags


def rolled_back_refusal(
    model: str,
    version: str,
    place: StageOrAlias,
    tags: Mapping[str, str],
) -> str:
    """Return why a rolled-back version is not promoted to a served stage or alias;
    empty if the move is allowed.
    """
    if not place.is_served_from or ROLLED_BACK_TAG not in tags:
        return ""
    return (
        f"{model} version {version} is not promoted to {place}, because it was rolled back "
        f"({tags[ROLLED_BACK_TAG]}): `onnxserve promote models:/{model}/{version} --to {place} "
        f"--force --why TEXT` promotes it anyway and removes its tag {ROLLED_BACK_TAG}"
    )
