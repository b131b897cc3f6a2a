"""The drift job: one endpoint, one window of event time → a verdict, and one MLflow run that shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.monitoring.features import align, read_features
from mlflow_deploy_plugin.monitoring.inference_log import InferenceLog, WindowRows, open_log
from mlflow_deploy_plugin.monitoring.reference import load_reference
from mlflow_deploy_plugin.monitoring.report import build_report
from mlflow_deploy_plugin.monitoring.spool import wait_until_shipped
from mlflow_deploy_plugin.monitoring.tracking import Judgement, log_judgement
from mlflow_deploy_plugin.monitoring.verdict import Verdict, judge
from mlflow_deploy_plugin.monitoring.windows import Window
from mlflow_deploy_plugin.registry.runs import LoggedRun
from mlflow_deploy_plugin.server.state import SPEC
from mlflow_deploy_plugin.settings import Settings, load_settings
from mlflow_deploy_plugin.spec import EndpointSpec, MonitorSpec, load_specs

DEFAULT_MONITOR = "drift"
_SHIPPING_SECONDS = 20.0


@dataclass(frozen=True)
class DriftResult:
    """What was judged, and the run in MLflow that shows it."""

    judgement: Judgement
    run: LoggedRun

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict


def run_drift(
    endpoint: str,
    window: Window | None = None,
    monitor: str | None = None,
    min_rows: int | None = None,
    false_alarm_rate: float | None = None,
    settings: Settings | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> DriftResult:
    """Judges the rows that the endpoint answered in a window, and logs the run, whatever the verdict is.

    Args:
        endpoint: its server may have been stopped.
        window: default: the latest whole one of the monitor's length that has rows.
        monitor: a monitor of the endpoint's spec; default: its only one, else the defaults of `MonitorSpec`.
        min_rows, false_alarm_rate: in place of the monitor's.

    Raises:
        NotFound: no such endpoint or monitor, or no rows; the message names what there is.
        InvalidArtifact: the model has no reference, or it cannot be read.
        RegistryUnavailable: MLflow does not answer.
    """
    settings = settings or load_settings()
    state_dir = settings.deployments_path / endpoint
    log = open_log(settings.inference_log)
    _check_endpoint(endpoint, settings, log)
    name, spec = _monitor(endpoint, state_dir, monitor)
    notes = []
    if not wait_until_shipped(state_dir, _SHIPPING_SECONDS):
        notes.append("some captured rows have not reached the inference log yet and are not judged")
    window = window or log.latest_window(endpoint, spec.every, clock())
    rows = log.read(endpoint, window)
    if rows is None:
        raise NotFound(f"endpoint {endpoint!r} has no captured rows in {window}{_hint(log, endpoint, spec, clock())}")
    reference = load_reference(state_dir, rows.model, rows.version)
    reference_features, reference_notes = read_features(reference.table)
    pairs, missing_notes = align(reference_features, read_features(rows.table)[0])
    verdict = judge(
        pairs,
        reference.times,
        window.start_us,
        window.end_us - window.start_us,
        min_rows or spec.min_rows,
        false_alarm_rate or spec.false_alarm_rate,
    )
    notes += [*_notes(rows), *reference_notes, *missing_notes]
    judgement = Judgement(endpoint, name, rows.model, rows.version, reference.model_id, window, verdict, tuple(notes))
    title = f"{endpoint}: {rows.model} version {rows.version}, {window}"
    return DriftResult(judgement, log_judgement(judgement, build_report(verdict, pairs, title, notes)))


def _notes(rows: WindowRows) -> list[str]:
    notes = [
        f"{count:,} rows of the window were answered by {other} and are left out"
        for other, count in rows.other_versions.items()
    ]
    if rows.is_sampled:
        notes.append(f"the window has about {rows.rows:,} rows, of which {len(rows.table):,} are judged")
    return notes


def _monitor(endpoint: str, state_dir: Path, monitor: str | None) -> tuple[str, MonitorSpec]:
    """The monitor's name and definition."""
    spec = _read_spec(endpoint, state_dir)
    monitors = dict(spec.monitors) if spec else {}
    if monitor is None:
        return next(iter(monitors.items())) if len(monitors) == 1 else (DEFAULT_MONITOR, MonitorSpec())
    if monitors and monitor not in monitors:
        raise NotFound(f"endpoint {endpoint!r} has no monitor {monitor!r}; it has {', '.join(sorted(monitors))}")
    return monitor, monitors.get(monitor, MonitorSpec())


def _read_spec(endpoint: str, state_dir: Path) -> EndpointSpec | None:
    try:
        specs = load_specs((state_dir / SPEC).read_text())
    except FileNotFoundError:
        return None
    return next((spec for spec in specs if spec.name == endpoint), None)


def _check_endpoint(endpoint: str, settings: Settings, log: InferenceLog) -> None:
    known = set(log.endpoints())
    if settings.deployments_path.is_dir():
        known |= {folder.name for folder in settings.deployments_path.iterdir() if (folder / SPEC).is_file()}
    if endpoint not in known:
        others = f"there are {', '.join(sorted(known))}" if known else "nothing is deployed and nothing was captured"
        raise NotFound(f"there is no endpoint {endpoint!r}; {others}")


def _hint(log: InferenceLog, endpoint: str, spec: MonitorSpec, now: datetime) -> str:
    try:
        return f"; the latest whole window with rows is {log.latest_window(endpoint, spec.every, now)}"
    except NotFound:
        return ""
