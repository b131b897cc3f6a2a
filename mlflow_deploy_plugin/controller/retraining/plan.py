"""What a retraining is to do, decided once when it is asked for and never changed, and what caused it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlflow_deploy_plugin.inference_log.windows import Window, parse_window
from mlflow_deploy_plugin.monitoring.judgement import Judgement
from mlflow_deploy_plugin.registry.runs import LoggedRun
from mlflow_deploy_plugin.spec import RetrainSpec, duration_seconds

TrainingMode = Literal["full", "incremental"]
RetrainingState = Literal[
    "waiting", "running", "registered", "gated", "rolling_out", "promoted", "proposed", "left", "rolled_back", "failed"
]
"""The first five are live, each is written down before the next begins; the others end it."""


@dataclass(frozen=True)
class RetrainPlan:
    """One retraining.

    Attributes:
        base_version: of the model, that was judged: what the new one is compared with.
        project / entry_point / mode / parameters / env_manager: of `mlflow run`.
        timeout: seconds that the run may take.
        then / steps / step_every: what is done with a version that passes its gate.
        min_requests: that the new version has to answer in each step.
        window: whose labelled rows are learned, as `START/END`; empty: the latest whole one of length `every`.
        actor: who stands in the audit trail for it.
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
    """The plan of a monitor's spec."""
    return RetrainPlan(
        endpoint=endpoint,
        model=model,
        base_version=version,
        project=_whole(spec.project),
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


def cause_of(judgement: Judgement, run: LoggedRun) -> dict[str, Any]:
    """The judgement behind a retraining, and where its report is."""
    return {
        "kind": "alarm",
        "monitor": judgement.monitor,
        "monitor_kind": judgement.kind,
        "window": str(judgement.window),
        "revision": judgement.revision,
        "verdict": judgement.state,
        "version": judgement.version,
        "run_id": run.run_id,
        "report": run.url or f"run {run.run_id}",
        "why": f"monitor {judgement.monitor}, {judgement.window}: {judgement.state}: {judgement.reason}",
    }


def _whole(project: str) -> str:
    """A folder of this machine by its whole path: a controller may run in another one."""
    folder = Path(project).expanduser()
    return str(folder.absolute()) if folder.is_dir() else project
