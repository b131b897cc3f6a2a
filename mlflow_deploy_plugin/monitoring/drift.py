"""The drift job: one endpoint, one window of event time → a verdict, and one MLflow run that shows it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.inference_log.reader import InferenceLog, open_log
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.judgement import Judged
from mlflow_deploy_plugin.monitoring.kinds.drift import judge
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.monitoring.run import MonitorResult, log_judged
from mlflow_deploy_plugin.monitoring.spool import wait_until_shipped
from mlflow_deploy_plugin.nearest import did_you_mean
from mlflow_deploy_plugin.server.state import SPEC
from mlflow_deploy_plugin.settings import Settings, load_settings
from mlflow_deploy_plugin.spec import CaptureSpec, EndpointSpec, MonitorSpec, load_specs
from mlflow_deploy_plugin.store import open_store
from mlflow_deploy_plugin.store.monitors import Monitors

DEFAULT_MONITOR = "drift"
_SHIPPING_SECONDS = 20.0


def run_drift(
    endpoint: str,
    window: Window | None = None,
    monitor: str | None = None,
    min_rows: int | None = None,
    false_alarm_rate: float | None = None,
    settings: Settings | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> MonitorResult:
    """Judges the rows that the endpoint answered in a window, and logs the run, whatever the verdict is.

    A window that was judged already, by the schedule or by hand, gets a further revision with a run of its own.

    Args:
        endpoint: its server may have been stopped.
        window: default: the latest whole one of the monitor's length that has rows.
        monitor: a monitor of the endpoint's spec; default: its only one, else the defaults of `MonitorSpec`.
        min_rows, false_alarm_rate: in place of the monitor's.

    Raises:
        NotFound: no such endpoint or monitor, or no rows; the message names what there is.
        RegistryUnavailable: MLflow does not answer.
        StoreUnavailable: the store cannot be used.
    """
    settings = settings or load_settings()
    state_dir = settings.deployments_path / endpoint
    log = open_log(settings.inference_log)
    _check_endpoint(endpoint, settings, log)
    served = _read_spec(endpoint, state_dir)
    name, spec = _monitor(endpoint, served, monitor)
    shipped = wait_until_shipped(state_dir, _SHIPPING_SECONDS)
    window = window or log.latest_window(endpoint, spec.every, clock())
    question = Question(
        endpoint=endpoint,
        monitor=name,
        spec=spec.model_copy(
            update={
                "min_rows": min_rows or spec.min_rows,
                "false_alarm_rate": false_alarm_rate or spec.false_alarm_rate,
            }
        ),
        window=window,
        revision=1,
        settings=settings,
        capture=served.capture if served else CaptureSpec(),
    )
    judged = judge(question)
    if not judged.judgement.rows:
        raise NotFound(f"endpoint {endpoint!r} has no captured rows in {window}{_hint(log, endpoint, spec, clock())}")
    if not shipped:
        judged = _with_note(judged, "some captured rows have not reached the inference log yet and are not judged")
    return _written_down(judged, question, clock)


def _written_down(judged: Judged, question: Question, clock: Callable[[], datetime]) -> MonitorResult:
    """Logs it as a further revision of the window, and writes that down beside what the schedule has found."""
    store = open_store(question.settings.store_url, clock)
    try:
        monitors, key, window = Monitors(store), (question.endpoint, question.monitor), question.window
        revision = monitors.next_revision(*key, window.start)
        begun = monitors.add(*key, window.start, window.end, revision, state="failed")
        result = log_judged(replace(judged, judgement=replace(judged.judgement, revision=begun.revision)))
        found = result.judgement
        monitors.update(
            replace(
                begun,
                state="judged",
                verdict=found.state,
                reason=found.reason,
                rows=found.rows,
                log_rows=question.log.count(question.endpoint, window),
                run_id=result.run.run_id,
                run_url=result.run.url,
                figures=dict(found.figures),
            )
        )
    finally:
        store.close()
    return result


def _with_note(judged: Judged, note: str) -> Judged:
    return replace(judged, judgement=replace(judged.judgement, notes=(note, *judged.judgement.notes)))


def _monitor(endpoint: str, spec: EndpointSpec | None, monitor: str | None) -> tuple[str, MonitorSpec]:
    """The monitor's name and definition."""
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
        raise NotFound(f"there is no endpoint {endpoint!r}{did_you_mean(endpoint, known, others)}")


def _hint(log: InferenceLog, endpoint: str, spec: MonitorSpec, now: datetime) -> str:
    try:
        return f"; the latest whole window with rows is {log.latest_window(endpoint, spec.every, now)}"
    except NotFound:
        return ""
