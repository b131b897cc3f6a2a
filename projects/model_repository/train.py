"""Train a logistic regression on half of scikit-learn's breast cancer data, and
register it as checked ONNX.

held_out.csv contains the other half and was written by `python train.py --held-out`.
"""

import argparse

import mlflow
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import onnxserve

COLUMNS = ["mean radius", "mean texture", "mean smoothness"]
TARGET = "benign"


def load_rows(is_held_out: bool) -> tuple[pd.DataFrame, pd.Series]:
    """Return features [N, 3] and labels [N] of the training rows or of the held-out
    rows.
    """
    rows, truth = load_breast_cancer(return_X_y=True, as_frame=True)
    chosen = slice(int(is_held_out), None, 2)
    return rows[COLUMNS][chosen], truth[chosen].rename(TARGET)


def fit(strength: float) -> Pipeline:
    rows, truth = load_rows(is_held_out=False)
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength)).fit(rows, truth)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--held-out", action="store_true")
    options = parser.parse_args()
    if options.held_out:
        rows, truth = load_rows(is_held_out=True)
        rows.assign(benign=truth).to_csv("held_out.csv", index=False)
        return
    rows, _ = load_rows(is_held_out=False)
    with mlflow.start_run():  # The workflow finds the version by the run of `mlflow run`.
        onnxserve.log_model(
            fit(options.strength),
            name="model",
            input_example=rows,
            registered_model_name="tumours",
        )


if __name__ == "__main__":
    main()
