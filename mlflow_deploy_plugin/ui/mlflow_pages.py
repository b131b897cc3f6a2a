"""URLs of MLflow's UI, and the windows of monitors with the URLs of their reports."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from mlflow_deploy_plugin.monitoring.result import mark_of
from mlflow_deploy_plugin.settings import workspace_query
from mlflow_deploy_plugin.store import MonitorWindow

if TYPE_CHECKING:
    from mlflow.store.tracking.abstract_store import AbstractStore

Mark = Literal["alarm", "undecided", "fine", "failed", "waiting"]


@dataclass(frozen=True)
class MonitorVerdict:
    """A window of a monitor, with or without a verdict.

    Attributes:
        state: the verdict, or the processing state of a window without a verdict.
        report: the URL of the report in MLflow's UI; empty without a report.
        labelled_share: the share of the window's rows with a label, or None if the monitor does not count labels.
        by_hand: True if a user, not the schedule, requested the verdict.
    """

    monitor: str
    start: datetime
    end: datetime
    state: str
    mark: Mark
    reason: str = ""
    report: str = ""
    labelled_share: float | None = None
    by_hand: bool = False

    @property
    def window(self) -> str:
        """Return the bounds of the window: `2013-07-04`, `2013-07-01 – 2013-07-03` or `2013-07-04 14:00 – 15:00`."""
        if self.start.time() == self.end.time() == time() and self.start < self.end:
            last = self.end - timedelta(days=1)
            return " – ".join(dict.fromkeys(f"{day:%Y-%m-%d}" for day in (self.start, last)))
        end = "%H:%M" if self.start.date() == self.end.date() else "%Y-%m-%d %H:%M"
        return f"{self.start:%Y-%m-%d %H:%M} – {self.end.strftime(end)}"

    @property
    def words(self) -> str:
        labels = f", labels for {self.labelled_share:.0%} of its rows" if self.labelled_share is not None else ""
        who = ", judged by hand" if self.by_hand else ""
        return f"{self.monitor}, {self.window}: {self.state}{who}{labels}{f'. {self.reason}' if self.reason else ''}"


@dataclass(frozen=True)
class MlflowPages:
    tracking: "AbstractStore"
    prefix: str

    def run(self, experiment_id: str, run_id: str, artifact: str = "") -> str:
        page = f"{self.prefix}/#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}"
        return f"{page}{artifact and f'/artifacts/{quote(artifact)}'}{workspace_query()}"

    def version(self, model: str, version: str) -> str:
        return f"{self.prefix}/#/models/{quote(model, safe='')}/versions/{quote(version)}{workspace_query()}"

    def report(self, tag: str) -> str:
        """Return the URL of a report from its tag, which is a URL or RUN_ID[/PATH]; an empty text for any other tag."""
        from mlflow.exceptions import MlflowException

        if tag.startswith(("http://", "https://")):
            return tag
        run_id, _, path = tag.partition("/")
        with suppress(MlflowException):  # The run may be deleted.
            return self.run(str(self.tracking.get_run(run_id).info.experiment_id), run_id, path)
        return ""

    def windows(self, endpoint: str, windows: Iterable[MonitorWindow]) -> list[MonitorVerdict]:
        from mlflow.exceptions import MlflowException

        experiment = None
        with suppress(MlflowException):
            experiment = self.tracking.get_experiment_by_name(f"onnxserve/{endpoint}")
        return [
            MonitorVerdict(
                monitor=window.monitor,
                start=window.start,
                end=window.end,
                state=window.verdict or ("failing" if window.attempts and window.state != "failed" else window.state),
                mark=mark_of(window.verdict)
                if window.verdict
                else ("failed" if window.attempts or window.state == "failed" else "waiting"),
                reason=window.reason,
                report=self.run(experiment.experiment_id, window.run_id, "report.html")
                if experiment is not None and window.run_id
                else "",
                labelled_share=window.figures.get("labelled_share"),
                by_hand=window.by_hand,
            )
            for window in windows
        ]
