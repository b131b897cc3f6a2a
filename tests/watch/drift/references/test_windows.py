"""References in windows, the choice of pairs, and values that are new to the
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
    RANDOM_WINDOWS,
    correct_for_rest,
    cut_pieces,
    window_grid,
    with_random_windows,
)
from mlflow_deploy_plugin.watch.drift.sketches.bins import freeze_bins
from mlflow_deploy_plugin.watch.drift.sketches.columns import read_columns
from tests.support.inference_log import event_table
from tests.watch.conftest import FIRST_DAY, reference_of_days
from tests.watch.drift.test_verdict import reference_of


def test_values_of_one_window_are_unseen(ask, days, tmp_path):
    days[3]["carrier"][:5] = "ZZ"
    pq.write_table(reference_of_days(days), tmp_path / "models" / "1" / "reference.parquet")

    for _ in range(2):  # The second time, the pieces are in the cache.
        unseen = [block.columns["carrier"].unseen for block in ask().pieces.windows]
        assert unseen == [0, 0, 0, 5] + [0] * 8


@pytest.mark.parametrize("lag", [1, 24, 168, 5000])
def test_pairs_suffice_for_the_smallest_rate(lag):
    length = timedelta(hours=1)
    span = rolling_span(lag * length, length, SMALLEST_ROLLING_RATE)

    over = window_grid({}, 0, HOUR_US, -(span // length) * HOUR_US, -1, lag)

    selected = over.choose(over.windows)
    assert (
        len(np.intersect1d(selected, selected + lag))
        >= over.max_pairs
        == 1 / SMALLEST_ROLLING_RATE - 1
    )


def test_windows_of_a_long_reference_are_limited(ask, days, tmp_path):
    times = [FIRST_DAY + timedelta(days=40 * number) for number in range(900)]
    pq.write_table(
        event_table({"_event_time": times, "x": np.arange(900.0)}),
        tmp_path / "models/1/reference.parquet",
    )

    reference = ask(window=parse_window("2013-02-01/1h"), every="1h")

    assert len(reference.pieces.windows) == 500
    assert reference.pieces.total.rows == 900


DAY_US = 86_400_000_000
FOUR_DAYS = {
    "text": ["a", "b", "a", "c", "new", "a", "new", "b"],
    "number": [1.0, 2.0, 0.0, 3.0, 9.0, 1.0, 8.0, 2.0],
}


def test_day_is_compared_with_other_days():
    times = np.repeat(np.arange(4) * DAY_US, 2)
    table = pa.table(FOUR_DAYS).append_column(
        "_event_time", pa.array(times, pa.timestamp("us", tz="UTC"))
    )
    bins = {name: freeze_bins(feature) for name, feature in read_columns(table)[0].items()}
    pieces = cut_pieces(bins, table, times, 0, DAY_US)

    blocks = correct_for_rest(bins, pieces.windows, pieces.window_starts_us, DAY_US, table)

    assert [block.columns["text"].unseen for block in blocks] == [0, 1, 0, 0]
    assert [block.columns["number"].above for block in blocks] == [0, 0, 1, 0]


def independent_reference(rows):
    table = pa.table(
        {"number": np.arange(float(rows)), "name": [f"id-{row}" for row in range(rows)]}
    )
    return reference_of(table, None)


@pytest.mark.parametrize(
    ("reference_rows", "rows", "window_rows"),
    [
        (9_000, 50, 50),
        # A window has at most an eighth of the rows.
        (400, 50, 50),
        (400, 300, 50),
        (30, 300, 3),
    ],
)
def test_random_windows_have_the_judged_size(reference_rows, rows, window_rows):
    reference = independent_reference(reference_rows)

    pieces = with_random_windows(reference, rows).pieces

    assert len(pieces.windows) == len(set(pieces.window_starts_us)) == RANDOM_WINDOWS
    assert min(window.rows for window in pieces.windows) == window_rows
    assert pieces.total is reference.pieces.total


def test_random_windows_count_their_unique_values():
    windows = with_random_windows(independent_reference(800), 100).pieces.windows

    assert [window.columns["name"].unseen for window in windows] == [100] * RANDOM_WINDOWS
    # The smallest and the largest number are in one window each of every division.
    outside = [
        window.columns["number"].below + window.columns["number"].above for window in windows
    ]
    assert 0 < np.count_nonzero(outside) < RANDOM_WINDOWS / 2


def test_random_windows_are_reproducible():
    first, second = (with_random_windows(independent_reference(800), 100) for _ in range(2))

    means = [
        [window.columns["number"].mean for window in reference.pieces.windows]
        for reference in (first, second)
    ]
    assert means[0] == means[1]
