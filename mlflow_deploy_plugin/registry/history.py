"""The audit trail of an endpoint, together with that of the models it serves: who, what, when, from, to, why."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.registry.model_uri import registered_model_names

if TYPE_CHECKING:
    from mlflow_deploy_plugin.store import AuditEvent, Store

STARTED_AT = "begun"
"""The key in the detail of a promotion's or a rollback's event for the time of its start; `at` is that of its end."""
_STEPS = ("gate", "tag", "transition", "alias")


def event_history(store: "Store", endpoint: str | None, model: str | None, limit: int | None) -> "list[AuditEvent]":
    """Return the events, oldest first; with `limit` the newest ones.

    The events of an endpoint include those of the registered models that it serves, unless `model` names one.
    """
    if endpoint is None or model is not None:
        return store.events(endpoint, model, limit)
    found = store.events(endpoint, None, limit)
    # an event of a model that names an endpoint belongs to that endpoint's trail
    for name in models_served_by(store, endpoint) or ():
        found += [event for event in store.events(None, name, limit) if not event.endpoint]
    ordered = sorted(found, key=lambda event: event.at)
    return ordered[-limit:] if limit is not None else ordered


def without_step_events(events: "Sequence[AuditEvent]") -> "list[AuditEvent]":
    """Leave out the steps of a promotion or a rollback, which has an event of its own.

    The steps are the run of the gate, the tags of its verdict, and the move as MLflow's server saw it.
    """
    acts = [(datetime.fromisoformat(start), event) for event in events if (start := event.detail.get(STARTED_AT))]

    def is_step(event: "AuditEvent") -> bool:
        return event.action in _STEPS and any(
            start <= event.at <= act.at and (act.model, act.version) == (event.model, event.version)
            for start, act in acts
        )

    return [event for event in events if not is_step(event)]


def event_as_json(event: "AuditEvent") -> str:
    """Return the fields of the event as one line of JSON."""
    return json.dumps({**asdict(event), "at": event.at.isoformat()}, ensure_ascii=False, default=str)


def models_served_by(store: "Store", endpoint: str) -> list[str] | None:
    """Return the registered models that an endpoint serves; for a deleted or emptied one, those it served last.

    The result is None if they are unknown: a newer onnxserve has written the spec, or the trail has no spec.
    """
    spec = next((one.spec for one in store.endpoints() if one.name == endpoint), None)
    if spec is None or not spec.variants:
        from mlflow_deploy_plugin.spec import load_specs  # imported late: pydantic and YAML take a tenth of a second

        spec = None
        for event in reversed(store.events(endpoint)):
            if text := event.detail.get("spec"):
                try:
                    spec = load_specs(text, may_be_empty=True)[0]
                except InvalidConfig:
                    return None
                if spec.variants:
                    break
    return registered_model_names(spec) if spec is not None else None
