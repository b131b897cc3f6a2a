"""What MLflow and Evidently would tell their makers, and print between our lines."""

import os

_NO_TELEMETRY = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def disable_telemetry() -> None:
    """Silences both, unless the environment says otherwise. To be called before they are imported."""
    for variable, value in _NO_TELEMETRY.items():
        os.environ.setdefault(variable, value)
