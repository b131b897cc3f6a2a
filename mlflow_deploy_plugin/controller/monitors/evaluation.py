"""One window of one monitor, judged from the log and logged to MLflow: what runs in a process of its own, and here."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.label_join import LABEL, LABEL_NUMBER, EndpointLabels, join_labels
from mlflow_deploy_plugin.inference_log.reader import InferenceLog, open_log
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.result import MonitorResult
from mlflow_deploy_plugin.registry import LoggedRun, registry_client, registry_errors
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import REGRESSION, CaptureSpec, MonitorSpec
from mlflow_deploy_plugin.store import Endpoint
from mlflow_deploy_plugin.store.monitors import MonitorWindow


@dataclass(frozen=True)
class LoggedResult:
    """What was found, the run that shows it, and how many rows the log had of the window by then."""

    judgement: MonitorResult
    run: LoggedRun
    log_rows: int


Judge = Callable[[WindowRequest], LoggedResult]


def window_request(
    window: MonitorWindow, spec: MonitorSpec, settings: Settings, endpoint: Endpoint | None, notes: Sequence[str] = ()
) -> WindowRequest:
    """What is asked of a window as it is written down."""
    return WindowRequest(
        endpoint=window.endpoint,
        monitor=window.monitor,
        spec=spec,
        window=Window(window.start, window.end),
        revision=window.revision,
        settings=settings,
        capture=endpoint.spec.capture if endpoint is not None else CaptureSpec(),
        notes=tuple(notes),
        endpoint_created=endpoint.created_at.isoformat() if endpoint is not None else "",
        rows_since=endpoint.rows_since if endpoint is not None else None,
    )


def judge_and_log(question: WindowRequest) -> LoggedResult:
    """Judges the window and logs its run; where there is a run of this revision already, it is that one.

    Raises:
        RegistryUnavailable: MLflow does not answer; asked before anything is judged.
        OnnxserveError: the log or the reference cannot be read.
    """
    # here: Evidently takes seconds and half a gigabyte that the controller itself does without
    from mlflow_deploy_plugin.monitoring.run import run_monitor

    with registry_errors(f"the experiment of endpoint {question.endpoint}"):  # what takes a minute would be in vain
        registry_client().get_experiment_by_name(f"onnxserve/{question.endpoint}")
    rows = count_rows(question)
    result = run_monitor(question)
    return LoggedResult(result.result, result.run, rows)


def count_rows(question: WindowRequest) -> int:
    """Rows of the window that are in the log, each once."""
    return question.log.count(question.endpoint, question.window)


def endpoint_log(settings: Settings, endpoint: Endpoint | None) -> InferenceLog:
    """The log, without what a deleted endpoint of the same name has captured."""
    return open_log(settings.inference_log, endpoint.rows_since if endpoint is not None else None)


def files_digest(log: InferenceLog, endpoint: str, window: Window) -> str:
    """Changes with the files of the hours that the window lies in; empty where there are none."""
    files = [(file.path, file.size) for hour in log.hours(endpoint, window) for file in log.files(hour)]
    return digest(sorted(files)) if files else ""


def digest(of: object) -> str:
    """Return 128 bits in hexadecimal that change with the value."""
    return hashlib.blake2b(repr(of).encode(), digest_size=16).hexdigest()


def count_labels(questions: Sequence[WindowRequest]) -> list[int]:
    """By window the rows that have a label which a judgement can use, of those that it looks at; the labels are read
    once for all.

    Args:
        questions: of one monitor.

    Raises:
        OnnxserveError: the log is down.
    """
    log = questions[0].log
    labels = EndpointLabels(log.location, questions[0].endpoint, log.unreadable)
    return [_count(question, labels) for question in questions]


def _count(question: WindowRequest, labels: EndpointLabels) -> int:
    # here: the controller itself judges nothing, and does without what judgements are made with
    from mlflow_deploy_plugin.monitoring.kinds.performance import affordable_rows

    rows = question.log.read(question.endpoint, question.window, affordable_rows(question))
    return 0 if rows is None else _usable(join_labels(rows.table, labels), question.spec)


def _usable(table: pa.Table, spec: MonitorSpec) -> int:
    if any(one.name in REGRESSION for one in spec.requirements):  # a label that is no number tells a regressor nothing
        return int(np.isfinite(table.column(LABEL_NUMBER).to_numpy()).sum())
    return int(pc.count(table.column(LABEL)).as_py())
