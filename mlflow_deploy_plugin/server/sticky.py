"""The value in a request that keeps its caller to one variant, where a column has it."""

from mlflow_deploy_plugin.runtime import Feeds, Schema, sent_arrays


def has_column(schema: Schema, column: str) -> bool:
    """Whether `key_of` can find it in a request."""
    return any(column in (entry.columns or (entry.name,)) for entry in schema.inputs)


def key_of(schema: Schema, feeds: Feeds, column: str) -> str | None:
    """The first row's value of a column (of a tensor: its first number) as text; None: there is none, or it is missing.

    A whole number has the same text in every type, so that a version that takes it as another type knows its callers;
    so has a boolean, which is 1 or 0.
    """
    arrays = sent_arrays(feeds)
    for entry in schema.sent_inputs:
        array = arrays.get(entry.name)
        if array is None or not array.size or column not in (entry.columns or (entry.name,)):
            continue
        place = entry.columns.index(column) if entry.columns else 0
        value = array.reshape(len(array) if array.ndim else 1, -1)[0, place]
        value = value if isinstance(value, str | None) else value.item()
        if value is None or value != value or (entry.missing is not None and value == entry.missing):
            return None
        is_whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
        return str(int(value)) if is_whole else str(value)
    return None
