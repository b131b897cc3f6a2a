"""Audit events: the actor, subject and time of a change, the values before and after,
the reason and the figures.
"""

import getpass
import json
import socket
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from mlflow_deploy_plugin.core.spec.document import spec_document
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, VariantSpec
from mlflow_deploy_plugin.core.store.people import CURRENT_ACT
from mlflow_deploy_plugin.core.store.tables import (
    AuditRow,
    Base,
    Json,
    ValueT,
    from_row,
    storable_text,
)

LOGIN = "login"
"""The key in `Session.info` of the `Login` of this process."""
LOCK = "lock"
"""The key in `Session.info` of the seconds that the transaction waits for a lock."""
PENDING = "events"
"""The key in `Session.info` of the events that the transaction writes at its end."""
INTEND = "intend"
"""The action of the event before a change of a place that a policy gates."""
FAILED = "failed"
"""The action of the event that an intended change was not made."""
INTENTION = "intention"
"""The key of the number of an intention, in its detail and in the detail of its result.
"""
ACT = "act"
"""The key of the id of the promotion or rollback that an event belongs to."""
INTENDED = "intended"
"""The key of the intended action in the detail of an intention."""
AWAITED = "witnesses"
"""The key of the number of witnesses that an intention waits for, in its detail. The
intention is repeated with 0 before the change.
"""
_TEXTS = ("actor", "action", "endpoint", "model", "version", "before", "after", "why")


class Login(NamedTuple):
    """What onnxserve's app in MLflow's server knows about the writer of events.

    Attributes:
        user: the name of the authenticated user; empty without a login.
        registry: the name of the registry; empty without the app.
    """

    user: str = ""
    registry: str = ""


@dataclass(frozen=True)
class AuditEvent:
    """A change.

    Attributes:
        actor: the user that a server has authenticated, otherwise user@machine.
        action: create update delete start stop traffic transition alias register
            promote gate request approve decline refused rollout.start rollout.step
            rollout.end rollback retrain.start retrain.refused retrain.run
            retrain.version retrain.end copy monitor.pause monitor.resume
            monitor.accept seal adopt gap hold release erase intend failed outside.
        model / version: set for changes of a registered model.
        before / after: texts of the values before and after the change.
        detail: the resulting spec, the figures of the decision, or the `move_detail` of
            a move in the registry. The key `registry` has the name of the writer's
            registry, if it is known.
    """

    at: datetime
    actor: str
    action: str
    endpoint: str = ""
    model: str = ""
    version: str = ""
    before: str = ""
    after: str = ""
    why: str = ""
    detail: Json = field(default_factory=dict, hash=False)

    @property
    def ends_model(self) -> bool:
        """True if events before this one are about another model of the same name."""
        return self.action in ("rename", "delete") and not self.endpoint


EVENT_FIELDS = tuple(field.name for field in fields(AuditEvent))


def event_of(row: Any) -> AuditEvent:
    """Return the event of a row, or of an event with further fields. Its detail is
    empty if another writer of the store has written no object.
    """
    values = row_values(row)
    if not isinstance(row.detail, dict):
        values["detail"] = {}
    return AuditEvent(**values)


def canonical_json(document: object) -> str:
    """Return the text that is hashed or signed, which is the same before and after a
    database has stored the document as JSON.
    """
    stored = json.loads(json.dumps(document))
    return json.dumps(stored, sort_keys=True, separators=(",", ":"))


def row_values(event: Any) -> Json:
    """Return the fields of an event by their names."""
    return {name: getattr(event, name) for name in EVENT_FIELDS}


def event_json(event: Any) -> str:
    """Return the text of a stored event that is hashed. The format never changes."""
    at = event.at.astimezone(UTC).isoformat(timespec="microseconds")
    return canonical_json(row_values(event) | {"at": at})


def settle(events: Sequence[AuditEvent]) -> Iterator[AuditEvent]:
    """Yield the events of a model with the result of each intention in the place of the
    intention, or of its repetition, unless it failed.

    An intention without a result counts as the change, because MLflow's server may have
    stopped after the change.
    """
    intentions = {event.detail[INTENTION]: event for event in events if event.action == INTEND}
    results = {event.detail.get(INTENTION): event for event in events if event.action != INTEND}
    for event in events:
        number = event.detail.get(INTENTION)
        if event is intentions.get(number):
            change = results.get(number) or replace(event, action=event.detail[INTENDED])
            if change.action != FAILED:
                yield change
        elif number not in intentions:
            yield event


def is_of_registry(event: AuditEvent, registry: str) -> bool:
    """Return False for an event that names another registry. An empty `registry` is
    unknown.
    """
    return not registry or event.detail.get("registry", registry) == registry


def move_detail(place: str, before: str, files: str | None = None) -> Json:
    """Return the event detail for a move to a stage, @alias or tag.

    Args:
        before: the replaced version, or empty.
        files: the digest of the files of the moved version
            (`core.mlmodel.combine_hashes`), or empty if they cannot be read. None if
            the event is not by MLflow's server, which has an event of its own for the
            move.
    """
    move: Json = {"place": place, "before": before}
    if files is not None:
        move["files"] = files
    return {"moved": move}


def current_actor() -> str:
    """Return the user of the operating system as user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # In a container, the user id may have no name.
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def write_event(session: Session, event: AuditEvent) -> None:
    """Write the event at the end of the transaction (`audit_tree.append_events`)."""
    session.info.setdefault(PENDING, []).append(event_row(session, event))


def event_row(session: Session, event: AuditEvent) -> AuditRow:
    """Return the row of an event. Characters that cannot be stored are replaced,
    because an event must never be rejected.

    If the actor is this process's user under the name of a login, the detail `machine`
    has the name user@machine.
    """
    login: Login = session.info[LOGIN]
    machine = current_actor()
    detail = event.detail
    if login.user == event.actor != machine:
        detail = {**detail, "machine": machine}
    if login.registry:
        detail = {**detail, "registry": login.registry}
    if act := CURRENT_ACT.get():
        detail = {**detail, ACT: act}
    columns = AuditRow.__table__.columns
    texts = {
        name: storable_text(
            getattr(event, name),
            getattr(columns[name].type, "length", None),
        )
        for name in _TEXTS
    }
    return AuditRow(at=event.at, detail=detail, **texts)


def save_row(
    session: Session,
    row: Base,
    kind: type[ValueT],
    event: AuditEvent | None = None,
) -> ValueT:
    """Write the row and its event. Return the row as a dataclass with the values that
    the database has set.
    """
    session.add(row)
    session.flush()
    if event is not None:
        write_event(session, event)
    return from_row(row, kind)


def describe_traffic(spec: EndpointSpec) -> str:
    """Return an endpoint's variants in one line: `champion: models:/X/3 (95 %),
    candidate: models:/X/4 (shadow)`.
    """
    return ", ".join(
        f"{name}: {variant.model} ({'shadow' if variant.shadow else f'{variant.weight} %'})"
        for name, variant in spec.variants.items()
    )


def _share(variant: VariantSpec) -> str:
    return "shadow" if variant.shadow else str(variant.weight)


def describe_change(before: EndpointSpec, after: EndpointSpec) -> tuple[str, str]:
    """Return the changed parts before and after, such as `champion 100, candidate 0`
    and `champion 95, candidate 5`.

    A variant is listed with its model if the model changed, an added or removed monitor
    with its kind and fields, and any other field with its dotted name.
    """
    return _describe_differences(before, after), _describe_differences(after, before)


def _describe_differences(spec: EndpointSpec, other: EndpointSpec) -> str:
    """Return the parts of a spec that differ in the other spec."""
    changed = spec.monitors.keys() ^ other.monitors.keys()
    texts = []
    for name, variant in spec.variants.items():
        compared = other.variants.get(name)
        if compared is None or compared.model != variant.model:
            texts.append(f"{name} {variant.model} {_share(variant)}")
        elif _share(compared) != _share(variant):
            texts.append(f"{name} {_share(variant)}")
    monitors = spec_document(spec).get("monitors", {})
    for name in sorted(changed & spec.monitors.keys()):
        monitor_fields = dict(_flat(monitors[name]))
        kind = monitor_fields.pop("kind", spec.monitors[name].kind)
        texts.append(
            f"monitor {name} {kind}"
            + "".join(f" {field} {value}" for field, value in monitor_fields.items())
        )
    fields = _other_fields(spec, changed)
    other_fields = _other_fields(other, changed)
    for name in sorted({*fields, *other_fields}):
        value = fields.get(name, "not set")
        if value != other_fields.get(name, "not set"):
            texts.append(f"{name} {value}")
    return ", ".join(texts)


def _other_fields(spec: EndpointSpec, shown_monitors: Set[str]) -> dict[str, object]:
    """Return the fields that are not default, by dotted name, without the traffic and
    without `shown_monitors`.
    """
    document = spec_document(spec)
    for name in shown_monitors & spec.monitors.keys():
        del document["monitors"][name]
    for variant in document.get("variants", {}).values():
        for field_name in ("model", "weight", "shadow"):
            variant.pop(field_name, None)
    if spec.serve.steps:
        document["serve"] = {"steps": f"sha256 {spec.serve.digest[:12]}"}
    return dict(_flat(document))


def _flat(document: Json, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield prefix + key, ",".join(map(str, value))
        else:
            yield prefix + key, value
