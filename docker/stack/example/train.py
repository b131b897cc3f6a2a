"""The stack's example: a classifier of two numbers, which is late where they add up to more than a bound.

`train.py DATA MODEL` learns the bound from labelled rows of the log, and registers a version. The controller runs it
when the monitor `accuracy` raises an alarm; put a project of your own in its place.
"""

import sys
from datetime import UTC, datetime, timedelta

import mlflow
import numpy as np
import onnx
import pandas as pd

import mlflow_deploy_plugin as onnxserve

_GRAPH = """
<ir_version: 10, opset_import: ["": 21]>
late (float[N,2] x) => (int64[N] label, float[N,2] probabilities)
<int64[1] axis = {{1}}, float[1] bound = {{{bound}}}, float[1] one = {{1.0}}, float[1] zero = {{0.0}}> {{
  total = ReduceSum <keepdims = 1> (x, axis)
  score = Sub(total, bound)
  p = Sigmoid(score)
  q = Sub(one, p)
  probabilities = Concat <axis = 1> (q, p)
  is_late = Greater(score, zero)
  flat = Squeeze(is_late, axis)
  label = Cast <to = 7> (flat)
}}"""


def register(bound: float, rows: pd.DataFrame, model: str, event_time: str | None = None) -> str:
    """Log the classifier with this bound, its reference data the columns a and b of `rows`, and return its version."""
    columns = ["a", "b", event_time] if event_time else ["a", "b"]
    info = onnxserve.log_model(
        onnx.parser.parse_model(_GRAPH.format(bound=bound)),
        name="model",
        registered_model_name=model,
        input_example=rows[["a", "b"]].head(100),
        reference_data=rows[columns],
        event_time=event_time,
    )
    return str(info.registered_model_version)


def calm_rows(window: timedelta, windows: int = 60, rows_each: int = 60) -> pd.DataFrame:
    """Return what the reference is made of: windows that do not differ but by chance, up to now."""
    rng, rows = np.random.default_rng(0), windows * rows_each
    times = [datetime.now(UTC) - window / rows_each * (rows - row) for row in range(rows)]
    values = rng.normal(size=(rows, 2)).astype(np.float32)
    return pd.DataFrame({"a": values[:, 0], "b": values[:, 1], "at": times})


def main(data: str, model: str) -> None:
    rows = pd.read_parquet(data)
    totals, late = (rows["a"] + rows["b"]).to_numpy(), rows["_label_number"].to_numpy() > 0
    bounds = np.quantile(totals, np.linspace(0, 1, 101))
    bound = max(bounds, key=lambda one: float(np.mean((totals > one) == late)))
    with mlflow.start_run():
        mlflow.log_metric("accuracy", float(np.mean((totals > bound) == late)))
        register(float(bound), rows.astype({"a": "float32", "b": "float32"}), model, "_event_time")


if __name__ == "__main__":
    main(*sys.argv[1:])
