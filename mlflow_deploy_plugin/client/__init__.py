"""A client of a running endpoint: predictions, explanations and labels of frames, arrays and plain values.

    with Client("http://localhost:8123") as client:
        late = client.predict(frame)
        client.feedback(late, frame["was_late"])

Frames and arrays travel as Arrow, plain Python values as JSON. If a server does not take Arrow, as MLflow's own, the
client sends it only JSON from then on. Imports neither mlflow nor pandas.
"""

from mlflow_deploy_plugin.client.client import AsyncClient, Client, Prediction, RetryPolicy, response_error
from mlflow_deploy_plugin.client.rows import BODY_FORMS, encode_json, is_pandas_frame

__all__ = [
    "BODY_FORMS",
    "AsyncClient",
    "Client",
    "Prediction",
    "RetryPolicy",
    "encode_json",
    "is_pandas_frame",
    "response_error",
]
