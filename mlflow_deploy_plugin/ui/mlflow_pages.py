"""URLs of MLflow's UI, and the windows of monitors with the URLs of their reports."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import time, timedelta
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from mlflow_deploy_plugin.core.settings import workspace_query
from mlflow_deploy_plugin.core.store.monitor_tables import MonitorWindow
from mlflow_deploy_plugin.watch.result import mark_of
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence

if TYPE_CHECKING:
    from mlflow.store.tracking.abstract_store import AbstractStore

_NAMED = 3
"""The most columns and criteria of an alarm that a sentence names."""
Mark = Literal["alarm", "changed", "undecided", "fine", "failed", "waiting"]


@dataclass(frozen=True)
class MonitorVerdict:
    """A window of a monitor, with or without a verdict.

    Attributes:
        state: the verdict, or the processing state of a window without a verdict.
        report: the URL of the report in MLflow's UI; empty without a report.
    """

    stored: MonitorWindow
    state: str
    mark: Mark
    report: str = ""

    @property
    def window(self) -> str:
        """Return the bounds of the window: `2013-07-04`, `2013-07-01 – 2013-07-03` or
        `2013-07-04 14:00 – 15:00`.
        """
        start = self.stored.start
        end = self.stored.end
        if start.time() == end.time() == time() and start < end:
            days = (start, end - timedelta(days=1))
            return " – ".join(dict.fromkeys(f"{day:%Y-%m-%d}" for day in days))
        end_format = "%H:%M" if start.date() == end.date() else "%Y-%m-%d %H:%M"
        return f"{start:%Y-%m-%d %H:%M} – {end.strftime(end_format)}"

    @property
    def sentence(self) -> str:
        """Return the verdict without its statistics: the columns and criteria of an
        alarm, at most three by name.

        Alarms that a user has accepted are named only if no other alarm is left.
        """
        evidence = Evidence.from_json(self.stored.evidence)
        is_accepted = self.stored.outcome == "accepted"
        alarms = evidence.alarms if is_accepted else evidence.open_alarms
        if self.mark == "fine" and self.stored.reason and not is_accepted:
            return "there is no alarm"
        if self.stored.verdict == "cannot tell":
            return "the rows do not decide the requirement"
        if not alarms or not (is_accepted or self.mark in ("alarm", "changed")):
            return self.stored.reason
        listed = ", ".join(alarms[:_NAMED])
        surplus = len(alarms) - _NAMED
        if surplus > 0:
            listed += f" and {surplus} more"
        if is_accepted:
            return f"all alarms are accepted: {listed}"
        return f"in {listed}"

    @property
    def words(self) -> str:
        """Return a line with the monitor, the window, the state and the reason."""
        text = f"{self.stored.monitor}, {self.window}: {self.state}"
        if self.stored.by_hand:
            text += ", judged by hand"
        share = self.stored.figures.get("labelled_share")
        if share is not None:
            text += f", labels for {share:.0%} of its rows"
        return f"{text}. {self.stored.reason}" if self.stored.reason else text


@dataclass(frozen=True)
class MlflowPages:
    tracking: "AbstractStore"
    prefix: str

    def run(self, experiment_id: str, run_id: str, artifact: str = "") -> str:
        page = f"{self.prefix}/#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}"
        if artifact:
            page += f"/artifacts/{quote(artifact)}"
        return f"{page}{workspace_query()}"

    def version(self, model: str, version: str) -> str:
        page = f"models/{quote(model, safe='')}/versions/{quote(version)}"
        return f"{self.prefix}/#/{page}{workspace_query()}"

    def windows(self, endpoint: str, windows: Iterable[MonitorWindow]) -> list[MonitorVerdict]:
        """Return the windows of an endpoint's monitors with their reports."""
        from mlflow.exceptions import MlflowException

        experiment = None
        with suppress(MlflowException):
            experiment = self.tracking.get_experiment_by_name(f"onnxserve/{endpoint}")
        verdicts = []
        for window in windows:
            report = ""
            if experiment is not None and window.run_id:
                report = self.run(experiment.experiment_id, window.run_id, "report.html")
            if window.outcome:
                state = window.outcome
            elif window.attempts and window.state != "failed":
                state = "failing"
            else:
                state = window.state
            mark: Mark
            if window.verdict:
                mark = mark_of(window.outcome)
            elif window.attempts or window.state == "failed":
                mark = "failed"
            else:
                mark = "waiting"
            verdicts.append(MonitorVerdict(window, state, mark, report))
        return verdicts
