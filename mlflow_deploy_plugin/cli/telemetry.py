"""What MLflow and Evidently would tell their makers."""

import os


def without_telemetry() -> None:
    """Keeps both silent, unless the environment says otherwise. To be called before they are imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
