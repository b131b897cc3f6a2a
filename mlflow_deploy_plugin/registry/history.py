"""The audit trail of an endpoint together with that of the models it serves: who, what, when, from, to, why."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.registry.model_uri import registered_model_names
from mlflow_deploy_plugin.spec import EndpointSpec, load_specs
from mlflow_deploy_plugin.store import AuditEvent, Store

STARTED_AT = "begun"
"""The key of an event's detail under which a promotion or a rollback says when it began; it is recorded at its end."""
_PARTS = ("gate", "tag", "transition", "alias")


def history(store: Store, endpoint: str | None, model: str | None, limit: int | None) -> list[AuditEvent]:
    """What happened, oldest first; with `limit` the newest of it.

    Of an endpoint: also what happened to the registered models that it serves, unless `model` names one.
    """
    if endpoint is None or model is not None:
        return store.events(endpoint, model, limit)
    found = store.events(endpoint, None, limit)
    # what was done to a model for an endpoint stands in that endpoint's trail
    for name in models_served_by(store, endpoint) or ():
        found += [event for event in store.events(None, name, limit) if not event.endpoint]
    ordered = sorted(found, key=lambda event: event.at)
    return ordered[-limit:] if limit is not None else ordered


def without_step_events(events: Sequence[AuditEvent]) -> list[AuditEvent]:
    """Return the events without the parts of a promotion or a rollback, which has an event of its own: the gate's run,
    its verdict's tags and the move that MLflow's server saw.
    """
    acts = [(datetime.fromisoformat(event.detail[STARTED_AT]), event) for event in events if STARTED_AT in event.detail]

    def is_part(event: AuditEvent) -> bool:
        return event.action in _PARTS and any(
            begun <= event.at <= act.at and (act.model, act.version) == (event.model, event.version)
            for begun, act in acts
        )

    return [event for event in events if not is_part(event)]


def event_as_json(event: AuditEvent) -> str:
    """One line, with the fields of `AuditEvent`."""
    return json.dumps({**asdict(event), "at": event.at.isoformat()}, ensure_ascii=False, default=str)


def models_served_by(store: Store, endpoint: str) -> list[str] | None:
    """The registered models that an endpoint serves; of one that was emptied or deleted, those that it served last.

    None where nobody can tell: another onnxserve has written the spec, or no spec was ever written down.
    """
    spec = next((one.spec for one in store.endpoints() if one.name == endpoint), None)
    if spec is None or not spec.variants:
        spec = _last_spec(store, endpoint)
    return registered_model_names(spec) if spec is not None else None


def _last_spec(store: Store, endpoint: str) -> EndpointSpec | None:
    """The newest in the trail with a variant, where there is one. None speaks for a newer one that cannot be read."""
    spec = None
    for event in reversed(store.events(endpoint)):
        if text := event.detail.get("spec"):
            try:
                spec = load_specs(text, may_be_empty=True)[0]
            except InvalidConfig:
                return None
            if spec.variants:
                break
    return spec
