"""References in windows and steps, the choice of pairs, and values that are new to the
rest of a reference.
"""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.spec.types import SMALLEST_ROLLING_RATE, rolling_span
from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US, parse_window
from mlflow_deploy_plugin.watch.drift.references.windows import (
    correct_for_rest,
    cut_pieces,
    window_grid,
)
from mlflow_deploy_plugin.watch.drift.sketches.bins import freeze_bins
from mlflow_deploy_plugin.watch.drift.sketches.columns import read_columns
from mlflow_deploy_plugin.watch.drift.sketches.sketch import merge
from tests.support.inference_log import event_table
from tests.watch.conftest import FIRST_DAY, reference_of_days


def test_steps_are_contiguous_and_make_the_blocks(ask):
    reference = ask(window=parse_window("2013-02-01T06:00/12h"))

    assert reference.pieces.grid.step_us == HOUR_US
    assert reference.pieces.grid.window_steps == 12
    windows = [
        merge(reference.pieces.steps[first : first + 12])
        for first in range(0, len(reference.pieces.steps), 12)
    ]
    for window, block in zip(windows, reference.pieces.windows, strict=True):
        for name, column in window.columns.items():
            np.testing.assert_array_equal(column.counts, block.columns[name].counts)
    assert sum(step.rows for step in reference.pieces.steps) == reference.pieces.total.rows


def test_values_found_in_one_block_only_count_as_new_there(ask, days, tmp_path):
    days[3]["carrier"][:5] = "ZZ"
    days[4]["temperature"][0] = 99.0
    pq.write_table(reference_of_days(days), tmp_path / "models" / "1" / "reference.parquet")

    blocks = ask().pieces.windows

    assert [block.columns["carrier"].unseen for block in blocks] == [0, 0, 0, 5] + [0] * 8
    assert [block.columns["temperature"].above for block in blocks][4] == 1
    # The pieces are in the cache.
    assert sum(block.columns["carrier"].unseen for block in ask().pieces.windows) == 5


def test_of_more_windows_than_are_kept_pairs_are(ask):
    pieces = ask("rolling:4d", window=parse_window("2013-01-11T05:00/10m")).pieces

    later, earlier = pieces.pairs()
    starts = np.array(pieces.window_starts_us)
    assert len(later) > 30
    assert (starts[later] - starts[earlier] == 4 * 86_400_000_000).all()
    assert pieces.others.rows > 0


@pytest.mark.parametrize("lag", [1, 24, 168, 5000])
def test_as_many_pairs_are_kept_as_the_smallest_rate_needs(lag):
    length = timedelta(hours=1)
    span = rolling_span(lag * length, length, SMALLEST_ROLLING_RATE)

    over = window_grid({}, 0, HOUR_US, -(span // length) * HOUR_US, -1, lag)

    selected = over.choose(over.windows)
    assert (
        len(np.intersect1d(selected, selected + lag))
        >= over.max_pairs
        == 1 / SMALLEST_ROLLING_RATE - 1
    )


def test_bins_and_pieces_hold_any_number_of_windows(ask, days, tmp_path):
    times = [FIRST_DAY + timedelta(days=40 * number) for number in range(900)]
    pq.write_table(
        event_table({"_event_time": times, "x": np.arange(900.0)}),
        tmp_path / "models/1/reference.parquet",
    )

    reference = ask(window=parse_window("2013-02-01/1h"), every="1h")

    assert len(reference.pieces.windows) == 500
    assert len(reference.pieces.steps) == 0
    assert reference.pieces.total.rows == 900


DAY_US = 86_400_000_000
FOUR_DAYS = {
    "text": ["a", "b", "a", "c", "new", "a", "new", "b"],
    "number": [1.0, 2.0, 0.0, 3.0, 9.0, 1.0, 8.0, 2.0],
}


def test_a_day_is_measured_against_the_others():
    times = np.repeat(np.arange(4) * DAY_US, 2)
    table = pa.table(FOUR_DAYS).append_column(
        "_event_time", pa.array(times, pa.timestamp("us", tz="UTC"))
    )
    bins = {name: freeze_bins(feature) for name, feature in read_columns(table)[0].items()}
    pieces = cut_pieces(bins, table, times, 0, DAY_US)

    blocks = correct_for_rest(bins, pieces.windows, pieces.window_starts_us, DAY_US, table)

    assert [block.columns["text"].unseen for block in blocks] == [0, 1, 0, 0]
    assert [block.columns["number"].above for block in blocks] == [0, 0, 1, 0]
