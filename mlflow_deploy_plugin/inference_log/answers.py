"""Captured answers: the outputs of the version that answered the rows, as arrays."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.runtime import Artifact, Output
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.log_columns import OUTPUT_PREFIX, PREDICTION, only_answer_columns


def count_versions(table: pa.Table) -> dict[tuple[str, str], int]:
    """Return the number of rows by version, the most frequent version first."""
    counted = table.select(["_model", "_version"]).group_by(["_model", "_version"]).aggregate([([], "count_all")])
    return most_first({(row["_model"], row["_version"]): row["count_all"] for row in counted.to_pylist()})


def most_first(counts: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def with_both_names(columns: Iterable[str], artifact: Artifact | None) -> set[str]:
    """Return the columns; a single answer is added under both of its names, `prediction` and `output.NAME`."""
    names = {*columns}
    only_answer = only_answer_columns(artifact.prediction) if artifact is not None else set()
    return names | only_answer if names & only_answer else names


def describe_answers(artifact: Artifact | None, rows: pa.Table, masked: Collection[str]) -> Artifact:
    """Return the version's description of its outputs, or a guess from the `rows` if the version no longer exists.
    Masked predictions are treated as numbers."""
    if artifact is not None and artifact.outputs:
        return artifact
    outputs = []
    for name in rows.column_names:
        if name == PREDICTION or name.startswith(OUTPUT_PREFIX):
            is_known = name == PREDICTION and name not in masked
            is_label = is_known and not pa.types.is_floating(rows.column(name).type)
            outputs.append(Output(name.removeprefix(OUTPUT_PREFIX), "", (), "label" if is_label else "values"))
    nowhere = Path()
    return Artifact(nowhere, nowhere, "onnxserve", "", "", "", outputs=tuple(outputs), prediction=(PREDICTION,))


def captured_outputs(artifact: Artifact, rows: pa.Table, masked: Collection[str]) -> dict[str, Array]:
    """Return the arrays of the outputs that the log has for every row, by name. Masked labels are equal if their hashes
    are equal. Masked numbers are excluded, because they cannot be compared."""
    hidden = with_both_names(masked, artifact)
    arrays = {}
    for output in artifact.outputs:
        if output.role != "label" and OUTPUT_PREFIX + output.name in hidden:
            continue
        names = [OUTPUT_PREFIX + output.name, *([PREDICTION] if artifact.prediction == (output.name,) else [])]
        for name in names:
            if name in rows.column_names and not rows.column(name).null_count:
                array = as_array(rows.column(name).combine_chunks())
                if array is not None:
                    arrays[output.name] = array
    return arrays


def as_array(column: pa.Array) -> Array | None:
    """Return the column as an array, [N], or [N, …] for lists of equal length; None if the lengths differ."""
    shape = [len(column)]
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) > 1:
            return None
        shape.append(lengths[0] or 0)
        column = pc.list_flatten(column)
    values: Array = column.to_numpy(zero_copy_only=False)
    return values.reshape(shape)
