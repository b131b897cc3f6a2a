"""Addresses within MLflow's UI, and the windows of monitors with their reports there."""

import re
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

_RUN = re.compile(r"[0-9a-f]{32}")
Mark = Literal["alarm", "undecided", "fine", "failed", "waiting"]


@dataclass(frozen=True)
class MonitorVerdict:
    """One window of a monitor, judged or not.

    Attributes:
        state: of the verdict; of a window without one, of the work on it.
        report: its address within MLflow's pages; empty if there is none.
        labelled_share: the labelled share of the rows, if the monitor counts them.
        by_hand: a person has asked for the verdict.
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
        """Return `2013-07-04` for a day, `2013-07-01 – 2013-07-03` for days, or `2013-07-04 14:00 – 15:00`."""
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

    def run(self, experiment_id: str, run_id: str) -> str:
        return f"{self._run(experiment_id, run_id)}{workspace_query()}"

    def artifact(self, experiment_id: str, run_id: str, path: str) -> str:
        return f"{self._run(experiment_id, run_id)}/artifacts/{quote(path)}{workspace_query()}"

    def version(self, model: str, version: str) -> str:
        return f"{self.prefix}/#/models/{quote(model, safe='')}/versions/{quote(version)}{workspace_query()}"

    def report(self, tag: str) -> str:
        """Return the address of a report by its tag, which is a URL or RUN_ID[/PATH]; otherwise empty."""
        from mlflow.exceptions import MlflowException

        if tag.startswith(("http://", "https://")):
            return tag
        run_id, _, path = tag.partition("/")
        if not _RUN.fullmatch(run_id):
            return ""
        try:
            experiment = str(self.tracking.get_run(run_id).info.experiment_id)
        except MlflowException:
            return ""
        return self.artifact(experiment, run_id, path) if path else self.run(experiment, run_id)

    def windows(self, endpoint: str, windows: Iterable[MonitorWindow]) -> list[MonitorVerdict]:
        from mlflow.exceptions import MlflowException

        experiment = None
        with suppress(MlflowException):
            experiment = self.tracking.get_experiment_by_name(f"onnxserve/{endpoint}")
        return [
            MonitorVerdict(
                monitor=one.monitor,
                start=one.start,
                end=one.end,
                state=one.verdict or ("failing" if one.attempts and one.state != "failed" else one.state),
                mark=mark_of(one.verdict)
                if one.verdict
                else ("failed" if one.attempts or one.state == "failed" else "waiting"),
                reason=one.reason,
                report=self.artifact(experiment.experiment_id, one.run_id, "report.html")
                if experiment is not None and one.run_id
                else "",
                labelled_share=one.figures.get("labelled_share"),
                by_hand=one.by_hand,
            )
            for one in windows
        ]

    def _run(self, experiment_id: str, run_id: str) -> str:
        return f"{self.prefix}/#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}"
