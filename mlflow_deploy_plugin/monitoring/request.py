"""What a monitor is asked: one endpoint, one window of event time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from mlflow_deploy_plugin.inference_log.reader import InferenceLog, open_log
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.result import Finding, Judged, MonitorResult, State
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import CaptureSpec, MonitorSpec

Engine = Literal["local", "spark"]
Progress = Callable[[str], None]


def no_progress(line: str) -> None:
    """Says nothing: a schedule's windows are judged without anybody who looks on."""


@dataclass(frozen=True)
class WindowRequest:
    """One window to judge; it can be pickled as long as nobody has read the log with it.

    Attributes:
        revision: 1 at first; rows that came later make the next one.
        capture: what the log withholds of the endpoint's columns.
        notes: what the reader has to know of the window's rows.
        engine: what sketches the window's rows: this process, or Spark (`spark.py`), with the same numbers.
        tried / endpoint_created: as in `Judgement`.
        progress: is told in a line each what takes seconds.
        rows_since: as in `store.Endpoint`; what a deleted endpoint of the name has captured is not read.
    """

    endpoint: str
    monitor: str
    spec: MonitorSpec
    window: Window
    revision: int
    settings: Settings
    capture: CaptureSpec = field(default_factory=CaptureSpec)
    notes: tuple[str, ...] = ()
    engine: Engine = "local"
    tried: str = ""
    endpoint_created: str = ""
    progress: Progress = field(default=no_progress, compare=False)
    rows_since: datetime | None = None

    @cached_property
    def log(self) -> InferenceLog:
        """The one that the settings name; it remembers which files could not be read for this window."""
        return open_log(self.settings.inference_log, self.rows_since)

    @property
    def state_dir(self) -> Path:
        """Of the endpoint's server on this machine; both may be gone, or never have been here."""
        return self.settings.deployments_path / self.endpoint

    def result(
        self,
        state: State,
        reason: str,
        *,
        model: str = "",
        version: str = "",
        model_id: str = "",
        rows: int = 0,
        findings: tuple[Finding, ...] = (),
        figures: Mapping[str, float] = MappingProxyType({}),
        notes: tuple[str, ...] = (),
    ) -> MonitorResult:
        """The answer; `figures` has the number of rows besides those that are given."""
        return MonitorResult(
            endpoint=self.endpoint,
            monitor=self.monitor,
            kind=self.spec.kind,
            model=model,
            version=version,
            model_id=model_id,
            window=self.window,
            revision=self.revision,
            state=state,
            reason=reason,
            rows=rows,
            findings=findings,
            figures={"rows": float(rows), **figures},
            notes=(*self.notes, *notes),
            tried=self.tried,
            endpoint_created=self.endpoint_created,
        )

    def not_judged(
        self,
        reason: str,
        *,
        model: str = "",
        version: str = "",
        rows: int = 0,
        notes: tuple[str, ...] = (),
    ) -> Judged:
        """The outcome that says why there is none."""
        return Judged(self.result("not judged", reason, model=model, version=version, rows=rows, notes=notes))
