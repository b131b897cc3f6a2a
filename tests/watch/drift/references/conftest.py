"""A model with a training sample, an inference log, and requests for references."""

from datetime import timedelta

import numpy as np
import pytest

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.watch.drift.references.load import load_reference
from mlflow_deploy_plugin.watch.result import WindowRequest
from tests.support.inference_log import ENDPOINT, MODEL, LogWriter
from tests.watch.conftest import FIRST_DAY, day_of_rows, reference_of_days, serve, write_model

DAYS = 12
ROWS = 60
DAY = parse_window("2013-02-01/2013-02-02")


def some_days():
    rng = np.random.default_rng(0)
    return [
        day_of_rows(rng, FIRST_DAY + timedelta(days=number), rows=ROWS) for number in range(DAYS)
    ]


@pytest.fixture
def days():
    return some_days()


def write_four_hours(folder, start, day):
    """Write a day to the log, compressed to four hours, since each hour is a file."""
    day["_event_time"] = [
        start + timedelta(hours=4) + (time - start) / 6 for time in day["_event_time"]
    ]
    LogWriter(folder).write(day)


@pytest.fixture(scope="module")
def captured(tmp_path_factory):
    """A log with the days, all answered by version 1."""
    folder = tmp_path_factory.mktemp("captured")
    for number, day in enumerate(some_days()):
        write_four_hours(folder, FIRST_DAY + timedelta(days=number), day)
    return folder


@pytest.fixture
def question_of(tmp_path, captured, days):
    """Return requests for windows. Version 1 is served,
    with the days as its reference.
    """
    settings = Settings(home=tmp_path / "home", log_uri=str(captured))
    state_dir = settings.deployments_path / ENDPOINT
    serve(state_dir, write_model(tmp_path / "models" / "1", reference_of_days(days), "m-1"))

    def request(reference="training", window=DAY, columns=(), every="1d"):
        spec = MonitorSpec(reference=reference, columns=columns, every=every)
        return WindowRequest(ENDPOINT, "drift", spec, window, 1, settings)

    return request


@pytest.fixture
def ask(question_of):
    """Load the reference of a monitor."""

    def ask(reference="training", window=DAY, version="1", columns=(), every="1d"):
        return load_reference(question_of(reference, window, columns, every), MODEL, version)

    return ask
