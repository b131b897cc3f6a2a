"""The stack's example: a classifier of two numbers. A row is late if the sum of its
numbers is above a threshold.

`train.py DATA MODEL` learns the threshold from labelled rows of the log, and registers
a version. The controller runs it when the monitor `accuracy` raises an alarm. Replace
it with your own project.
"""

import sys
from datetime import UTC, datetime, timedelta

import mlflow
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

import onnxserve

COLUMNS = ["a", "b"]


def register(rows: pd.DataFrame, late: pd.Series, event_time: str, model: str) -> str:
    """Learn, log and register a version, with the rows as the reference of its
    monitors, and return the version.
    """
    classifier = LogisticRegression().fit(rows[COLUMNS], late)
    with mlflow.start_run():
        mlflow.log_metric("accuracy", classifier.score(rows[COLUMNS], late))
        info = onnxserve.log_model(
            classifier,
            name="model",
            registered_model_name=model,
            input_example=rows[COLUMNS].head(100),
            reference_data=rows[[*COLUMNS, event_time]],
            event_time=event_time,
        )
    return str(info.registered_model_version)


def register_first(window: timedelta, model: str, windows: int = 60, rows_each: int = 60) -> str:
    """Register a version that is trained on calm windows,
    which differ only by chance.
    """
    count = windows * rows_each
    times = [datetime.now(UTC) - window / rows_each * (count - row) for row in range(count)]
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(count, 2)), columns=COLUMNS).assign(
        at=times,
    )
    return register(rows, (rows["a"] + rows["b"] > 0).astype(int), "at", model)


def main(data: str, model: str) -> None:
    rows = pd.read_parquet(data)
    register(rows, rows["_label_number"].astype(int), "_event_time", model)


if __name__ == "__main__":
    main(*sys.argv[1:])
