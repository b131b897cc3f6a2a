"""The plan of a retraining, which is fixed when the retraining is requested, and the
functions that its steps share.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.processes.durable_work import read_plan
from mlflow_deploy_plugin.core.registry.tags import CANDIDATE_TAG, tag_version
from mlflow_deploy_plugin.core.settings import absolute_path
from mlflow_deploy_plugin.core.spec.monitors import RetrainSpec
from mlflow_deploy_plugin.core.spec.types import duration_seconds
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.retrainings import Retraining, Retrainings, WaitsFor
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.alerts.record import announce

TrainingMode = Literal["full", "incremental"]
RetrainingState = Literal[
    "waiting",
    "running",
    "registered",
    "gated",
    "rolling_out",
    "promoted",
    "proposed",
    "left",
    "rolled_back",
    "failed",
]
"""The first five states are live, and each is stored before the next state begins. The
last five states are final.
"""
TRAINING_FILES = ("data.parquet", "held_out.parquet")
"""The rows for the training, and the held-out rows for the evaluation of the new
version.
"""


@dataclass(frozen=True)
class RetrainPlan:
    """The plan of one retraining, whose settings are the fields of `RetrainSpec`.

    Attributes:
        base_version: the judged version, with which the new version is compared.
        timeout: in seconds.
        window: `START/END` of the training rows; empty for the latest complete window
            of length `every`.
        sample: a dumped `SampleSpec`.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    endpoint: str
    model: str
    base_version: str
    project: str
    entry_point: str
    mode: TrainingMode
    env_manager: str
    timeout: float
    then: str
    steps: str
    step_every: str
    every: str
    window: str = ""
    parameters: Json = field(default_factory=dict)
    min_requests: int = 100
    actor: str = ""
    sample: Json | None = None

    @property
    def base_uri(self) -> str:
        return f"models:/{self.model}/{self.base_version}"


_PLAN = TypeAdapter(RetrainPlan)
_COPIED = {
    "entry_point",
    "mode",
    "env_manager",
    "then",
    "steps",
    "step_every",
    "parameters",
    "min_requests",
}
"""The fields of the plan that are copied unchanged from the spec."""


def plan_for(
    spec: RetrainSpec,
    endpoint: str,
    model: str,
    version: str,
    every: str,
    window: Window | None,
    actor: str,
) -> RetrainPlan:
    """Return the plan of a retraining that starts from this version.

    `every` is the length of the monitor's windows. The training rows are those of
    `window`, or of the latest complete window if it is None.
    """
    folder = absolute_path(spec.project)
    copied = {*_COPIED, "sample"} if spec.mode == "incremental" else _COPIED
    return RetrainPlan(
        endpoint=endpoint,
        model=model,
        base_version=version,
        # Store a local folder as an absolute path, because the controller may run in
        # another folder.
        project=str(folder) if folder.is_dir() else spec.project,
        timeout=float(duration_seconds(spec.timeout)),
        every=every,
        window=str(window) if window is not None else "",
        actor=actor,
        **spec.model_dump(include=copied),
    )


def plan_of(retraining: Retraining) -> RetrainPlan:
    """Return the retraining's plan. Raises InvalidConfig if the format of the stored
    plan is not valid.
    """
    return read_plan(_PLAN, retraining.spec, "its plan")


def retraining_summary(retraining: Retraining) -> str:
    """Return a line about the state of the retraining, with the version and the reason
    if any.
    """
    try:
        mode = f", {plan_of(retraining).mode}"
    except InvalidConfig:  # List the retraining even if its plan cannot be read.
        mode = ""
    version = f" version {retraining.version}" if retraining.version else ""
    line = f"{retraining.endpoint}: retraining {retraining.id} of {retraining.model}{mode}: "
    line += f"{retraining.state.replace('_', ' ')}{version}"
    if retraining.reason:
        return f"{line}; {retraining.reason}"
    return line


@dataclass(frozen=True)
class RetrainingContext:
    """The functions that every step uses to store, delay, end and announce a
    retraining.
    """

    deployments: Deployments
    actor: str

    def now(self) -> datetime:
        return self.deployments.store.now()

    def write(
        self,
        changed: Retraining,
        event: AuditEvent | None = None,
        waits_for: WaitsFor = "",
    ) -> Retraining | None:
        """Store the retraining. Return None if another process has advanced the
        retraining in the meantime.
        """
        written = Retrainings(self.deployments.store).update(
            replace(changed, waits_for=waits_for),
            event,
        )
        if written is not None:
            self.deployments.progress(retraining_summary(written))
        return written

    def event(
        self,
        action: str,
        row: Retraining,
        before: str,
        after: str,
        why: str,
        detail: Json | None = None,
    ) -> AuditEvent:
        """Return an event of the audit trail about the retraining `row`, whose number
        is added to the detail.
        """
        return AuditEvent(
            at=self.now(),
            actor=self.actor,
            action=action,
            endpoint=row.endpoint,
            model=row.model,
            version=row.version,
            before=before,
            after=after,
            why=why,
            detail={"retraining": row.id} | (detail or {}),
        )

    def wait(self, retraining: Retraining, reason: str, waits_for: WaitsFor = "") -> None:
        """Store the reason why the retraining waits, unless the reason is unchanged."""
        if retraining.reason != reason:
            self.write(replace(retraining, reason=reason), waits_for=waits_for)

    def fail(self, retraining: Retraining, reason: str) -> None:
        """Announce the failure, and end the retraining."""
        self._announce(
            retraining,
            f"retraining {retraining.id} of {retraining.model} failed: {reason}",
        )
        self.end(retraining, "failed", reason)

    def finish(self, retraining: Retraining, state: RetrainingState, reason: str) -> None:
        """End the retraining without a rollout, and tag its version with the
        outcome.
        """
        tag_version(retraining.model, retraining.version, CANDIDATE_TAG, state)
        if state == "proposed":
            self._announce(
                retraining,
                f"{retraining.model} version {retraining.version} is proposed: {reason}",
            )
        self.end(retraining, state, reason)

    def end(self, retraining: Retraining, state: RetrainingState, reason: str) -> None:
        """End the retraining with an audit event. Delete the model's training rows,
        except after a failure.
        """
        detail = {"state": state, "run_id": retraining.run_id, "rollout": retraining.rollout_id}
        filled = {name: value for name, value in detail.items() if value not in ("", None)}
        event = self.event(
            "retrain.end",
            retraining,
            before="",
            after=state.replace("_", " "),
            why=reason,
            detail=filled,
        )
        written = self.write(
            replace(retraining, state=state, reason=reason, ended_at=event.at),
            event,
        )
        if written is not None:
            # Keep the rows of newer retrainings.
            last = retraining.id - 1 if state == "failed" else retraining.id
            for ended in Retrainings(self.deployments.store).find(model=retraining.model):
                # Delete the rows of all attempts. Keep their logs; MLflow has the
                # held-out rows.
                for file in self.folder(ended).parent.glob(f"{ended.id}-*/*"):
                    if ended.id <= last and file.name in TRAINING_FILES:
                        file.unlink(missing_ok=True)

    def folder(self, row: Retraining) -> Path:
        """Return the folder of the retraining's current attempt."""
        attempt = row.figures.attempt or 1
        return self.deployments.settings.home_path / "retrainings" / f"{row.id}-{attempt}"

    def _announce(self, row: Retraining, text: str) -> None:
        """Announce the text. Callers store the new state afterwards, so the
        announcement is repeated after a crash.
        """
        link = row.figures.gate_report or str(row.cause.get("report", ""))
        if not link.startswith(("http://", "https://")):
            link = ""
        text = f"{row.endpoint}: {text}"
        announce(self.deployments.store, row.endpoint, row.monitor, text, link)
