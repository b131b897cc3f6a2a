"""On a real Spark cluster the profiles are bit-identical to the profiles of a single
machine.
"""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.contrib.spark.windows import spark_window_profile
from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest
from mlflow_deploy_plugin.watch.drift.sketches.hourly import SketchStore, window_profile
from tests.support.inference_log import ENDPOINT, MODEL, event_table
from tests.watch.conftest import FIRST_DAY, day_of_rows
from tests.watch.drift.sketches.test_sketch import assert_same

CUT = parse_window("2013-01-01T05:20/2013-01-03T07:40")


@pytest.mark.long
@pytest.mark.usefixtures("session")
def test_spark_profile_equals_local_profile(writer):
    rng = np.random.default_rng(0)
    days = [day_of_rows(rng, FIRST_DAY + timedelta(days=number), rows=200) for number in range(3)]
    for day in days:
        writer.write(day)
    bins = freeze_table(event_table(days[0]), (), "the reference")[0]
    log = open_log(str(writer.root))
    sketches = SketchStore(log, ENDPOINT, bins, bins_digest(bins))

    spread = spark_window_profile(sketches, MODEL, "1", CUT)

    assert len(list(Path(log.location.root).glob("_sketches/**/hours.parquet"))) == 3
    for path in Path(log.location.root).glob("_sketches/**/hours.parquet"):
        path.unlink()
    local = window_profile(sketches, MODEL, "1", CUT)
    assert_same(spread, local)
    for name, column in local.columns.items():
        exact = spread.columns[name]
        assert (column.mean.hex(), column.m2.hex()) == (exact.mean.hex(), exact.m2.hex())

    lost = replace(sketches, log=InferenceLog(replace(log.location, shown="ftp://nowhere")))
    with pytest.raises(OnnxserveError, match=r"^2013-01-01T05:20:00/2013-01-02: .*ftp://nowhere"):
        spark_window_profile(lost, MODEL, "1", CUT)
