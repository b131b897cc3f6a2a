"""Stages, aliases and tags of a registered model: selecting and moving versions, and the audit trail of these moves."""

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from heapq import merge
from itertools import accumulate, islice
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.registry.model_uri import ModelURI, parse_model_uri, registered_model_names
from mlflow_deploy_plugin.registry.resolution import ResolvedModel, all_versions, newest, resolve, selects

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from mlflow_deploy_plugin.store import AuditEvent, Store

STARTED_AT = "begun"
"""The key in the detail of a promotion's or a rollback's event for the time of its start; `at` is that of its end."""
_STEPS = ("gate", "tag", "transition", "alias")
ROLLED_BACK_TAG = "onnxserve.rolled_back"
"""On a version that was served, or tried, and rolled back: the endpoint and the reason."""
_STAGES = ("Production", "Staging", "Archived", "None")
_ARCHIVES_OTHERS = ("Production", "Staging")  # MLflow archives the same stages


def event_history(store: "Store", endpoint: str | None, model: str | None, limit: int | None) -> "Iterator[AuditEvent]":
    """Yield the events of an endpoint and its registered models (or of `model` only), oldest first.

    With `limit` only the newest events are returned. Do not collect all events: they may exceed the memory.
    """
    newest_first = limit is not None
    found = [store.events(endpoint, model, newest_first=newest_first)]
    if endpoint is not None and model is None:
        for name in models_served_by(store, endpoint) or ():
            # an event of a model that names an endpoint belongs to that endpoint's trail
            events = store.events(None, name, newest_first=newest_first)
            found.append(event for event in events if not event.endpoint)
    ordered = merge(*found, key=attrgetter("at"), reverse=newest_first)
    return ordered if limit is None else reversed([*islice(ordered, limit)])


def without_step_events(events: "Sequence[AuditEvent]") -> "list[AuditEvent]":
    """Leave out the steps of a promotion or a rollback, which has its own event.

    The steps are the run of the gate, the tags of its verdict, and the moves into the stage and to the archive.
    """
    acts: defaultdict[tuple[str, str | None], list[tuple[datetime, datetime]]] = defaultdict(list)
    for act in events:
        if start := act.detail.get(STARTED_AT):
            for version in (act.version, None):
                acts[act.model, version].append((datetime.fromisoformat(start), act.at))
    for spans in acts.values():
        spans.sort()
        starts, ends = zip(*spans, strict=True)
        spans[:] = zip(starts, accumulate(ends, max), strict=True)  # the latest end of all that began until then

    def is_step(event: "AuditEvent") -> bool:
        if event.action not in _STEPS:
            return False
        spans = acts.get((event.model, None if event.after == "Archived" else event.version), [])
        begun = bisect_right(spans, event.at, key=itemgetter(0))
        return begun > 0 and event.at <= spans[begun - 1][1]

    return [event for event in events if not is_step(event)]


def event_as_json(event: "AuditEvent") -> str:
    return json.dumps({**asdict(event), "at": event.at.isoformat()}, ensure_ascii=False, default=str)


def models_served_by(store: "Store", endpoint: str) -> list[str] | None:
    """Return the registered models that an endpoint serves or served last; None if its spec is missing or too new."""
    with suppress(InvalidConfig):
        stored = store.endpoint(endpoint)
        if stored is not None and stored.spec.variants:
            return registered_model_names(stored.spec)
    from mlflow_deploy_plugin.spec import load_specs  # imported late: pydantic and YAML take a tenth of a second

    found: list[str] | None = None
    for event in store.events(endpoint, newest_first=True):
        if text := event.detail.get("spec"):
            try:
                (spec,) = load_specs(text, may_be_empty=True)
            except InvalidConfig:
                return None
            found = registered_model_names(spec)
            if spec.variants:
                break
    return found


@dataclass(frozen=True)
class StageOrAlias:
    stage: str = ""
    alias: str = ""

    def __str__(self) -> str:
        return self.stage or f"@{self.alias}"

    @property
    def is_served_from(self) -> bool:
        """True for Production and an alias: endpoints follow them. The other stages lead to Production or away."""
        return bool(self.alias) or self.stage == "Production"

    def uri(self, model: str) -> str:
        return f"models:/{model}/{self.stage}" if self.stage else f"models:/{model}@{self.alias}"


def parse_stage_or_alias(text: str) -> StageOrAlias:
    """Parse `Production`, in any case, or `@champion`; raise InvalidConfig for any other text."""
    if text.startswith("@") and len(text) > 1:
        return StageOrAlias(alias=text[1:])
    for stage in _STAGES:
        if stage.lower() == text.lower():
            return StageOrAlias(stage=stage)
    raise InvalidConfig(f"{text!r} is neither a stage ({', '.join(_STAGES)}) nor an alias (@champion)")


def version_at(model: str, place: StageOrAlias, exclude: str = "") -> ResolvedModel | None:
    """Return the version that has the stage or the alias now, or None; raise NotFound if there is no such model."""
    if found := current_version(parse_model_uri(place.uri(model)), exclude=exclude):
        return resolve(f"models:/{model}/{found}")
    with registry_errors(f"model {model}"):
        registry_client().get_registered_model(model)  # raises if there is no such model
    return None


def current_version(uri: ModelURI, registry: "MlflowClient | None" = None, exclude: str = "") -> str:
    """Return the version that the stage (of several the highest number), the alias or the tag selects now, or ""."""
    with registry_errors(f"model {uri.name}"):
        client = registry or registry_client()
        if uri.kind == "alias":
            version = str(client.get_registered_model(uri.name).aliases.get(uri.selector, ""))
            return "" if version == exclude else version
        versions = [one for one in all_versions(client, uri.name) if selects(uri, one)]
        found = newest([one for one in versions if str(one.version) != exclude])
    return "" if found is None else str(int(found.version))


def move_version(uri: ModelURI, version: str, clears_rollback: bool = True) -> None:
    """Make the stage, the alias or the tag select only `version`, and delete its rolled-back tag if `clears_rollback`.

    The other versions of Production or Staging are archived, because the highest number counts; the other versions with
    the tag lose it. Raises InvalidConfig if MLflow or the gate refuses the move, and NotFound without such a version.
    """
    from mlflow.exceptions import MlflowException  # imported late: it takes a second

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
            if error.error_code != "PERMISSION_DENIED":
                raise
            text = str(error)
            raise InvalidConfig(
                f"MLflow refuses {name} version {version}: {text.removeprefix('PERMISSION_DENIED: ')}"
            ) from None


def _select_alone(client: "MlflowClient", uri: ModelURI, version: str) -> None:
    """Move the version to the stage or the tag, and the earlier versions away."""
    name, before = uri.name, _selected(client, uri)
    if before.keys() == {version}:
        return
    if uri.kind == "tag":
        client.set_model_version_tag(name, version, *uri.tag)
        for other in _superseded(uri, version, before, _selected(client, uri)):
            client.delete_model_version_tag(name, other, uri.tag[0])
        if not _selected(client, uri):  # another client has moved it back meanwhile, and taken it from this version
            client.set_model_version_tag(name, version, *uri.tag)
        return
    client.transition_model_version_stage(name, version, uri.selector)
    if uri.selector.capitalize() in _ARCHIVES_OTHERS:
        # The versions move one by one: MLflow's archive_existing_versions fails on PostgreSQL (psycopg 3)
        for other in _superseded(uri, version, before, _selected(client, uri)):
            client.transition_model_version_stage(name, other, "Archived")


def _selected(client: "MlflowClient", uri: ModelURI) -> "dict[str, ModelVersion]":
    return {str(one.version): one for one in all_versions(client, uri.name) if selects(uri, one)}


def _superseded(
    uri: ModelURI, version: str, before: "Mapping[str, ModelVersion]", after: "Mapping[str, ModelVersion]"
) -> list[str]:
    """Return the versions that leave a stage or a tag to which `version` was moved.

    Other clients may have moved versions there meanwhile. In a stage the version that was moved last stays, so
    `version` itself may leave. MLflow records no time of a tag: all versions that were tagged meanwhile keep it, and
    the highest counts.
    """
    if version not in after:
        return []
    if uri.kind == "tag":
        return [one for one in after if one in before and one != version]

    def moved_at(number: str) -> tuple[int, int]:
        return after[number].last_updated_timestamp or 0, int(number)

    unmoved = {one for one in after if one in before and moved_at(one)[0] == before[one].last_updated_timestamp}
    last = max(after.keys() - unmoved | {version}, key=moved_at)
    return [one for one in after if one != last]


@dataclass(frozen=True)
class PreviousVersion:
    """The version that was served before another version, and the source of this information."""

    version: str
    source: str


def previous_in_registry(uri: ModelURI, version: str, registry: "MlflowClient | None" = None) -> PreviousVersion | None:
    """Return the version that the stage had before `version`, except rolled-back ones. Aliases have no history."""
    if uri.kind != "stage":
        return None
    with registry_errors(f"model {uri.name}"):
        found = all_versions(registry or registry_client(), uri.name)
    candidates = [one for one in found if str(one.version) != version and ROLLED_BACK_TAG not in one.tags]
    lower = newest([one for one in candidates if selects(uri, one)])
    if lower is not None:
        return PreviousVersion(str(lower.version), f"it is the next in {uri.selector}")
    archived = [one for one in candidates if one.current_stage == "Archived"]
    if archived:
        last = max(archived, key=lambda one: (one.last_updated_timestamp or 0, int(one.version)))
        return PreviousVersion(str(last.version), "it was archived last")
    return None


def was_rolled_back(name: str, version: str, registry: "MlflowClient | None" = None) -> bool:
    """Return True if the version has the rolled-back tag. Raises NotFound if there is no such version."""
    with registry_errors(f"model {name} version {version}"):
        return ROLLED_BACK_TAG in (registry or registry_client()).get_model_version(name, version).tags


def rolled_back_refusal(model: str, version: str, place: StageOrAlias, tags: Mapping[str, str]) -> str:
    """Return why a rolled-back version is not promoted to a served stage or alias; empty if it may be promoted."""
    if not place.is_served_from or ROLLED_BACK_TAG not in tags:
        return ""
    return (
        f"{model} version {version} does not go to {place}, it was rolled back ({tags[ROLLED_BACK_TAG]}): "
        f"`onnxserve promote {model} {version} --to {place} --force --why TEXT` promotes it all the same, and takes "
        f"its tag {ROLLED_BACK_TAG} off"
    )
