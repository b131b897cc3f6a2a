"""References cut into windows and steps, and the pairs that are kept of many."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.inference_log import HOUR_US, parse_window
from mlflow_deploy_plugin.monitoring.drift.references.windows import window_grid
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import merge
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import needed_windows
from mlflow_deploy_plugin.spec import SMALLEST_ROLLING_RATE, rolling_span
from tests.monitoring.conftest import FIRST_DAY, reference_of_days
from tests.support.inference_log import event_table


def test_steps_are_contiguous_and_make_the_blocks(ask: Callable[..., Any]) -> None:
    reference = ask(window=parse_window("2013-02-01T06:00/12h"))

    assert (reference.pieces.step_seconds, reference.pieces.window_steps) == (3600, 12)
    windows = [merge(reference.pieces.steps[first : first + 12]) for first in range(0, len(reference.pieces.steps), 12)]
    for window, block in zip(windows, reference.pieces.windows, strict=True):
        for name, column in window.columns.items():
            np.testing.assert_array_equal(column.counts, block.columns[name].counts)
    assert sum(step.rows for step in reference.pieces.steps) == reference.pieces.total.rows


def test_what_one_block_alone_has_is_new_to_it(
    ask: Callable[..., Any], days: list[dict[str, Any]], tmp_path: Path
) -> None:
    days[3]["carrier"][:5] = "ZZ"
    days[4]["temperature"][0] = 99.0
    pq.write_table(reference_of_days(days), tmp_path / "models" / "1" / "reference.parquet")

    blocks = ask().pieces.windows

    assert [block.columns["carrier"].unseen for block in blocks] == [0, 0, 0, 5] + [0] * 8
    assert [block.columns["temperature"].above for block in blocks][4] == 1
    assert sum(block.columns["carrier"].unseen for block in ask().pieces.windows) == 5  # from what is kept on this disk


def test_of_more_windows_than_are_kept_pairs_are(ask: Callable[..., Any]) -> None:
    pieces = ask("rolling:4d", window=parse_window("2013-01-11T05:00/10m")).pieces

    later, earlier = pieces.pairs()
    starts = np.array(pieces.window_starts_us)
    assert len(later) > 30
    assert (starts[later] - starts[earlier] == 4 * 86_400_000_000).all()
    assert pieces.others.rows > 0


@pytest.mark.parametrize("lag", [1, 24, 168, 5000])
def test_as_many_pairs_are_kept_as_the_smallest_rate_needs(lag: int) -> None:
    length = timedelta(hours=1)
    span = rolling_span(lag * length, length, SMALLEST_ROLLING_RATE)

    over = window_grid({}, 0, HOUR_US, -(span // length) * HOUR_US, -1, lag)

    kept = over.choose(over.windows)
    assert len(np.intersect1d(kept, kept + lag)) >= over.max_pairs == needed_windows(SMALLEST_ROLLING_RATE)


def test_bins_and_pieces_hold_any_number_of_windows(
    ask: Callable[..., Any], days: list[dict[str, Any]], tmp_path: Path
) -> None:
    times = [FIRST_DAY + timedelta(days=40 * number) for number in range(900)]
    pq.write_table(event_table({"_event_time": times, "x": np.arange(900.0)}), tmp_path / "models/1/reference.parquet")

    reference = ask(window=parse_window("2013-02-01/1h"), every="1h")

    assert (len(reference.pieces.windows), len(reference.pieces.steps), reference.pieces.total.rows) == (500, 0, 900)
