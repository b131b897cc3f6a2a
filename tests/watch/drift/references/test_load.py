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
from mlflow_deploy_plugin.serve.inference_log.windows import Window, parse_window
from mlflow_deploy_plugin.watch.drift.references import load
from mlflow_deploy_plugin.watch.drift.references.load import (
    load_segment_references,
    rolling_windows,
)
from mlflow_deploy_plugin.watch.drift.sketches.relations import without_projections
from tests.support.inference_log import MODEL
from tests.support.refusals import mentions, refused
from tests.watch.conftest import FIRST_DAY, day_of_rows, reference_of_days
from tests.watch.drift.sketches.test_sketch import assert_same

from .conftest import DAYS, ROWS, write_four_hours


def test_sample_is_cut_like_the_judged_window(ask):
    reference = ask()

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * DAYS
    assert reference.pieces.window_starts_us[0] == parse_window("2013-01-01/1d").start_us
    assert reference.pieces.total.rows == DAYS * ROWS
    assert reference.model_id == "m-1"
    assert len(reference.sample) == DAYS * ROWS
    shifted = ask(window=parse_window("2013-02-01T06:00/1d"))
    assert shifted.pieces.window_starts_us[0] == parse_window("2012-12-31T06:00/1d").start_us
    assert shifted.bins_key == reference.bins_key


def test_pieces_are_cached_until_the_rows_change(ask, days, tmp_path):
    path = tmp_path / "calm.parquet"
    pq.write_table(reference_of_days(days), path)
    first, second = (
        ask(f"dataset:{path}", parse_window(window))
        for window in ("2013-02-01/1d", "2013-02-02/1d")
    )

    assert second.pieces is first.pieces
    assert second.bins is first.bins
    pq.write_table(reference_of_days(days[1:]), path)
    assert ask(f"dataset:{path}").pieces.total.rows == (DAYS - 1) * ROWS


def test_untimed_reference_has_only_a_total(ask, days, tmp_path):
    table = reference_of_days(days).drop_columns(["_event_time"])
    pq.write_table(table, tmp_path / "models" / "1" / "reference.parquet")

    reference = ask()

    assert reference.pieces.windows == ()
    assert reference.pieces.total.rows == DAYS * ROWS
    assert "no event times" in reference.notes[0]


def test_only_named_columns_are_compared(ask):
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
def test_segments_of_a_reference_cover_all_rows(ask, question_of, reference, judged):
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


def test_pinned_window_is_a_reference(ask, days):
    reference = ask("window:2013-01-03/2013-01-09")

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * 6
    assert reference.pieces.total.rows == 6 * ROWS
    assert reference.notes == ()
    assert set(without_projections(reference.bins)) == {*days[0]} - {"_event_time"}
    uneven = ask(
        "window:2013-01-03T00:30/2013-01-08T00:30", window=parse_window("2013-02-01T00:30/90m")
    )
    assert uneven.pieces.total.rows == sum(block.rows for block in uneven.pieces.windows)


def test_sample_of_a_wide_log_has_fewer_rows(ask, monkeypatch):
    monkeypatch.setattr(load, "_MOST_VALUES", 20 * ROWS)

    reference = ask("window:2013-01-02/2013-01-08")

    assert 0 < len(reference.sample) <= 2 * ROWS
    assert reference.pieces.total.rows == 6 * ROWS


@pytest.mark.long
def test_captured_values_of_one_window_are_unseen(ask, captured):
    rng = np.random.default_rng(1)
    days = {
        start: day_of_rows(rng, start, rows=ROWS)
        for start in (FIRST_DAY + timedelta(days=number) for number in (14, 15, 16))
    }
    days[FIRST_DAY + timedelta(days=14)]["carrier"][:5] = "ZZ"
    for start, day in days.items():
        write_four_hours(captured, start, day)

    earlier = ask("rolling:3d", window=parse_window("2013-01-18/1d")).pieces.others
    blocks = ask("window:2013-01-15/2013-01-18").pieces.windows

    assert [block.columns["carrier"].unseen for block in blocks] == [5, 0, 0]
    assert earlier.columns["carrier"].unseen == 5
    assert sum(block.columns["noise"].below + block.columns["noise"].above for block in blocks) >= 2


def test_new_version_uses_earlier_versions(ask):
    reference = ask("window:2013-01-03/2013-01-09", version="2")

    assert reference.pieces.total.rows == 6 * ROWS
    assert mentions(reference.notes[0], "version 2", "has no rows")


def test_rolling_reference_has_lagged_pairs(ask, captured):
    pieces = ask("rolling:2d", window=parse_window("2013-01-11/1d")).pieces

    assert [block.rows for block in pieces.windows] == [ROWS] * 10
    assert pieces.window_starts_us[-1] == parse_window("2013-01-10/1d").start_us
    assert_same(pieces.others, pieces.windows[8])  # 2013-01-09
    later, earlier = pieces.pairs()
    assert later.tolist() == list(range(2, 10))
    assert earlier.tolist() == list(range(8))
    assert len(ask("rolling:2d", window=parse_window("2013-01-12/1d")).pieces.windows) == 11
    assert list(captured.glob("_sketches/samples/**/*.parquet"))


def test_rolling_span_stays_in_the_calendar(question_of):
    window = Window(FIRST_DAY, FIRST_DAY + timedelta(days=30))
    spec: dict[str, Any] = {"every": "30d", "reference": "rolling:30d", "false_alarm_rate": 0.002}
    question = replace(question_of(window=window), spec=MonitorSpec(**spec))

    with refused(NotFound, "no rows of 'flights' were captured"):
        rolling_windows(question, MODEL, "1")


@pytest.mark.parametrize(
    ("reference", "window", "error", "names"),
    [
        ("window:2012-01-03/2012-01-09", "2012-02-01/1d", NotFound, ["2012-01-03/2012-01-09"]),
        ("rolling:7d", "2012-02-01/1d", NotFound, ["'flights'", "before 2012-02-01"]),
        ("rolling:1d", "2013-01-11/36h", InvalidConfig, ["shorter than the window"]),
        ("rolling:2d", "2013-01-11/36h", InvalidConfig, ["no window", "2d", "a multiple"]),
    ],
)
def test_reference_without_windows_is_refused(ask, reference, window, error, names):
    with refused(error, *names):
        ask(reference, window=parse_window(window))
