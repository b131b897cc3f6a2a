"""The names of columns in the inference log and in a model's reference sample."""

PREDICTION = "prediction"
"""The column of the answers of a model that returns one value per row."""
OUTPUT_PREFIX = "output."
"""The prefix of the columns of all other outputs."""
EVENT_TIME = "_event_time"
