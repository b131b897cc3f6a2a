import os
import socket
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")

import mlflow
import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An MLflow store of the module's own, active until its last test."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_ID", mlflow.create_experiment("flavor", str(folder / "artifacts")))
        yield folder
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def weather() -> tuple[pd.DataFrame, pd.Series]:
    """Texts, floats with gaps, integers, codes and booleans, and a label made of all of them."""
    random = np.random.default_rng(0)
    count = 800
    table = pd.DataFrame(
        {
            "city": random.choice(["rome", "oslo", "lima"], count),
            "temperature": np.round(random.normal(size=count) * 10, 1),
            "humidity": random.uniform(0, 100, count),
            "hour": random.integers(0, 24, count),
            "weekend": random.integers(0, 2, count).astype(bool),
            "code": random.choice([3, 5, 9], count),
        }
    )
    table.loc[random.random(count) < 0.1, "temperature"] = np.nan
    score = table.temperature.fillna(0) + table.hour + table.weekend * 5 + (table.city == "rome") * 10
    return table, (score + random.normal(size=count) > 14).map({True: "late", False: "on time"})


@pytest.fixture(scope="session")
def matrix() -> tuple[np.ndarray, np.ndarray]:
    """Numbers with one decimal, as sensors give them: many rows stand close to the thresholds of trees."""
    random = np.random.default_rng(1)
    rows = np.round(random.normal(size=(1500, 5)) * 10, 1)
    return rows, rows[:, 0] * 2 + rows[:, 1]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
