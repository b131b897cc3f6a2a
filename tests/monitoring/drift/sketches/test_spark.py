"""Sketches on a real Spark are those of one machine, to the last bit."""

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.errors import NotInstalled, OnnxserveError
from mlflow_deploy_plugin.inference_log import InferenceLog, open_log, parse_window
from mlflow_deploy_plugin.monitoring.drift.references.load import freeze_table
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import bins_digest
from mlflow_deploy_plugin.monitoring.drift.sketches.hourly import SketchStore, window_profile
from mlflow_deploy_plugin.monitoring.drift.sketches.spark import spark_session, spark_window_profile
from tests.monitoring.conftest import FIRST_DAY, day_of_rows
from tests.support.inference_log import ENDPOINT, MODEL, event_table

from .test_sketch import assert_same

WINDOW = parse_window("2013-01-01T05:20/2013-01-03T07:40")


def test_without_pyspark_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)

    with pytest.raises(NotInstalled, match=r"pip install 'mlflow-onnxserve\[spark\]'"):
        spark_session()


@pytest.fixture
def session() -> Any:
    pytest.importorskip("pyspark")
    session = spark_session("local[2]")
    yield session
    session.stop()


@pytest.mark.long
def test_spark_gives_the_same_numbers(session: Any, writer: Any) -> None:
    rng = np.random.default_rng(0)
    days = [day_of_rows(rng, FIRST_DAY + timedelta(days=number), rows=200) for number in range(3)]
    for day in days:
        writer.write(day)
    bins = freeze_table(event_table(days[0]), (), "the reference")[0]
    log = open_log(str(writer.root))
    sketches = SketchStore(log, ENDPOINT, bins, bins_digest(bins))

    spread = spark_window_profile(session, sketches, MODEL, "1", WINDOW)

    assert len(list(Path(log.root).glob("_sketches/**/hours.parquet"))) == 3
    for path in Path(log.root).glob("_sketches/**/hours.parquet"):
        path.unlink()
    local = window_profile(sketches, MODEL, "1", WINDOW)
    assert_same(spread, local)
    assert [one.mean.hex() for one in spread.columns.values()] == [one.mean.hex() for one in local.columns.values()]
    assert [one.m2.hex() for one in spread.columns.values()] == [one.m2.hex() for one in local.columns.values()]

    lost = replace(sketches, log=InferenceLog(replace(log.location, shown="ftp://nowhere")))
    with pytest.raises(OnnxserveError, match=r"^2013-01-01T05:20:00/2013-01-02: .*ftp://nowhere"):
        spark_window_profile(session, lost, MODEL, "1", WINDOW)
