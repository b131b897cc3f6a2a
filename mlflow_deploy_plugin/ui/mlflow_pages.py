"""Addresses of MLflow's pages, and the latest verdicts of an endpoint's monitors by their runs in MLflow."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from mlflow_deploy_plugin.monitoring import ALARMS, UNDECIDED

_LATEST = 4
_LOOKED_AT = 20
_RUN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class MonitorVerdict:
    """One judged window.

    Attributes:
        mark: how the page shows the state: `alarm`, `undecided` or `fine`.
        run / report: addresses within MLflow's pages.
    """

    endpoint: str
    monitor: str
    version: str
    window: str
    state: str
    mark: Literal["alarm", "undecided", "fine"]
    reason: str
    run: str
    report: str


@dataclass(frozen=True)
class MlflowPages:
    """Addresses within MLflow's UI, and the tracking store that they are looked up in."""

    tracking: Any
    prefix: str

    def run(self, experiment_id: str, run_id: str) -> str:
        return f"{self.prefix}/#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}"

    def artifact(self, experiment_id: str, run_id: str, path: str) -> str:
        return f"{self.run(experiment_id, run_id)}/artifacts/{quote(path)}"

    def version(self, model: str, version: str) -> str:
        return f"{self.prefix}/#/models/{quote(model, safe='')}/versions/{quote(version)}"

    def report(self, tag: str) -> str:
        """Return the address of a report by its tag, which is a URL or RUN_ID[/PATH]; else an empty text."""
        if tag.startswith(("http://", "https://")):
            return tag
        run_id, _, path = tag.partition("/")
        experiment = self._experiment_of(run_id)
        if not experiment:
            return ""
        return self.artifact(experiment, run_id, path) if path else self.run(experiment, run_id)

    def verdicts(self, endpoint: str, created_at: datetime) -> list[MonitorVerdict]:
        """Return the latest verdicts of the endpoint's monitors, the newest window first.

        Args:
            created_at: of the endpoint, to tell it from an earlier one of its name.
        """
        from mlflow.entities import ViewType
        from mlflow.exceptions import MlflowException

        try:
            experiment = self.tracking.get_experiment_by_name(f"onnxserve/{endpoint}")
            if experiment is None:
                return []
            runs = self.tracking.search_runs(
                [experiment.experiment_id],
                "tags.`onnxserve.verdict` != ''",
                ViewType.ACTIVE_ONLY,
                _LOOKED_AT,
                ["tags.`onnxserve.window.start` DESC", "attributes.start_time DESC"],
            )
        except MlflowException:
            return []
        created = created_at.isoformat()
        own = [run for run in runs if run.data.tags.get("onnxserve.endpoint.created", created) == created]
        return [self._verdict(endpoint, run) for run in own[:_LATEST]]

    def _verdict(self, endpoint: str, run: Any) -> MonitorVerdict:
        tags, experiment, run_id = run.data.tags, run.info.experiment_id, run.info.run_id
        state = tags.get("onnxserve.verdict", "")
        start, end = tags.get("onnxserve.window.start", ""), tags.get("onnxserve.window.end", "")
        return MonitorVerdict(
            endpoint=endpoint,
            monitor=tags.get("onnxserve.monitor", ""),
            version=tags.get("onnxserve.version", ""),
            window=f"{_minute(start)} – {_minute(end)}",
            state=state,
            mark="alarm" if state in ALARMS else "undecided" if state in UNDECIDED else "fine",
            reason=tags.get("onnxserve.reason", ""),
            run=self.run(experiment, run_id),
            report=self.artifact(experiment, run_id, "report.html"),
        )

    def _experiment_of(self, run_id: str) -> str:
        from mlflow.exceptions import MlflowException

        if not _RUN.fullmatch(run_id):
            return ""
        try:
            return str(self.tracking.get_run(run_id).info.experiment_id)
        except MlflowException:
            return ""


def _minute(moment: str) -> str:
    """Return 2013-07-01 00:00 for 2013-07-01T00:00:00+00:00."""
    return moment[:16].replace("T", " ")
