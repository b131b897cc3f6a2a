"""Captured requests, and their rows in the inference log."""

from datetime import UTC, datetime
from itertools import chain

import numpy as np
import pyarrow.parquet as pq

from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord

NOON = int(datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000
HOUR = 3_600_000_000

TABULAR = CapturedModel(
    "tiny",
    "3",
    Schema(
        (Column("carrier", "string"), Column("distance", "double")),
        (),
        (Input("c", "str", (-1, 1), ("carrier",)), Input("d", "float64", (-1, 1), ("distance",))),
    ),
    ("label",),
)
IMAGES = CapturedModel(
    "cnn",
    "1",
    Schema(
        (), (Tensor("image", "float32", (-1, -1, 2)),), (Input("image", "float32", (-1, -1, 2)),)
    ),
    ("p",),
)


def write(writer, request, carriers, at=NOON, endpoint="flights"):
    record = RequestRecord(endpoint, "champion", request, f"p-{request}", at, NOON, latency=1500)
    feeds = {
        "c": np.array([[carrier] for carrier in carriers], dtype=object),
        "d": np.arange(len(carriers), dtype=np.float64).reshape(-1, 1),
    }
    outputs = {"label": np.array(["late"] * len(carriers), dtype=object)}
    outputs["probabilities"] = np.full((len(carriers), 2), 0.5, dtype=np.float32)
    assert writer.write(record, TABULAR, feeds, outputs, 100)[-1]


def files(tmp_path):
    return sorted((tmp_path / "log").rglob("*.parquet"))


def rows(tmp_path):
    return list(
        chain.from_iterable(pq.ParquetFile(file).read().to_pylist() for file in files(tmp_path))
    )


def forget_what_is_shipped(folder):
    """Simulate a crash between writing rows to the log and recording that they were
    written.
    """
    (shipped,) = (folder / "spool").glob("*.shipped")
    shipped.unlink()
