"""One window of one monitor, judged from the log and logged to MLflow: what runs in a process of its own, and here."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from mlflow_deploy_plugin.inference_log.reader import InferenceLog, open_log
from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.judgement import Judgement
from mlflow_deploy_plugin.monitoring.question import Engine
from mlflow_deploy_plugin.registry.runs import LoggedRun
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import CaptureSpec, MonitorSpec
from mlflow_deploy_plugin.store import Endpoint
from mlflow_deploy_plugin.store.monitors import MonitorWindow


@dataclass(frozen=True)
class Asked:
    """One window to judge; everything in it can be pickled."""

    endpoint: str
    monitor: str
    spec: MonitorSpec
    window: Window
    revision: int
    settings: Settings
    capture: CaptureSpec = field(default_factory=CaptureSpec)
    engine: Engine = "local"

    @staticmethod
    def of(window: MonitorWindow, spec: MonitorSpec, settings: Settings, endpoint: Endpoint | None) -> "Asked":
        interval = Window(window.start, window.end)
        capture = endpoint.spec.capture if endpoint is not None else CaptureSpec()
        return Asked(window.endpoint, window.monitor, spec, interval, window.revision, settings, capture)


@dataclass(frozen=True)
class Answer:
    """What was found, the run that shows it, and how many rows the log had of the window by then."""

    judgement: Judgement
    run: LoggedRun
    log_rows: int


Judge = Callable[[Asked], Answer]


def judge_and_log(asked: Asked) -> Answer:
    """Judges the window and logs its run; where there is a run of this revision already, it is that one.

    Raises:
        RegistryUnavailable: MLflow does not answer.
        OnnxserveError: the log or the reference cannot be read.
    """
    # here: Evidently takes seconds and half a gigabyte that the controller itself does without
    from mlflow_deploy_plugin.monitoring.run import Question, run_monitor

    log = open_log(asked.settings.inference_log)
    rows = count_rows(asked)
    result = run_monitor(
        Question(
            endpoint=asked.endpoint,
            monitor=asked.monitor,
            spec=asked.spec,
            window=asked.window,
            revision=asked.revision,
            settings=asked.settings,
            log=log,
            state_dir=asked.settings.deployments_path / asked.endpoint,
            capture=asked.capture,
            engine=asked.engine,
        )
    )
    return Answer(result.judgement, result.run, rows)


def count_rows(asked: Asked) -> int:
    """Rows of the window that are in the log, each once."""
    return open_log(asked.settings.inference_log).count(asked.endpoint, asked.window)


def digest_of_files(log: InferenceLog, endpoint: str, window: Window) -> str:
    """Changes with the files of the hours that the window lies in; empty where there are none."""
    files = [(file.path, file.size) for hour in log.hours(endpoint, window) for file in log.files(hour)]
    return hashlib.blake2b(repr(sorted(files)).encode(), digest_size=16).hexdigest() if files else ""
