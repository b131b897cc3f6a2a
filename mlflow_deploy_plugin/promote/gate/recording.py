"""Records of verdicts: the tags of a version and an event in the audit trail.

MLflow's server with onnxserve writes both, because it refuses changes of these tags by
its callers. It compares the files of the version, the policy and the report with the
record, and names the account that sent it. Without the app, this process writes both.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlflow_deploy_plugin.core.errors import GateRefused
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.connection import (
    app_document,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.core.store.store import Store

PATH = "/onnxserve/verdicts"
_DETAILS = {"report", "run_id", "policy", "files", "policy_digest", "report_digest", "checks"}
_SECONDS = 600
"""The timeout of a request. The server may have to read all files of a version."""


class VerdictRecord(BaseModel):
    """A verdict of the gate on the files of a version, or a forced promotion of these
    files.

    Attributes:
        files: the digest of all files (`core.mlmodel.combine_hashes`).
        policy: the origin of the policy.
        policy_digest: the digest of the policy.
        against: the compared version, or empty.
        at: the time of the verdict in ISO 8601.
        report: the URL of the report; empty without a report.
        run_id: the MLflow run of the report; empty without a report.
        report_digest: the SHA-256 of the report; empty without a report.
        checks: the state and the figures of each check.
        actor: the name of the person.
        machine: user@machine of the process that judged the version.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    state: tags.VerdictState | Literal["forced"]
    reason: str
    files: str
    policy: str = ""
    policy_digest: str = ""
    against: str = ""
    at: str = ""
    report: str = ""
    run_id: str = Field(default="", pattern="^([0-9a-f]{32})?$")
    report_digest: str = ""
    checks: dict[str, dict[str, Any]] = {}
    actor: str = ""
    machine: str = ""

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags in the order in which they replace an earlier verdict. The
        last one makes it valid.
        """
        verdict = {tags.GATE_TAG: self.state, tags.GATE_DIGEST_TAG: self.files}
        reason = {tags.GATE_REASON_TAG: self.reason[: tags.MAX_TAG_LENGTH]}
        if self.state == "forced":
            return reason | verdict
        details = {
            tags.GATE_REPORT_TAG: self.report,
            tags.GATE_AT_TAG: self.at,
            tags.GATE_AGAINST_TAG: self.against,
            tags.GATE_POLICY_DIGEST_TAG: self.policy_digest,
        }
        return details | reason | verdict

    def tags_after(self, earlier: Mapping[str, str]) -> dict[str, str]:
        """Return the tags in the order in which they are set on a version with the tags
        `earlier`.

        The digest of a first verdict is set first, because a verdict without a digest
        asks for another gate.
        """
        if tags.GATE_TAG in earlier:
            return self.tags
        return {tags.GATE_DIGEST_TAG: self.files} | self.tags

    def require_new(self, store: Store) -> None:
        """Raise GateRefused if a verdict with this report is recorded, because a
        repeated verdict would replace a later failure.
        """
        reports = {self.run_id, self.report_digest} - {""}
        for event in store.events(model=self.model, actions=("gate",)):
            known = map(event.detail.get, ("run_id", "report_digest"))
            if event.version == self.version and not reports.isdisjoint(known):
                raise GateRefused(
                    f"the verdict on {self.model} version {self.version} with this report is "
                    "recorded already; run the gate again"
                )

    def record(
        self,
        store: Store,
        actor: str,
        is_tagged: bool,
        **more: str | int,
    ) -> None:
        """Write the event. `more` is added to its detail."""
        detail = self.model_dump(include=_DETAILS)
        store.record(
            "gate",
            model=self.model,
            version=self.version,
            before=self.against,
            after=self.state,
            why=self.reason,
            detail={"tagged": is_tagged, **detail, **more},
            actor=actor,
        )


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that JSON can contain."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def write_verdict(record: VerdictRecord, store: Store) -> None:
    """Write the verdict through MLflow's server or, if the server does not run the app,
    from this process.

    If `store` is not the store of MLflow's server, the event is written to both. Raises
    GateRefused if the files, the policy or the report have changed, ScopeMissing,
    NotFound, RegistryUnavailable and StoreUnavailable.
    """
    document = record.model_dump(mode="json")
    answer = app_document(
        f"the verdict on {record.model} version {record.version}",
        PATH,
        "POST",
        {},
        _SECONDS,
        document,
        is_optional=True,
    )
    is_written = answer is not None
    if not is_written:
        with registry_errors(f"model {record.model} version {record.version}"):
            earlier = registry_client().get_model_version(record.model, record.version).tags
        for key, value in record.tags_after(earlier).items():
            tags.tag_version(record.model, record.version, key, value)
    if record.state == "forced":  # The promotion has an event of its own.
        return
    if is_written:
        # `store` may be the store of MLflow's server, which has the event then.
        events = store.events(model=record.model, actions=("gate",), newest_first=True)
        newest = next((event for event in events if event.version == record.version), None)
        if newest is not None and newest.detail["run_id"] == record.run_id:
            return
    record.record(store, record.actor, is_tagged=True)
