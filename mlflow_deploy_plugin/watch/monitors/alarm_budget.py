"""The budget of alarms of an endpoint: the check of a changed budget, and alarms that a
user accepts as normal.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.spec.parts import AlarmsSpec, EndpointSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH, length_of
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.store import Endpoint
from mlflow_deploy_plugin.serve.inference_log.windows import (
    microseconds,
    parse_window,
    window_at,
)
from mlflow_deploy_plugin.ship.deployments.config import configure, traffic_weights
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.alerts.record import end_alert
from mlflow_deploy_plugin.watch.drift.effects import check_unit
from mlflow_deploy_plugin.watch.drift.references.load import load_reference
from mlflow_deploy_plugin.watch.drift.sketches.relations import RELATIONS
from mlflow_deploy_plugin.watch.monitors.evaluation import SelectedMonitor, window_request
from mlflow_deploy_plugin.watch.monitors.manual_runs import hold_lease
from mlflow_deploy_plugin.watch.result import describe_span
from mlflow_deploy_plugin.watch.sequential.budget import check_budget
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence
from mlflow_deploy_plugin.watch.statistics.predictions import version_artifact

_CHECKED_LATER = "the first judgement checks the budget of alarms"


def check_change(
    deployments: Deployments,
    name: str,
    config: Mapping[str, object],
) -> list[str]:
    """Return how the monitors that `config` changes cannot keep the budget of alarms,
    without changing the endpoint.

    Raises InvalidConfig if the reference of a monitor is too short or overlaps the
    windows that will be judged, or if the predictions do not have the unit of
    `alarms.min_effect`, and the errors of `configure`. If a reference cannot be
    loaded yet, its line states the reason.
    """
    stored = deployments.store.require_endpoint(name)
    spec = configure(stored.spec, config)
    lines: list[str] = []
    for monitor, changed in spec.monitors.items():
        is_changed = any(key.startswith(("alarms.", f"monitors.{monitor}.")) for key in config)
        if is_changed and changed.kind == "drift":
            selected = SelectedMonitor(name, monitor, changed, stored.spec.capture)
            limits = _check_monitor(deployments, stored, spec, selected)
            lines += [f"{name}: monitor {monitor}: {limit}" for limit in limits]
    return lines


def _check_monitor(
    deployments: Deployments,
    stored: Endpoint,
    spec: EndpointSpec,
    selected: SelectedMonitor,
) -> list[str]:
    """Return how a monitor of the changed `spec` cannot keep its share of the budget.
    If this cannot be known yet, return the reason.

    Raises InvalidConfig if the reference is too short or overlaps the next window, or
    if the predictions do not have the unit of the smallest effect.
    """
    if spec.alarms == AlarmsSpec():
        return []
    monitor = selected.spec
    share = spec.budget_share(monitor)
    window = window_at(microseconds(deployments.store.now()), monitor.every)
    if monitor.reference_kind == "window":
        pinned = parse_window(monitor.reference_value)
        if pinned.end > window.start:
            raise InvalidConfig(
                f"monitors.{selected.name}.reference: {pinned} overlaps the monitor's next window, "
                "which a budget of alarms does not permit: END may be at most "
                f"{window.start:%FT%R}",
            )
    request = window_request(selected, window, deployments.settings, stored)
    try:
        weights = traffic_weights(spec)
        if not weights:
            raise NotFound(f"endpoint {spec.name!r} has no deployment")
        served = resolve(spec.variants[max(weights, key=weights.__getitem__)].model)
        version = served.name, served.version
        reference = load_reference(request, *version)
    except OnnxserveError as error:
        return [f"{_CHECKED_LATER}: {error.message}"]
    artifact = version_artifact(request, *version)
    if artifact is not None and spec.alarms.min_effect:
        try:
            check_unit(artifact, spec.alarms.min_effect)
        except OnnxserveError as error:
            raise InvalidConfig(f"alarms.min_effect: {error.message}") from None
    if share is None:
        return []
    try:
        return check_budget(reference, monitor, share)
    except OnnxserveError as error:
        if monitor.is_rolling:  # The reference grows with the log.
            return [f"{_CHECKED_LATER}: {error.message}"]
        raise InvalidConfig(f"monitors.{selected.name}: {error.message}") from None


@dataclass(frozen=True)
class AcceptedAlarms:
    """Alarms of a window that a user has accepted.

    Attributes:
        baseline: the accepted columns (`alarm_key`), each with the start of its new
            baseline in ISO 8601.
        length: the length of the monitor's windows.
        still_open: the alarms of the window that are not accepted.
    """

    baseline: Mapping[str, str]
    length: timedelta
    still_open: tuple[str, ...]

    def describe(self) -> list[str]:
        """Return a text per column, such as `the baseline of delay begins with the
        window of 29 to 31 August 2026`.
        """
        starts = {key: datetime.fromisoformat(since) for key, since in self.baseline.items()}
        return [
            f"the baseline of {key} begins with the window of "
            f"{describe_span(start, start + self.length)}"
            for key, start in starts.items()
        ]


def accept_alarms(
    deployments: Deployments,
    name: str,
    monitor: str,
    why: str,
    columns: Collection[str],
) -> AcceptedAlarms:
    """Move the baseline of columns with an open alarm in the newest judged window: of
    the `columns`, by default of all columns except the relations between columns.

    A column is specified by its name, which includes its segments, or by its
    `alarm_key`. Every check of it continues. The monitor's alert ends if no alarm of
    the window remains open. Raises NotFound if no alarm of a column is open,
    InvalidConfig if the monitor has no reference or the endpoint has no budget, and
    OnnxserveError while a window is being judged.
    """
    endpoint = deployments.store.require_endpoint(name).spec
    spec = endpoint.monitor(monitor)
    length = length_of(spec.every)
    if spec.kind != "drift":
        raise InvalidConfig(
            f"monitor {monitor!r} of kind {spec.kind} has no reference and no baseline: "
            f"`onnxserve endpoint update {endpoint.name} -C monitors.{monitor}.require=…` changes "
            "its requirements",
        )
    if endpoint.budget_share(spec) is None:
        raise InvalidConfig(
            f"monitor {monitor!r} has a false_alarm_rate instead of a budget of alarms: "
            f"`onnxserve endpoint update {endpoint.name} -C alarms.false_per_year=1` sets a budget",
        )
    # A judgement that has begun would open the alert again.
    with hold_lease(deployments.store, name, monitor):
        start = EPOCH
        evidence = Evidence()
        for row in reversed(
            Monitors(deployments.store).judged_windows((name, monitor), length, "evidence")
        ):
            if not evidence.levels:  # Use the newest window with levels.
                start = row.start
                evidence = Evidence.from_json(row.evidence)
        baseline = _accepted_columns(evidence, start, columns, name, monitor)
        accepted = AcceptedAlarms(
            baseline,
            length,
            tuple(key for key in evidence.open_alarms if key not in baseline),
        )
        actor = Monitors(deployments.store).accept(
            name, monitor, baseline, why, (start, start + length)
        )
        if not accepted.still_open:
            line = f"{actor} accepted the alarms: {', '.join(accepted.describe())}"
            if why:
                line += f": {why}"
            for alert in Alerts(deployments.store).open(name):
                if alert.fingerprint == f"{name}/{monitor}":
                    end_alert(deployments.store, alert, line)
    return accepted


def _accepted_columns(
    evidence: Evidence,
    start: datetime,
    columns: Collection[str],
    name: str,
    monitor: str,
) -> dict[str, str]:
    """Return the start of the new baseline of each of the `columns`, by default of all
    columns except the relations. Raises NotFound if a column has no open alarm.
    """
    # Each column with an open alarm has the start of its shift: the last shift if
    # several figures of a column have shifted.
    judged = {series.column for series in evidence.levels}
    alarms = {key: start.isoformat() for key in evidence.alarms if key in judged}
    shifts = sorted((since, series.column) for series, since in evidence.shifts.items())
    alarms |= {key: since for since, key in shifts}
    alarms = {key: since for key, since in alarms.items() if key not in evidence.accepted}
    where = f"monitor {monitor!r} of endpoint {name!r}"
    if alarms and columns:
        baseline: dict[str, str] = {}
        for column in columns:
            with_segment = re.compile(f"([^/]*=.*/)?{re.escape(column)}", re.DOTALL)
            matching = {key: since for key, since in alarms.items() if with_segment.fullmatch(key)}
            if not matching:
                raise NotFound(
                    f"{where} has no open alarm of a column {column!r}; the columns with an open "
                    f"alarm are {join_names(sorted(alarms), column)}",
                )
            baseline |= matching
        return baseline
    baseline = {
        column: since for column, since in alarms.items() if column.rpartition("/")[2] != RELATIONS
    }
    if baseline:
        return baseline
    remedy = f"`onnxserve monitor list {name}` shows its last verdict"
    if alarms:
        remedy = (
            f"`onnxserve monitor accept {name} {monitor} --column '{RELATIONS}'` accepts the alarm "
            "of the relations"
        )
    raise NotFound(f"{where} has no open alarm of a column to accept: {remedy}")
