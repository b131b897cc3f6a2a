"""The names of columns in the inference log and in a model's reference sample."""

PREDICTION = "prediction"
"""The column of the answers of a model that returns one value per row."""
OUTPUT_PREFIX = "output."
"""The prefix of the columns of all other outputs."""
EVENT_TIME = "_event_time"
SHADOW = "_shadow"
"""True for a row that a shadow has computed."""
GUARD = "_guard"
"""The columns of a row that are outside of the training rows, as `age,state`; empty
for a row inside, and null for a version without a guard.
"""
TRIED = "_tried"
"""True for a row of the page Try. Its requests have ids with the prefix `TRIED_ID`."""
TRIED_ID = "onnxserve-try-"


def is_prediction(column: str) -> bool:
    """Return True for a column of the answers of a model."""
    return column == PREDICTION or column.startswith(OUTPUT_PREFIX)
