"""References: training samples, datasets and the log's own past, cut into windows like the judged one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log import parse_window
from mlflow_deploy_plugin.monitoring.drift.references import load_segment_references
from tests.monitoring.conftest import reference_of_days
from tests.support.inference_log import MODEL

from .conftest import DAYS, ROWS


def test_a_training_sample_is_cut_into_windows_of_the_judged_ones_length_and_phase(ask: Callable[..., Any]) -> None:
    reference = ask()

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * DAYS
    assert reference.pieces.window_starts_us[0] == parse_window("2013-01-01/1d").start_us
    assert (reference.pieces.total.rows, reference.model_id, len(reference.sample)) == (DAYS * ROWS, "m-1", DAYS * ROWS)
    shifted = ask(window=parse_window("2013-02-01T06:00/1d"))
    assert shifted.pieces.window_starts_us[0] == parse_window("2012-12-31T06:00/1d").start_us
    assert shifted.bins_key == reference.bins_key


def test_a_reference_without_times_has_a_total_and_says_so(
    ask: Callable[..., Any], days: list[dict[str, Any]], tmp_path: Path
) -> None:
    table = reference_of_days(days).drop_columns(["_event_time"])
    pq.write_table(table, tmp_path / "models" / "1" / "reference.parquet")

    reference = ask()

    assert (reference.pieces.windows, reference.pieces.steps, reference.pieces.total.rows) == ((), (), DAYS * ROWS)
    assert "no event times" in reference.notes[0]


def test_only_the_named_columns_are_compared(ask: Callable[..., Any]) -> None:
    reference = ask(columns=("carrier", "gone"))

    assert list(reference.bins) == ["carrier"]
    assert "gone: the reference of model flight-delay version 1 has no such column" in reference.notes
    with pytest.raises(InvalidConfig, match="has no column 'gone' to judge; it has temperature"):
        ask(columns=("gone",))


@pytest.mark.parametrize("reference", ["window:2013-01-03/2013-01-09", "rolling:2d", "training"])
def test_a_segment_of_a_reference_is_of_all_of_its_rows(
    ask: Callable[..., Any], question_of: Callable[..., Any], reference: str
) -> None:
    window = parse_window("2013-01-11/1d")
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
