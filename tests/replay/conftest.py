"""The captured traffic of the endpoint `flights`, and the folders of candidates."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlflow_deploy_plugin.inference_log import open_log
from mlflow_deploy_plugin.replay.backtest import Traffic
from tests.support.inference_log import ENDPOINT, LogWriter
from tests.support.tracking import tracking_at

DAY = datetime(2013, 7, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_versions(tmp_path: Path, new_database: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use an empty registry, as if the served versions had been deleted."""
    monkeypatch.chdir(tmp_path)
    with tracking_at(new_database(tmp_path)):
        yield


@pytest.fixture
def writer(tmp_path: Path) -> LogWriter:
    return LogWriter(tmp_path / "log")


@pytest.fixture
def traffic(writer: LogWriter) -> Traffic:
    return Traffic(open_log(str(writer.root)), ENDPOINT)
