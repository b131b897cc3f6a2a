"""A small endpoint for monitors: a model with a reference, an inference log, and an
endpoint in the store.
"""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint, WantedVariant
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.inference_log import MODEL, LogWriter

CALM = datetime(2013, 7, 1, tzinfo=UTC)
SHIFTED = datetime(2013, 7, 2, tzinfo=UTC)
DAY = timedelta(days=1)
_REFERENCE_DAYS = 40
_DAY_ROWS = 75


def make_endpoint(home, name="flights", every="1d", begin=CALM, **more):
    """Create an endpoint with a monitor `daily`. Its creation time in the store is
    `begin`.
    """
    rng = np.random.default_rng(0)
    model = home.parent / f"model-of-{name}"
    model.mkdir(parents=True)
    (model / "model.onnx").touch()
    rows = _REFERENCE_DAYS * _DAY_ROWS
    section = {"data": "model.onnx", "reference": {"data": "reference.parquet", "rows": rows}}
    (model / "MLmodel").write_text(yaml.safe_dump({"flavors": {"onnxserve": section}}))
    length = DAY if every == "1d" else timedelta(hours=1)
    times = [begin - length * _REFERENCE_DAYS + length / _DAY_ROWS * row for row in range(rows)]
    event_times = pa.array(times, pa.timestamp("us", tz="UTC"))
    pq.write_table(
        pa.table({"x": rng.normal(size=rows), "_event_time": event_times}),
        model / "reference.parquet",
    )
    fields = {"monitors.daily.every": every, "monitors.daily.min_rows": "50"}
    fields |= {f"monitors.daily.{field}": value for field, value in more.items()}
    spec = apply_config(new_endpoint(name, str(model)), fields)
    state = home / "deployments" / name
    state.mkdir(parents=True)
    variant = WantedVariant(model_uri=str(model), model=MODEL, version="1", folder=model)
    write_state(state / WANTED, Wanted(endpoints={name: WantedEndpoint(variants={name: variant})}))
    store = open_store(Settings(home=home).store_url, lambda: begin)
    store.add_endpoint("onnxserve", spec)
    store.close()


def capture(home, begin, shift=0.0, rows=250, name="flights"):
    """Write rows of the first minutes after `begin`. A shift of 9 is a strong drift."""
    rng = np.random.default_rng(int(begin.timestamp()))
    times = [begin + timedelta(seconds=row) for row in range(rows)]
    columns = {"_event_time": times, "x": rng.normal(shift, 1, rows)}
    LogWriter(home / "inference_log").write(
        columns, segment=f"{name}-{begin:%Y%m%d%H}-{rows}", endpoint=name
    )
