"""The approved files of versions, which agents ask from MLflow's server, and the search
for changed files.

Only this server knows them: the audit trail has the approvals and the digests, and its
store may be unreachable for agents.
"""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from mlflow_deploy_plugin.core.errors import NotFound, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.approved_files import Approval, ChangedFiles
from mlflow_deploy_plugin.core.registry.policy import policy_from_tags
from mlflow_deploy_plugin.core.registry.tags import GATE_TAG, PASSED_STATES
from mlflow_deploy_plugin.core.settings import active_workspace
from mlflow_deploy_plugin.core.store.served_files import MOVES
from mlflow_deploy_plugin.promote.gate.approvals import approved_files, earlier_files
from mlflow_deploy_plugin.ui import access
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail
from mlflow_deploy_plugin.ui.guard import mlflow_stores, moves

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

_PAUSE_SECONDS = 600.0
"""The time after which this process reads the files of a model again, so that callers
cannot keep the artifact store busy.
"""


def version_approval(trail: AuditTrail, model: str, version: str) -> Approval:
    """Return the approval of a version. Raises NotFound, InvalidConfig for an invalid
    policy, and StoreUnavailable.
    """
    access.require_readable(model)
    with mlflow_stores.known_to_mlflow():
        registered, entry = mlflow_stores.model_and_version(model, version)
    policy = policy_from_tags(model, registered.tags)
    if policy is None and GATE_TAG not in entry.tags:
        return Approval()
    store = trail.store()
    verdict = moves.last_verdict(store.counted_events(model, MOVES), entry)
    judged = ""
    if verdict is not None and verdict.after in PASSED_STATES:
        judged = verdict.detail.get("files", "")
    files = approved_files(store, policy, entry) if policy is not None else ()
    if policy is None or policy.approvals is None:
        return Approval(files=tuple(filter(None, (judged, *files))), judged=judged)
    return Approval(
        is_required=True,
        files=files,
        earlier=earlier_files(store, entry),
        places=tuple(map(str, policy.gated_places)),
        judged=judged,
    )


class _Search(NamedTuple):
    """The result of a search, and the monotonic time of its end."""

    ended_at: float = -math.inf
    changed: Sequence[ChangedFiles] = ()


class ChangedFilesSearch:
    """The search for versions in gated places whose files are not the recorded files.
    One search runs at a time.
    """

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._lock = threading.Lock()
        self._last: defaultdict[tuple[str, str], _Search] = defaultdict(_Search)
        """The last search by workspace and model."""

    def find(self) -> list[ChangedFiles]:
        """Return the versions of the models that the caller may read. A result is used
        for `_PAUSE_SECONDS`.

        During another search, the last results are returned, because a caller must not
        wait for the artifact store.
        """
        readable = [model for model in mlflow_stores.gated_models() if access.may_read(model.name)]
        if self._lock.acquire(blocking=False):
            try:
                for model in readable:
                    last = self._last[_key(model)]
                    if time.monotonic() - last.ended_at > _PAUSE_SECONDS:
                        found = last.changed
                        with suppress(RegistryUnavailable):  # Slow files are not missing.
                            found = [*_changed_files(self._trail, model)]
                        self._last[_key(model)] = _Search(time.monotonic(), found)
            finally:
                self._lock.release()
        changed: list[ChangedFiles] = []
        for model in readable:
            changed += self._last[_key(model)].changed
        return changed


def _key(model: "RegisteredModel") -> tuple[str, str]:
    return active_workspace(), model.name


def _changed_files(trail: AuditTrail, model: "RegisteredModel") -> Iterator[ChangedFiles]:
    """Yield the versions in gated places that did not move there through this server,
    and those with recorded files, whose files are missing or others now. A model with
    an invalid policy is skipped. Raises RegistryUnavailable for files that are not read
    in time.
    """
    policy = moves.valid_policy(model)
    if policy is None:
        return
    for place, version, stay in moves.stays(trail.store(), model):
        if not policy.gates(place):
            continue
        changed = ChangedFiles(
            model=model.name, version=version, place=str(place), recorded=stay.files
        )
        if not stay.is_counted:
            yield changed.model_copy(update={"recorded": "", "is_outside": True})
        now = ""
        with suppress(NotFound):
            now = stay.files and mlflow_stores.files_digest(model.name, version)
        if now != stay.files:
            yield changed.model_copy(update={"now": now})
