"""The request to judge one window: one endpoint, one monitor, one window of event time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from mlflow_deploy_plugin.inference_log import InferenceLog, Window, open_log
from mlflow_deploy_plugin.monitoring.result import Finding, MonitorResult, ReportData, State
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import CaptureSpec, MonitorSpec

Engine = Literal["local", "spark"]
Progress = Callable[[str], None]


def no_progress(line: str) -> None:
    """Ignore the line: nobody watches the windows of a schedule."""


@dataclass(frozen=True)
class WindowRequest:
    """One window to judge. It can be pickled until its log has been read.

    Attributes:
        revision: 1 at first; rows that came later make the next one.
        capture: the columns that the log leaves out or masks.
        notes: lines about the window's rows for the reader of the result.
        engine: what sketches the window's rows: this process, or Spark, with the same numbers.
        tried / endpoint_created: as in `MonitorResult`.
        progress: gets a line before each step that takes seconds.
        rows_since: as in `store.Endpoint`; rows that a deleted endpoint of the name has captured are not read.
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
        """The inference log of the settings. It remembers which files could not be read for this window."""
        return open_log(self.settings.inference_log, self.rows_since)

    @property
    def state_dir(self) -> Path:
        """The state folder of the endpoint's server on this machine. It may not exist."""
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
        report: ReportData | None = None,
    ) -> MonitorResult:
        """Return the result. Its figures are the number of rows and `figures`."""
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
            report=report or ReportData(),
        )

    def not_judged(
        self,
        reason: str,
        *,
        model: str = "",
        version: str = "",
        rows: int = 0,
        notes: tuple[str, ...] = (),
    ) -> MonitorResult:
        """Return the result of a window that cannot be judged, with the reason."""
        return self.result("not judged", reason, model=model, version=version, rows=rows, notes=notes)
