"""Finds the reference that a monitor names, and gives it as bins, blocks and steps."""

from collections.abc import Sequence

import pyarrow as pa

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.monitoring.bins import Bins, bins_digest, freeze_bins
from mlflow_deploy_plugin.monitoring.features import read_features
from mlflow_deploy_plugin.monitoring.question import Question
from mlflow_deploy_plugin.monitoring.reference import load_reference
from mlflow_deploy_plugin.monitoring.references.blocks import Reference, cut


def load_blocks(question: Question, model: str, version: str, columns: Sequence[str] | None = None) -> Reference:
    """The reference that the monitor names, cut into windows like the one that is judged.

    Args:
        question: its window gives the length and the phase of the blocks, its spec the reference.
        model, version: who answered the window's rows.
        columns: only these, empty: all; None: those of the spec.

    Raises:
        NotFound: neither the server nor the registry has the version.
        InvalidArtifact: the model has no reference, or it cannot be read.
        InvalidConfig: the reference lacks one of the columns.
        RegistryUnavailable: MLflow does not answer.
    """
    window = question.window
    columns = question.spec.columns if columns is None else columns
    rows = load_reference(question.state_dir, model, version)
    notes = (
        []
        if rows.times is not None
        else [
            "the model's reference has no event times, so there are no windows to compare with; "
            "log the model with event_time=, the column (or the values) that say when each row happened"
        ]
    )
    bins, column_notes = freeze(rows.table, columns, f"the reference of model {model} version {version}")
    pieces = cut(bins, rows.table, rows.times, window.start_us, window.end_us - window.start_us)
    return Reference(
        bins=bins,
        bins_key=bins_digest(bins),
        model_id=rows.model_id,
        notes=(*notes, *column_notes),
        sample=rows.table,
        **vars(pieces),
    )


def freeze(table: pa.Table, columns: Sequence[str], shown: str) -> tuple[dict[str, Bins], list[str]]:
    """The bins of a table's columns, and a note on each column that has none.

    Raises:
        InvalidConfig: the table lacks one of `columns`.
    """
    features, notes = read_features(table)
    missing = [name for name in columns if name not in features]
    if missing:
        raise InvalidConfig(f"{shown} has no column {missing[0]!r} to judge; it has {', '.join(features) or 'none'}")
    types = {name: str(table.schema.field(name).type) for name in table.column_names}
    return {
        name: freeze_bins(feature, types.get(name, "double"))  # a component of a list is a double
        for name, feature in features.items()
        if not columns or name in columns
    }, notes
