"""What a monitor is asked: one endpoint, one window of event time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.judgement import Finding, Judged, Judgement
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import MonitorSpec

Engine = Literal["local", "spark"]


@dataclass(frozen=True)
class Question:
    """One window to judge.

    Attributes:
        revision: 1 at first; rows that came later make the next one.
        state_dir: of the endpoint's server on this machine; both may be gone, or never have been here.
        engine: what sketches the window's rows: this process, or Spark (`spark.py`), with the same numbers.
    """

    endpoint: str
    monitor: str
    spec: MonitorSpec
    window: Window
    revision: int
    settings: Settings
    log: InferenceLog
    state_dir: Path
    engine: Engine = "local"

    def not_judged(
        self,
        reason: str,
        *,
        model: str = "",
        version: str = "",
        model_id: str = "",
        rows: int = 0,
        findings: tuple[Finding, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> Judged:
        """The outcome that says why there is none; `figures` has the number of rows alone."""
        return Judged(
            Judgement(
                endpoint=self.endpoint,
                monitor=self.monitor,
                kind=self.spec.kind,
                model=model,
                version=version,
                model_id=model_id,
                window=self.window,
                revision=self.revision,
                state="not judged",
                reason=reason,
                rows=rows,
                findings=findings,
                figures={"rows": float(rows)},
                notes=notes,
            )
        )
