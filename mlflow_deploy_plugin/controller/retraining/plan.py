"""The plan of a retraining, made once when it is asked for and never changed; and the context of its steps."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from mlflow_deploy_plugin.controller.work import read_plan
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log import Window
from mlflow_deploy_plugin.monitoring.alerts.record import announce
from mlflow_deploy_plugin.registry.tags import CANDIDATE_TAG, tag_version
from mlflow_deploy_plugin.settings import absolute_path
from mlflow_deploy_plugin.spec import duration_seconds
from mlflow_deploy_plugin.spec.monitors import RetrainSpec
from mlflow_deploy_plugin.store import AuditEvent, Json, Retraining, Retrainings
from mlflow_deploy_plugin.store.retrainings import WaitsFor

TrainingMode = Literal["full", "incremental"]
RetrainingState = Literal[
    "waiting", "running", "registered", "gated", "rolling_out", "promoted", "proposed", "left", "rolled_back", "failed"
]
"""The first five are live, and each is stored before the next begins; the others are final."""
TRAINING_FILES = ("data.parquet", "held_out.parquet")
"""The rows that a training learns, and the rows that judge its version."""


@dataclass(frozen=True)
class RetrainPlan:
    """The plan of one retraining.

    Attributes:
        base_version: the model's version that was judged; the new version is compared with it.
        project / entry_point / mode / parameters / env_manager: of `mlflow run`.
        timeout: the seconds that the run may take.
        then / steps / step_every: the deployment of a version that passes its gate.
        min_requests: the requests that the new version has to answer in each step of its rollout.
        window: `START/END`, whose labelled rows are learned; empty: the latest whole window of length `every`.
        actor: the user in the audit trail.
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

    @property
    def base_uri(self) -> str:
        return f"models:/{self.model}/{self.base_version}"


_PLAN = TypeAdapter(RetrainPlan)
_COPIED = {"entry_point", "mode", "env_manager", "then", "steps", "step_every", "parameters", "min_requests"}
"""The fields that a plan has as they are in the spec."""


def plan_for(
    spec: RetrainSpec, endpoint: str, model: str, version: str, every: str, window: Window | None, actor: str
) -> RetrainPlan:
    folder = absolute_path(spec.project)
    return RetrainPlan(
        endpoint=endpoint,
        model=model,
        base_version=version,
        # a folder of this machine by its whole path: a controller may run in another one
        project=str(folder) if folder.is_dir() else spec.project,
        timeout=float(duration_seconds(spec.timeout)),
        every=every,
        window=str(window) if window is not None else "",
        actor=actor,
        **spec.model_dump(include=_COPIED),
    )


def plan_of(retraining: Retraining) -> RetrainPlan:
    """Return the retraining's plan. Raises as `read_plan`."""
    return read_plan(_PLAN, retraining.spec, "its plan")


def retraining_summary(retraining: Retraining) -> str:
    try:
        mode = f", {plan_of(retraining).mode}"
    except InvalidConfig:  # it is ended for that; the list still shows it
        mode = ""
    version = f" version {retraining.version}" if retraining.version else ""
    line = f"{retraining.endpoint}: retraining {retraining.id} of {retraining.model}{mode}: "
    line += f"{retraining.state.replace('_', ' ')}{version}"
    return f"{line}; {retraining.reason}" if retraining.reason else line


@dataclass(frozen=True)
class RetrainingContext:
    """The functions that every step uses to store, delay, end and announce a retraining."""

    deployments: Deployments
    actor: str

    def now(self) -> datetime:
        return self.deployments.store.now()

    def write(
        self, changed: Retraining, event: AuditEvent | None = None, waits_for: WaitsFor = ""
    ) -> Retraining | None:
        """Store it. Return None if another process has advanced it meanwhile."""
        written = Retrainings(self.deployments.store).update(replace(changed, waits_for=waits_for), event)
        if written is not None:
            self.deployments.progress(retraining_summary(written))
        return written

    def event(self, action: str, one: Retraining, before: str, after: str, why: str, detail: Json) -> AuditEvent:
        named = {"retraining": one.id, **detail}
        return AuditEvent(
            self.now(), self.actor, action, one.endpoint, one.model, one.version, before, after, why, named
        )

    def wait(self, one: Retraining, reason: str, waits_for: WaitsFor = "") -> None:
        """Store the reason why it waits, once for the same reason."""
        if one.reason != reason:
            self.write(replace(one, reason=reason), waits_for=waits_for)

    def fail(self, one: Retraining, reason: str) -> None:
        self._announce(one, f"retraining {one.id} of {one.model} has failed: {reason}")
        self.end(one, "failed", reason)

    def finish(self, one: Retraining, state: RetrainingState, reason: str) -> None:
        """End it without a rollout of its version; the version gets a tag with the outcome."""
        tag_version(one.model, one.version, CANDIDATE_TAG, state)
        if state == "proposed":
            self._announce(one, f"{one.model} version {one.version} is proposed: {reason}")
        self.end(one, state, reason)

    def end(self, one: Retraining, state: RetrainingState, reason: str) -> None:
        """End it, with its audit event. Delete rows of the model's trainings; a failed one keeps its own."""
        detail = {"state": state, "run_id": one.run_id, "rollout": one.rollout_id}
        given = {name: value for name, value in detail.items() if value not in ("", None)}
        event = self.event("retrain.end", one, "", state.replace("_", " "), reason, given)
        written = self.write(replace(one, state=state, reason=reason, ended_at=event.at), event)
        if written is not None:
            last = one.id - 1 if state == "failed" else one.id  # a further one may have begun meanwhile
            for ended in Retrainings(self.deployments.store).find(model=one.model):
                if ended.id <= last:
                    for name in TRAINING_FILES:  # the log stays, and MLflow has the held-out rows
                        for file in self.folder(one).parent.glob(f"{ended.id}-*/{name}"):  # of each attempt
                            file.unlink(missing_ok=True)

    def folder(self, one: Retraining) -> Path:
        return self.deployments.settings.home_path / "retrainings" / f"{one.id}-{one.figures.attempt or 1}"

    def _announce(self, one: Retraining, text: str) -> None:
        """Announce it once, and before it is stored, so that no announcement is lost."""
        link = one.figures.gate_report or str(one.cause.get("report", ""))
        is_page = link.startswith(("http://", "https://"))
        announce(self.deployments.store, one.endpoint, one.monitor, f"{one.endpoint}: {text}", link if is_page else "")
