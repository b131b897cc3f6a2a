"""An endpoint with captured rows, a model with a reference, and a separate MLflow."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint, WantedVariant
from tests.support.inference_log import ENDPOINT, MODEL, LogWriter, event_table
from tests.support.tracking import tracking_at

FIRST_DAY = datetime(2013, 1, 1, tzinfo=UTC)
REFERENCE_DAYS = 40
DAY_ROWS = 120


def day_of_rows(rng, day, shift=0.0, rows=DAY_ROWS):
    """Return rows of one day: a temperature shared by the day, noise, a text, a
    boolean, a prediction.
    """
    temperature = rng.normal(rng.normal(0, 1) + shift, 1, rows)
    temperature[rng.random(rows) < 0.05] = np.nan
    seconds = np.sort(rng.integers(0, 86400, rows))
    return {
        "_event_time": [day + timedelta(seconds=int(second)) for second in seconds],
        "temperature": temperature,
        "noise": rng.normal(size=rows),
        "carrier": rng.choice(["UA", "AA", "DL"], rows).astype(object),
        "is_weekend": np.full(rows, day.weekday() >= 5),
        "prediction": (np.nan_to_num(temperature) > 0.5).astype(np.int64),
    }


@pytest.fixture
def mlflow_store(tmp_path, new_database, monkeypatch):
    uri = new_database(tmp_path)
    monkeypatch.chdir(tmp_path)  # A database store puts artifacts below the working directory.
    with tracking_at(uri):
        yield uri


def write_model(folder, reference, model_id="", **meaning):
    """Write the parts of an MLmodel folder that monitoring reads."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"not opened here")
    section = {"data": "model.onnx", "onnxserve_version": "0", **meaning}
    if reference is not None:
        section["reference"] = {"data": "reference.parquet", "rows": len(reference)}
        pq.write_table(reference, folder / "reference.parquet")
    document = {
        "model_id": model_id,
        "mlflow_version": mlflow.__version__,
        "flavors": {"onnxserve": section},
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


def serve(state_dir, folder, version="1"):
    """Write the state folder of a server with this folder."""
    state_dir.mkdir(parents=True, exist_ok=True)
    document = {"name": ENDPOINT, "variants": {ENDPOINT: {"model": f"models:/{MODEL}/{version}"}}}
    (state_dir / "spec.yaml").write_text(yaml.safe_dump(document))
    variant = WantedVariant(
        model_uri=f"models:/{MODEL}/{version}", model=MODEL, version=version, folder=folder
    )
    wanted = Wanted(
        generation=1, endpoints={ENDPOINT: WantedEndpoint(variants={ENDPOINT: variant})}
    )
    write_state(state_dir / WANTED, wanted)


def reference_of_days(days):
    return pa.concat_tables([event_table(day) for day in days])


@pytest.fixture
def world(tmp_path, mlflow_store):
    """A served version with a reference, in MLflow."""
    rng = np.random.default_rng(0)
    days = [
        day_of_rows(rng, FIRST_DAY + timedelta(days=number)) for number in range(REFERENCE_DAYS)
    ]
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("training")
    logged = client.create_logged_model(experiment, name="model")
    folder = write_model(tmp_path / "models" / "1", reference_of_days(days), logged.model_id)
    client.create_registered_model(MODEL)
    client.create_model_version(MODEL, source=str(folder))
    settings = Settings(home=tmp_path / "home")
    state_dir = settings.deployments_path / ENDPOINT
    serve(state_dir, folder)
    return SimpleNamespace(
        settings=settings, state_dir=state_dir, model_id=logged.model_id, model_folder=folder
    )


@pytest.fixture
def writer(tmp_path):
    return LogWriter(tmp_path / "log")
