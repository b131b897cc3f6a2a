"""The plan of a retraining, made once when it is asked for and never changed; its cause, and its audit events."""

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from mlflow_deploy_plugin.inference_log import Window, parse_window
from mlflow_deploy_plugin.monitoring import MonitorResult
from mlflow_deploy_plugin.registry import LoggedRun
from mlflow_deploy_plugin.spec import RetrainSpec, duration_seconds
from mlflow_deploy_plugin.store import AuditEvent, Retraining

TrainingMode = Literal["full", "incremental"]
RetrainingState = Literal[
    "waiting", "running", "registered", "gated", "rolling_out", "promoted", "proposed", "left", "rolled_back", "failed"
]
"""The first five are live, each is written down before the next begins; the others end it."""


@dataclass(frozen=True)
class RetrainPlan:
    """The plan of one retraining.

    Attributes:
        base_version: the model's version that was judged; the new version is compared with it.
        project / entry_point / mode / parameters / env_manager: of `mlflow run`.
        timeout: the seconds that the run may take.
        then / steps / step_every: say how a version that passes its gate is deployed.
        min_requests: the requests that the new version has to answer in each step of its rollout.
        window: `START/END`, its labelled rows are learned; empty: the latest whole one of length `every`.
        actor: stands in the audit trail for it.
    """

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
    parameters: dict[str, Any] = field(default_factory=dict)
    min_requests: int = 100
    actor: str = ""

    @property
    def base_uri(self) -> str:
        return f"models:/{self.model}/{self.base_version}"

    def asked_window(self) -> Window | None:
        return parse_window(self.window) if self.window else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> "RetrainPlan":
        return RetrainPlan(**document)


def plan_for(
    spec: RetrainSpec, endpoint: str, model: str, version: str, every: str, window: Window | None, actor: str
) -> RetrainPlan:
    """Return the plan of a monitor's spec."""
    folder = Path(spec.project).expanduser()
    return RetrainPlan(
        endpoint=endpoint,
        model=model,
        base_version=version,
        # a folder of this machine by its whole path: a controller may run in another one
        project=str(folder.absolute()) if folder.is_dir() else spec.project,
        entry_point=spec.entry_point,
        mode=spec.mode,
        env_manager=spec.env_manager,
        timeout=float(duration_seconds(spec.timeout)),
        then=spec.then,
        steps=spec.steps,
        step_every=spec.step_every,
        every=every,
        window=str(window) if window is not None else "",
        parameters=dict(spec.parameters),
        min_requests=spec.min_requests,
        actor=actor,
    )


def plan_of(retraining: Retraining) -> RetrainPlan:
    return RetrainPlan.from_json(retraining.spec)


def cause_of(result: MonitorResult, run: LoggedRun) -> dict[str, Any]:
    """Return the result that causes a retraining, with its report."""
    return {
        "kind": "alarm",
        "monitor": result.monitor,
        "monitor_kind": result.kind,
        "window": str(result.window),
        "revision": result.revision,
        "verdict": result.state,
        "version": result.version,
        "run_id": run.run_id,
        "report": run.url or f"run {run.run_id}",
        "why": f"monitor {result.monitor}, {result.window}: {result.state}: {result.reason}",
    }


def started_event(plan: RetrainPlan, cause: dict[str, Any], now: datetime) -> AuditEvent:
    """Return the event of a retraining's beginning, with its cause."""
    event = _event("retrain.start", plan, "", plan.actor, now, cause["why"], _cause_detail(cause))
    return replace(event, before=f"version {plan.base_version}", after=f"{plan.mode} training")


def refused_event(plan: RetrainPlan, cause: dict[str, Any], why: str, now: datetime) -> AuditEvent:
    """Return the event of an alarm that starts nothing."""
    return _event("retrain.refused", plan, "", plan.actor, now, why, _cause_detail(cause))


def run_event(retraining: Retraining, actor: str, now: datetime) -> AuditEvent:
    """Return the event of the run that trains."""
    figures = retraining.figures
    names = ("held_out_rows", "window", "attempt")
    detail = {"retraining": retraining.id} | {name: figures[name] for name in names if name in figures}
    plan = plan_of(retraining)
    why = f"retraining {retraining.id} learns {figures['rows']:,} labelled rows up to {figures['window'].split('/')[1]}"
    event = _event("retrain.run", plan, "", actor, now, why, detail)
    return replace(event, before=f"version {plan.base_version}", after=f"run {retraining.run_id}")


def version_event(retraining: Retraining, actor: str, now: datetime) -> AuditEvent:
    """Return the event of the version that the run registered."""
    plan = plan_of(retraining)
    why = f"run {retraining.run_id} of retraining {retraining.id} has registered it"
    event = _event("retrain.version", plan, retraining.version, actor, now, why, {"retraining": retraining.id})
    return replace(event, before=f"version {plan.base_version}", after=f"version {retraining.version}")


def ended_event(retraining: Retraining, actor: str, now: datetime) -> AuditEvent:
    """Return the event of the end."""
    plan, detail = plan_of(retraining), {"retraining": retraining.id, "state": retraining.state}
    if retraining.run_id:
        detail |= {"run_id": retraining.run_id}
    if retraining.rollout_id is not None:
        detail |= {"rollout": retraining.rollout_id}
    event = _event("retrain.end", plan, retraining.version, actor, now, retraining.reason, detail)
    return replace(event, after=retraining.state.replace("_", " "))


def retraining_summary(retraining: Retraining) -> str:
    """Return the retraining's state in one line."""
    plan = plan_of(retraining)
    version = f" version {retraining.version}" if retraining.version else ""
    line = f"{retraining.endpoint}: retraining {retraining.id} of {plan.model}, {plan.mode}: "
    line += f"{retraining.state.replace('_', ' ')}{version}"
    return f"{line}; {retraining.reason}" if retraining.reason else line


def _cause_detail(cause: dict[str, Any]) -> dict[str, Any]:
    return {key: cause[key] for key in ("monitor", "window", "verdict", "report") if cause.get(key)}


def _event(
    action: str, plan: RetrainPlan, version: str, actor: str, now: datetime, why: str, detail: dict[str, Any]
) -> AuditEvent:
    return AuditEvent(now, actor, action, plan.endpoint, plan.model, version, why=why, detail=detail)
