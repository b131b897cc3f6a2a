"""The files of a version that may be served, if its model requires approvals."""

from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.core.store.served_files import served_files
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.promote.gate.approvals import (
    COMPLETE,
    approval_status,
    promotion_requests,
    subject_of,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def approved_files(
    store: Store,
    policy: GatePolicy,
    version: "ModelVersion",
) -> tuple[str, ...]:
    """Return the digests of the files of the version that may be served, if the policy
    requires approvals.

    These are the files of promotions with all approvals, also before the version is
    moved, and the files with which the version moved to a gated place. The former come
    first, because they are newer. Raises StoreUnavailable.
    """
    name = version.name
    number = str(version.version)
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
    """Return the digests of the files of the version that once had all approvals,
    newest first.

    The request may have lapsed, or may have been declined or replaced since. Raises
    StoreUnavailable.
    """
    created = int(version.creation_timestamp)
    events = reversed(store.counted_events(version.name, ("approve",)))
    subjects = filter(None, (event.detail.get(COMPLETE) for event in events))
    matching = [
        entry
        for entry in subjects
        if (entry["version"], entry["created"]) == (str(version.version), created)
    ]
    return tuple(dict.fromkeys(entry["files"] for entry in matching))
