"""The windows of null distributions, and the number of independent windows that they
are worth.
"""

import numpy as np
import pyarrow as pa

from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference, cut_pieces
from mlflow_deploy_plugin.watch.drift.sketches.bins import freeze_bins
from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.drift.threshold.null import ColumnGroup, GroupColumn, row_counts
from mlflow_deploy_plugin.watch.drift.threshold.windows import Contiguous, Overlapping


def test_windows_of_the_reference_stand_for_as_many_as_they_are_worth() -> None:
    blocks = Contiguous.cut(
        np.array([100, 100, 10, 90, 60]),
        100,
    )
    steps = Overlapping.cut(np.full(60, 10), 6, 60)

    assert blocks.effective_n == 4
    assert blocks.starts.tolist() == [0, 1, 3, 4]
    assert steps.effective_n == 15
    assert steps.starts.tolist() == list(range(55))


def test_an_overlapping_window_has_the_rows_of_its_steps_and_is_compared_with_all_others() -> None:
    values = np.arange(24.0)
    rows = pa.table({"x": values})
    bins = {"x": freeze_bins(ColumnValues("x", "number", values))}
    pieces = cut_pieces(
        bins,
        rows,
        np.arange(24) * HOUR_US,
        0,
        6 * HOUR_US,
    )
    group = ColumnGroup(
        "",
        DriftReference(bins, "", pieces, rows),
        pieces.total,
        ("x",),
        6,
    )
    null = Overlapping.cut(row_counts(pieces.steps), pieces.grid.window_steps, 6)

    column = GroupColumn(group, "x", pieces.steps)
    windows, complements = null.compared_windows(column, column.rng())

    steps = column.counts()
    assert (windows.counts == [steps[start : start + 6].sum(axis=0) for start in range(19)]).all()
    assert (windows.counts + complements == steps.sum(axis=0)).all()
