"""The files with which versions moved to stages and aliases, as events of MLflow's server in the audit trail.

A version may return to a place, and stay there, only with these files. Tags are not read, because the people who may
edit a model can replace its files.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.gate.approvals import COMPLETE, approval_status, promotion_requests, subject_of
from mlflow_deploy_plugin.gate.policy import GatePolicy
from mlflow_deploy_plugin.store.audit import AuditEvent
from mlflow_deploy_plugin.store.store import Store
from mlflow_deploy_plugin.store.tables import Json

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SERVED = "served"
"""The key of the list of `served_entry` in the detail of an event that sets a policy or renames a model."""
_ACTIONS = ("transition", "alias", "tag", "rename", "delete")


def served_entry(version: str, place: str, files: str) -> Json:
    return {"version": version, "place": place, "files": files}


def served_files(store: Store, model: str, version: str, place: str) -> str:
    """Return the digest of the files with which the version last moved to the stage or @alias.

    Return an empty text if there is no such move, or if the files could not be read then. Raises StoreUnavailable.
    """
    for event in store.events(model=model, actions=_ACTIONS, newest_first=True):
        for entry in _entries(event):
            if entry["version"] == version and entry["place"].lower() == place.lower():
                return str(entry["files"])
        if event.action in ("rename", "delete") and not event.endpoint:
            break  # Earlier versions belong to a different model.
    return ""


def approved_files(store: Store, policy: GatePolicy, version: "ModelVersion") -> tuple[str, ...]:
    """Return the digests of the files of the version that may be served, if the policy requires approvals.

    These are the files of promotions with all approvals, also before the version is moved, and the files with which the
    version moved to a gated place. The former come first, because they are newer. Raises StoreUnavailable.
    """
    name, number = version.name, str(version.version)
    requests = [request for request in promotion_requests(store, name) if request.version == number]
    approved: list[str] = []
    served: list[str] = []
    for place in policy.gated_places:
        for request in requests:
            subject = subject_of(version, place, request.subject.files, policy)
            required = policy.approvals_for(place)
            if required is None or request.subject.key != subject.key:
                continue
            if approval_status(required, request, subject, store.now()).is_complete:
                approved.append(subject.files)
        served.append(served_files(store, name, number, str(place)))
    return tuple(dict.fromkeys(filter(None, [*approved, *served])))


def earlier_files(store: Store, version: "ModelVersion") -> tuple[str, ...]:
    """Return the digests of the files of the version that once had all approvals, newest first.

    The request may have lapsed, or may have been declined or replaced since. Raises StoreUnavailable.
    """
    created = int(version.creation_timestamp)
    events = store.events(model=version.name, actions=("approve",), newest_first=True)
    subjects = filter(None, (event.detail.get(COMPLETE) for event in events))
    known = [entry for entry in subjects if (entry["version"], entry["created"]) == (str(version.version), created)]
    return tuple(dict.fromkeys(entry["files"] for entry in known))


def _entries(event: AuditEvent) -> Iterator[Json]:
    yield from event.detail.get(SERVED, ())
    moved = event.detail.get("moved", {})
    if "files" in moved:
        yield served_entry(event.version, moved["place"], moved["files"])
