"""Sketches on a real Spark are those of one machine, to the last bit."""

import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.errors import NotInstalled, OnnxserveError
from mlflow_deploy_plugin.inference_log.reader import open_log
from mlflow_deploy_plugin.inference_log.windows import parse_window
from mlflow_deploy_plugin.monitoring.bins import bins_digest
from mlflow_deploy_plugin.monitoring.hourly import window_profile
from mlflow_deploy_plugin.monitoring.references.load import freeze
from mlflow_deploy_plugin.monitoring.spark import profile_of_files, spark_profile, spark_session, spark_window_profile

from .conftest import ENDPOINT, FIRST_DAY, MODEL, day_of_rows, event_table
from .test_sketch import assert_same

WINDOW = parse_window("2013-01-01T05:20/2013-01-03T07:40")


def test_without_pyspark_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)

    with pytest.raises(NotInstalled, match=r"pip install 'mlflow-onnxserve\[spark\]'"):
        spark_session()


@pytest.fixture
def session():
    session = spark_session("local[2]")
    yield session
    session.stop()


@pytest.mark.long
def test_spark_gives_the_same_numbers(session, writer, tmp_path):
    rng = np.random.default_rng(0)
    days = [day_of_rows(rng, FIRST_DAY + timedelta(days=number), rows=200) for number in range(3)]
    for day in days:
        writer.write(day)
    bins = freeze(event_table(days[0]), (), "the reference")[0]
    log, key = open_log(str(writer.root)), bins_digest(bins)

    spread = spark_window_profile(session, log, ENDPOINT, MODEL, "1", WINDOW, bins, key)

    assert len(list(Path(log.root).glob("_sketches/**/hours.parquet"))) == 3
    for path in Path(log.root).glob("_sketches/**/hours.parquet"):
        path.unlink()
    local = window_profile(log, ENDPOINT, MODEL, "1", WINDOW, bins, key)
    assert_same(spread, local)
    assert [one.mean.hex() for one in spread.columns.values()] == [one.mean.hex() for one in local.columns.values()]
    assert [one.m2.hex() for one in spread.columns.values()] == [one.m2.hex() for one in local.columns.values()]

    files = sorted(str(path) for path in Path(log.root).glob("endpoint=*/**/*.parquet"))
    of_files = spark_profile(session, files, bins)
    assert_same(of_files, profile_of_files(files, bins))
    assert of_files.rows == 600
    assert {name: one.m2 for name, one in of_files.columns.items()} == {
        name: one.m2 for name, one in profile_of_files(files, bins).columns.items()
    }

    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(OnnxserveError, match=r"broken\.parquet"):
        spark_profile(session, [files[0], str(tmp_path / "broken.parquet")], bins)
