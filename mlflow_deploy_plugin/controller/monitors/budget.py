"""The budget of alarms of an endpoint: the check of a changed budget, and alarms that a user accepts as normal."""

from collections.abc import Mapping
from datetime import datetime

from mlflow_deploy_plugin.controller.monitors import evaluation
from mlflow_deploy_plugin.controller.monitors.window_runner import unsaved_window
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.deployments.config import configure, traffic_weights
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.inference_log import microseconds, parse_window
from mlflow_deploy_plugin.inference_log.windows import window_at
from mlflow_deploy_plugin.monitoring.alerts.record import resolve_accepted
from mlflow_deploy_plugin.monitoring.drift.references.load import load_reference
from mlflow_deploy_plugin.monitoring.drift.references.windows import DriftReference
from mlflow_deploy_plugin.monitoring.drift.sketches.hourly import window_versions
from mlflow_deploy_plugin.monitoring.result import UNDECIDED, format_time
from mlflow_deploy_plugin.monitoring.sequential.budget import check_budget
from mlflow_deploy_plugin.monitoring.sequential.evidence import Evidence
from mlflow_deploy_plugin.registry import resolve
from mlflow_deploy_plugin.spec import KINDS_WITH_REFERENCE, EndpointSpec, MonitorSpec, duration_seconds
from mlflow_deploy_plugin.store import Endpoint, Monitors

_LOOKED_BACK = 200


def check_change(deployments: Deployments, name: str, config: Mapping[str, object]) -> list[str]:
    """Return why the monitors that `config` changes cannot keep the budget of alarms, without changing the endpoint.

    Raises InvalidConfig if the reference of a monitor is too short, or overlaps the windows that will be judged, and
    the errors of `configure`. If a reference cannot be loaded yet, its line states the reason.
    """
    stored = deployments.store.require_endpoint(name)
    spec = configure(stored.spec, config)
    share, lines = evaluation.budget_share(spec), []
    for monitor, changed in spec.monitors.items():
        is_changed = changed != stored.spec.monitors.get(monitor) or spec.alarms != stored.spec.alarms
        if share is None or not is_changed or changed.kind not in KINDS_WITH_REFERENCE:
            continue
        _require_earlier_reference(monitor, changed, deployments.store.now())
        try:
            reference = _load_reference(deployments, stored, spec, monitor)
        except OnnxserveError as error:
            lines.append(f"{name}: monitor {monitor}: the first judgement checks the budget of alarms: {error.message}")
            continue
        try:
            lines += [f"{name}: monitor {monitor}: {text}" for text in check_budget(reference, changed, share)]
        except InvalidConfig as error:
            raise InvalidConfig(f"monitors.{monitor}: {error.message}") from None
    return lines


def _require_earlier_reference(monitor: str, spec: MonitorSpec, now: datetime) -> None:
    kind, _, text = spec.reference.partition(":")
    next_start = window_at(microseconds(now), spec.every).start
    if kind == "window" and (span := parse_window(text)).end > next_start:
        raise InvalidConfig(
            f"monitors.{monitor}.reference: {span} overlaps the next window of the monitor, and with a budget of alarms "
            f"no judged window may be a part of the reference: END may be at most {next_start:%FT%H:%M}"
        )


def _load_reference(deployments: Deployments, stored: Endpoint, spec: EndpointSpec, monitor: str) -> DriftReference:
    """Return the reference for the latest window with rows, or for the served version if no window has rows."""
    changed, now = spec.monitors[monitor], deployments.store.now()
    log = evaluation.endpoint_log(deployments.settings, stored)
    try:
        window = evaluation.latest_window(log, stored.name, changed, now)
    except NotFound:
        window = window_at(microseconds(now) - duration_seconds(changed.every) * 1_000_000, changed.every)
    unsaved = unsaved_window(stored.name, monitor, window, now)
    request = evaluation.window_request(unsaved, changed, deployments.settings, stored)
    version = next(iter(window_versions(log, stored.name, window)), None)
    if version is None:
        weights = traffic_weights(spec)
        if not weights:
            raise NotFound(f"endpoint {stored.name!r} has no deployment")
        served = resolve(spec.variants[max(weights, key=weights.__getitem__)].model)
        version = served.name, served.version
    return load_reference(request, *version)


def accept_alarms(deployments: Deployments, name: str, monitor: str, why: str = "") -> dict[str, str]:
    """Make the open alarms of the newest judged window normal. Return each column and the start of its new baseline.

    The alert of the monitor ends. Raises NotFound if no alarm of a column is open, and InvalidConfig if the monitor has
    no reference or the endpoint has no budget.
    """
    stored, monitors = deployments.store.require_endpoint(name), Monitors(deployments.store)
    spec = stored.spec.monitor(monitor)
    if spec.kind not in KINDS_WITH_REFERENCE:
        raise InvalidConfig(
            f"monitor {monitor!r} of kind {spec.kind} has no reference, so it has no baseline: change its requirements "
            f"with `onnxserve endpoint update {name} -C monitors.{monitor}.require=…`"
        )
    if stored.spec.alarms.false_per_year is None:
        raise InvalidConfig(
            f"endpoint {name!r} has no budget of alarms, and only monitors with a budget have a baseline over time: "
            f"`onnxserve endpoint update {name} -C alarms.false_per_year=1` sets it"
        )
    judged = [
        row
        for row in monitors.windows(name, monitor, states=("judged",), limit=_LOOKED_BACK)
        if row.verdict not in UNDECIDED and evaluation.is_on_grid(row.start, row.end, spec)
    ]
    evidence = Evidence.from_json(judged[-1].evidence) if judged else Evidence()
    columns = {series.rpartition("/")[0] for series in evidence.levels}
    baseline = {key: judged[-1].start.isoformat() for key in evidence.alarms if key in columns}
    shifts = sorted((since, series.rpartition("/")[0]) for series, since in evidence.shifts.items())
    baseline |= {
        key: since for since, key in shifts
    }  # If several series of a column have shifted, the last one counts.
    if not baseline:
        raise NotFound(
            f"monitor {monitor!r} of endpoint {name!r} has no open alarm of a column in its newest window: "
            f"`onnxserve monitor list {name}` shows its verdict"
        )
    by = monitors.accept(name, monitor, baseline, why)
    texts = [f"{key} since {format_time(since)}" for key, since in baseline.items()]
    line = f"{by} accepted as normal: {', '.join(texts)}{f': {why}' if why else ''}"
    resolve_accepted(deployments.store, name, monitor, line)
    return baseline
