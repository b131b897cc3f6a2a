import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.ship.batch.part import BatchPlan
from tests.support.models import mixed_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return mixed_model(tmp_path_factory.mktemp("model") / "mixed")


def plan_of(model, source, out, **options):
    """Return the plan of a batch in one process."""
    return BatchPlan(str(model), str(source), str(out), **{"workers": 1, **options})


def flights(rows, seed=0):
    """Return rows that the mixed model accepts, with an id and a time."""
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "id": np.arange(rows) + seed * 1_000_000,
            "ts": [f"2026-01-01 00:{row % 60:02}" for row in range(rows)],
            "carrier": rng.choice(["AA", "UA"], rows),
            "distance": rng.normal(0, 1000, rows).round(1),
            "hour": rng.integers(0, 24, rows),
            "late": rng.integers(0, 2, rows).astype(bool),
        }
    )


def labels(table):
    """Return the answers of the mixed model."""
    columns = table.to_pydict()
    score = (
        (np.array(columns["carrier"]) == "AA")
        + np.array(columns["distance"]) * 0.001
        + np.array(columns["hour"]) * 0.001
        + np.array(columns["late"])
    )
    return ["yes" if value > 0 else "no" for value in score]


def write(table, path):
    """Write rows in the format of the file extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        table.to_pandas().to_json(path, orient="records", lines=True)
    return path
