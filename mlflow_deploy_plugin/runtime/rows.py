"""Requests and answers as a table: the columns of the inference log and of a model's reference sample.

Both hold the signature's columns under their own names, then `prediction` (what `predict` answers, where that is one
value a row) and `output.NAME` for every other output, so that drift can lay one over the other. Names that begin with
an underscore are the log's own (`EVENT_TIME`, …).
"""

from collections.abc import Mapping

from mlflow_deploy_plugin.runtime.schema import Array, Schema

PREDICTION = "prediction"
OUTPUT_PREFIX = "output."
EVENT_TIME = "_event_time"


def as_rows(
    schema: Schema, prediction: tuple[str, ...], feeds: Mapping[str, Array], outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Columns of [N] (tensors and outputs of higher rank: [N, …]) by name, in a stable order."""
    columns = schema.to_columns(feeds)
    for name, array in outputs.items():
        alone = prediction == (name,) and array.ndim == 1
        columns[PREDICTION if alone else OUTPUT_PREFIX + name] = array
    return columns
