"""References from training samples, datasets and the log, divided into windows like the
judged window.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import rolling_span
from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US, Window, parse_window
from mlflow_deploy_plugin.watch.drift.column_findings import ColumnGroup
from mlflow_deploy_plugin.watch.drift.references.load import (
    load_segment_references,
    rolling_windows,
)
from mlflow_deploy_plugin.watch.drift.sketches.relations import without_projections
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.watch.drift.verdict import too_few_rows
from tests.support.inference_log import MODEL, LogWriter
from tests.support.refusals import mentions, refused
from tests.watch.conftest import FIRST_DAY, day_of_rows, reference_of_days
from tests.watch.drift.sketches.test_sketch import assert_same

from .conftest import DAYS, ROWS, window_rows


def test_a_training_sample_is_cut_into_windows_of_the_judged_ones_length_and_phase(ask):
    reference = ask()

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * DAYS
    assert reference.pieces.window_starts_us[0] == parse_window("2013-01-01/1d").start_us
    assert reference.pieces.total.rows == DAYS * ROWS
    assert reference.model_id == "m-1"
    assert len(reference.sample) == DAYS * ROWS
    shifted = ask(window=parse_window("2013-02-01T06:00/1d"))
    assert shifted.pieces.window_starts_us[0] == parse_window("2012-12-31T06:00/1d").start_us
    assert shifted.bins_key == reference.bins_key


def test_windows_that_follow_each_other_share_the_pieces_of_the_same_rows(ask, days, tmp_path):
    path = tmp_path / "calm.parquet"
    pq.write_table(reference_of_days(days), path)
    first, second = (
        ask(f"dataset:{path}", parse_window(window))
        for window in ("2013-02-01/1d", "2013-02-02/1d")
    )

    assert second.pieces is first.pieces
    longer = ask(f"dataset:{path}", parse_window("2013-02-02/2d"))
    assert longer.pieces.grid.length_us == 2 * first.pieces.grid.length_us
    pq.write_table(reference_of_days(days[1:]), path)
    assert ask(f"dataset:{path}").pieces.total.rows == (DAYS - 1) * ROWS


def test_a_reference_without_times_has_a_total_and_says_so(ask, days, tmp_path):
    table = reference_of_days(days).drop_columns(["_event_time"])
    pq.write_table(table, tmp_path / "models" / "1" / "reference.parquet")

    reference = ask()

    assert reference.pieces.windows == ()
    assert reference.pieces.steps == ()
    assert reference.pieces.total.rows == DAYS * ROWS
    assert "no event times" in reference.notes[0]


def test_only_the_named_columns_are_compared(ask):
    reference = ask(columns=("carrier", "gone"))

    assert list(reference.bins) == ["carrier"]
    assert any(mentions(note, "gone", "flight-delay version 1") for note in reference.notes)
    with refused(InvalidConfig, "'gone'", "temperature"):
        ask(columns=("gone",))


@pytest.mark.long
@pytest.mark.parametrize(
    ("reference", "judged"),
    [
        ("window:2013-01-03/2013-01-09", "2013-01-11/1d"),
        # The window does not consist of whole hours, so rows are read.
        ("window:2013-01-03T00:30/2013-01-09T00:30", "2013-01-11T00:30/90m"),
        ("rolling:2d", "2013-01-11/1d"),
        ("training", "2013-01-11/1d"),
    ],
)
def test_a_segment_of_a_reference_is_of_all_of_its_rows(ask, question_of, reference, judged):
    window = parse_window(judged)
    whole = ask(reference, window=window)

    parts = load_segment_references(
        question_of(reference, window), MODEL, "1", whole, "carrier", ["UA", "AA", "DL", "none"]
    )

    for place in range(len(whole.pieces.windows)):
        of_parts = [part.pieces.windows[place].rows for part in parts[:3]]
        assert sum(of_parts) == whole.pieces.windows[place].rows
        assert min(of_parts) > 0
    assert sum(part.pieces.others.rows for part in parts[:3]) == whole.pieces.others.rows
    assert parts[3].pieces.total.rows == 0


def test_a_pinned_window_of_the_log_is_a_reference(ask):
    reference = ask("window:2013-01-03/2013-01-09")

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * 6
    assert reference.pieces.total.rows == 6 * ROWS
    assert reference.pieces.grid.step_us == HOUR_US
    assert len(reference.pieces.steps) == 144
    assert reference.notes == ()
    assert set(without_projections(reference.bins)) == {
        "temperature",
        "noise",
        "carrier",
        "is_weekend",
        "prediction",
    }
    uneven = ask(
        "window:2013-01-03T00:30/2013-01-08T00:30", window=parse_window("2013-02-01T00:30/90m")
    )
    assert uneven.pieces.total.rows == sum(block.rows for block in uneven.pieces.windows)
    assert uneven.pieces.grid.window_steps == 1


def test_values_found_in_one_captured_window_only_count_as_new_there(ask, captured):
    rng = np.random.default_rng(1)
    days = [
        day_of_rows(rng, FIRST_DAY + timedelta(days=80 + number), rows=ROWS) for number in range(3)
    ]
    days[0]["carrier"][:5] = "ZZ"
    for day in days:
        LogWriter(captured).write(day)

    earlier = ask("rolling:3d", window=parse_window("2013-03-25/1d")).pieces.others
    blocks = ask("window:2013-03-22/2013-03-25").pieces.windows

    assert [block.columns["carrier"].unseen for block in blocks] == [5, 0, 0]
    assert earlier.columns["carrier"].unseen == 5
    assert sum(block.columns["noise"].below + block.columns["noise"].above for block in blocks) >= 2


def test_a_version_that_was_not_there_yet_is_compared_with_those_that_were(ask):
    reference = ask("window:2013-01-03/2013-01-09", version="2")

    assert reference.pieces.total.rows == 6 * ROWS
    assert mentions(reference.notes[0], "version 2", "has no rows")


def test_a_rolling_reference_is_the_same_window_so_long_ago_and_the_pairs_before_it(ask, captured):
    pieces = ask("rolling:2d", window=parse_window("2013-01-11/1d")).pieces

    assert [block.rows for block in pieces.windows] == [ROWS] * 10
    assert pieces.window_starts_us[-1] == parse_window("2013-01-10/1d").start_us
    assert_same(pieces.others, pieces.windows[8])  # 2013-01-09
    later, earlier = pieces.pairs()
    assert later.tolist() == list(range(2, 10))
    assert earlier.tolist() == list(range(8))
    assert len(ask("rolling:2d", window=parse_window("2013-01-12/1d")).pieces.windows) == 11
    assert list(captured.glob("_sketches/samples/**/*.parquet"))


def test_an_hour_is_compared_with_the_same_hour_so_long_ago(ask):
    reference = ask("rolling:1d", window=parse_window("2013-01-11T05:00/1h"))

    starts = reference.pieces.window_starts_us
    assert starts[0] == parse_window("2013-01-09T04:00/1h").start_us  # the first hour with rows
    assert starts[-1] == parse_window("2013-01-11T04:00/1h").start_us
    assert reference.pieces.others.rows == window_rows(reference, "2013-01-10T05:00/1h")
    assert mentions(reference.notes[0], "1d before", "2013-01-10T05:00:00/2013-01-10T06:00:00")
    gone = ask("rolling:1d", window=parse_window("2013-01-11T15:00/1h"))
    assert (gone.pieces.others.rows, len(gone.pieces.windows) > 0) == (0, True)


def test_no_span_leaves_the_calendar(question_of):
    window = Window(FIRST_DAY, FIRST_DAY + timedelta(days=30))
    spec: dict[str, Any] = {"every": "30d", "reference": "rolling:30d", "false_alarm_rate": 0.002}
    question = replace(question_of(window=window), spec=MonitorSpec(**spec))

    with refused(NotFound, "no rows of 'flights' were captured"):
        rolling_windows(question, MODEL, "1")
    assert rolling_span(timedelta(3660), timedelta(3660), 1e-300) < timedelta(50_000)


def test_a_log_that_is_younger_than_the_lag_has_no_window_to_compare_with(ask):
    window = parse_window("2013-01-09T05:00/10m")

    pieces = ask("rolling:60d", window=window).pieces

    assert pieces.others.rows == 0
    assert len(pieces.pairs()[0]) == 0
    assert mentions(
        too_few_rows(
            ColumnGroup("", ask("rolling:60d", window=window), Profile(50, {}), ("x",)),
            MonitorSpec(min_rows=1),
        ),
        "8640 windows",
    )


@pytest.mark.parametrize(
    ("reference", "names"),
    [
        ("window:2012-01-03/2012-01-09", ["'flights'", "2012-01-03/2012-01-09"]),
        ("rolling:7d", ["'flights'", "before 2012-02-01"]),
    ],
)
def test_a_past_without_rows_is_a_clear_error(ask, reference, names):
    with refused(NotFound, *names):
        ask(reference, window=parse_window("2012-02-01/1d"))


@pytest.mark.parametrize(
    ("reference", "names"),
    [
        ("rolling:1d", ["rolling:1d", "shorter than the window", "1 day, 12:00:00"]),
        ("rolling:2d", ["no window", "1 day, 12:00:00", "2d", "a multiple"]),
    ],
)
def test_a_window_by_hand_of_another_length_may_have_none_so_long_before_it(ask, reference, names):
    with refused(InvalidConfig, *names):
        ask(reference, window=parse_window("2013-01-11/36h"))
