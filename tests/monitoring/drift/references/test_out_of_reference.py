"""Values of windows of a reference that other windows of it lack."""

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.monitoring.drift.references.windows import correct_for_rest, cut_pieces
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import freeze_bins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import read_columns

DAY_US = 86_400_000_000
FOUR_DAYS = {
    "text": ["a", "b", "a", "c", "new", "a", "new", "b"],
    "number": [1.0, 2.0, 0.0, 3.0, 9.0, 1.0, 8.0, 2.0],
}


@pytest.mark.parametrize(
    ("until", "unseen", "above"),
    [
        (None, [0, 1, 0, 0], [0, 0, 1, 0]),  # `new` and 8 stand in the third and in the fourth day
        (2, [1, 1, 1, 1], [0, 1, 1, 1]),  # neither is known to the first two days; `b` and `c` are one day's alone
        (
            3,
            [1, 1, 1, 0],
            [0, 0, 1, 0],
        ),  # the first three have all that the fourth has; 9 and `new` are the third's own
    ],
)
def test_a_day_is_measured_against_the_others_or_those_before_a_time(
    until: int | None, unseen: list[int], above: list[int]
) -> None:
    times = np.repeat(np.arange(4) * DAY_US, 2)
    table = pa.table(FOUR_DAYS).append_column("_event_time", pa.array(times, pa.timestamp("us", tz="UTC")))
    bins = {name: freeze_bins(feature) for name, feature in read_columns(table)[0].items()}
    pieces = cut_pieces(bins, table, times, 0, DAY_US)
    until_us = None if until is None else until * DAY_US

    blocks = correct_for_rest(bins, pieces.windows, pieces.window_starts_us, DAY_US, table, until_us)

    assert [block.columns["text"].unseen for block in blocks] == unseen
    assert [block.columns["number"].above for block in blocks] == above
