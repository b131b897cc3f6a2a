"""References: training samples, datasets and the log's own past, cut into windows like the one that is judged."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.errors import InvalidArtifact, InvalidConfig, NotFound
from mlflow_deploy_plugin.inference_log import HOUR_US, Window, parse_window
from mlflow_deploy_plugin.monitoring.drift.references import load_reference, load_segment_references
from mlflow_deploy_plugin.monitoring.drift.references.log_reference import rolling_windows
from mlflow_deploy_plugin.monitoring.drift.references.windows import DriftReference, window_grid
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import merge
from mlflow_deploy_plugin.monitoring.drift.threshold.hold_out import needed_windows
from mlflow_deploy_plugin.monitoring.drift.threshold.sample_size import too_few_rows
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import SMALLEST_ROLLING_RATE, MonitorSpec, rolling_span
from tests.monitoring.conftest import FIRST_DAY, day_of_rows, reference_of_days, serve, write_model
from tests.monitoring.drift.sketches.test_sketch import assert_same
from tests.support.inference_log import ENDPOINT, MODEL, LogWriter, event_table

DAY = parse_window("2013-02-01/2013-02-02")
DAYS, ROWS = 12, 60


def some_days() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [day_of_rows(rng, FIRST_DAY + timedelta(days=number), rows=ROWS) for number in range(DAYS)]


@pytest.fixture
def days() -> list[dict[str, Any]]:
    return some_days()


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with the days, answered by version 1."""
    folder = tmp_path_factory.mktemp("captured")
    for number, day in enumerate(some_days()):  # four hours of each, since each hour is a file
        start = FIRST_DAY + timedelta(days=number)
        day["_event_time"] = [start + timedelta(hours=4) + (time - start) / 6 for time in day["_event_time"]]
        LogWriter(folder).write(day)
    return folder


@pytest.fixture
def question_of(tmp_path: Path, captured: Path, days: list[dict[str, Any]]) -> Callable[..., Any]:
    """What a monitor is asked; version 1 is served, with the days as its reference."""
    settings = Settings(home=tmp_path / "home", log_uri=str(captured))
    state_dir = settings.deployments_path / ENDPOINT
    serve(state_dir, write_model(tmp_path / "models" / "1", reference_of_days(days), "m-1"))

    def request(
        reference: str = "training", window: Window = DAY, columns: tuple[Any, ...] = (), every: str = "1d"
    ) -> WindowRequest:
        spec = MonitorSpec(reference=reference, columns=columns, every=every)
        return WindowRequest(ENDPOINT, "drift", spec, window, 1, settings)

    return request


@pytest.fixture
def ask(question_of: Callable[..., Any]) -> Callable[..., Any]:
    """Loads the reference of a monitor."""

    def ask(
        reference: str = "training",
        window: Window = DAY,
        version: str = "1",
        columns: tuple[Any, ...] = (),
        every: str = "1d",
    ) -> DriftReference | None:
        return load_reference(question_of(reference, window, columns, every), MODEL, version)

    return ask


def test_a_training_sample_is_cut_into_windows_of_the_judged_ones_length_and_phase(ask: Callable[..., Any]) -> None:
    reference = ask()

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * DAYS
    assert reference.pieces.window_starts_us[0] == parse_window("2013-01-01/1d").start_us
    assert (reference.pieces.total.rows, reference.model_id, len(reference.sample)) == (DAYS * ROWS, "m-1", DAYS * ROWS)
    shifted = ask(window=parse_window("2013-02-01T06:00/1d"))
    assert shifted.pieces.window_starts_us[0] == parse_window("2012-12-31T06:00/1d").start_us
    assert shifted.bins_key == reference.bins_key


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


def test_a_reference_without_times_has_a_total_and_says_so(
    ask: Callable[..., Any], days: list[dict[str, Any]], tmp_path: Path
) -> None:
    table = reference_of_days(days).drop_columns(["_event_time"])
    pq.write_table(table, tmp_path / "models" / "1" / "reference.parquet")

    reference = ask()

    assert (reference.pieces.windows, reference.pieces.steps, reference.pieces.total.rows) == ((), (), DAYS * ROWS)
    assert "no event times" in reference.notes[0]


def test_a_model_without_a_reference_is_an_error_that_says_what_to_do(ask: Callable[..., Any], tmp_path: Path) -> None:
    serve(tmp_path / "home" / "deployments" / ENDPOINT, write_model(tmp_path / "models" / "2", None), "2")

    with pytest.raises(InvalidArtifact, match="version 2 has no reference to compare with; log it with"):
        ask(version="2")


def test_only_the_named_columns_are_compared(ask: Callable[..., Any]) -> None:
    reference = ask(columns=("carrier", "gone"))

    assert list(reference.bins) == ["carrier"]
    assert "gone: the reference of model flight-delay version 1 has no such column" in reference.notes
    with pytest.raises(InvalidConfig, match="has no column 'gone' to judge; it has temperature"):
        ask(columns=("gone",))


def test_a_version_that_is_not_served_is_downloaded_once(world: Any) -> None:
    shutil.rmtree(world.state_dir)
    request = WindowRequest(ENDPOINT, "drift", MonitorSpec(), DAY, 1, world.settings)
    first = load_reference(request, MODEL, "1")
    shutil.rmtree(world.model_folder)

    again = load_reference(request, MODEL, "1")

    assert (again.model_id, again.bins_key) == (world.model_id, first.bins_key)
    for one, other in zip(first.pieces.windows, again.pieces.windows, strict=True):
        assert_same(one, other)
    for path in (world.settings.cache_path / "references").glob("*.parquet"):
        path.write_bytes(b"broken")
    assert_same(load_reference(request, MODEL, "1").pieces.total, first.pieces.total)


@pytest.mark.parametrize("column", ["_event_time", "when"])
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_dataset_is_a_reference(
    ask: Callable[..., Any], days: list[dict[str, Any]], tmp_path: Path, suffix: str, column: str
) -> None:
    table = reference_of_days(days)
    table = table.rename_columns([column if name == "_event_time" else name for name in table.column_names])
    path = tmp_path / f"calm.{suffix}"
    (pq.write_table if suffix == "parquet" else pa_csv.write_csv)(table, path)

    reference = ask(f"dataset:{path}")

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * DAYS
    assert set(reference.bins) == {"temperature", "noise", "carrier", "is_weekend", "prediction"}
    assert set(ask(f"dataset:file://{path}").bins) == set(reference.bins)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, NotFound, "does not exist"),
        (b"no parquet", InvalidConfig, "cannot be read"),
        (pa.table({"a": pa.array([], pa.int64())}), InvalidConfig, "has no rows"),
        (pa.table({"a": [FIRST_DAY], "b": [FIRST_DAY]}), InvalidConfig, r"several columns of times \(a, b\): name the"),
        (pa.table({"_event_time": [FIRST_DAY, None]}), InvalidConfig, "1 rows have no _event_time"),
    ],
)
def test_a_dataset_that_is_none_is_a_clear_error(
    ask: Callable[..., Any], tmp_path: Path, content: bytes | pa.Table | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / "data.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(content, path)

    with pytest.raises(error, match=message):
        ask(f"dataset:{path}")


def test_a_pinned_window_of_the_log_is_a_reference(ask: Callable[..., Any]) -> None:
    reference = ask("window:2013-01-03/2013-01-09")

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * 6
    assert (reference.pieces.total.rows, reference.pieces.step_seconds, len(reference.pieces.steps)) == (
        6 * ROWS,
        3600,
        144,
    )
    assert (reference.notes, set(reference.bins)) == (
        (),
        {"temperature", "noise", "carrier", "is_weekend", "prediction"},
    )
    uneven = ask("window:2013-01-03T00:30/2013-01-08T00:30", window=parse_window("2013-02-01T00:30/90m"))
    assert (uneven.pieces.total.rows, uneven.pieces.window_steps) == (
        sum(block.rows for block in uneven.pieces.windows),
        1,
    )


def test_what_one_captured_window_alone_has_is_new_to_it(ask: Callable[..., Any], captured: Path) -> None:
    rng = np.random.default_rng(1)
    days = [day_of_rows(rng, FIRST_DAY + timedelta(days=80 + number), rows=ROWS) for number in range(3)]
    days[0]["carrier"][:5] = "ZZ"
    for day in days:
        LogWriter(captured).write(day)

    blocks = ask("window:2013-03-22/2013-03-25").pieces.windows

    assert [block.columns["carrier"].unseen for block in blocks] == [5, 0, 0]
    assert sum(block.columns["noise"].below + block.columns["noise"].above for block in blocks) >= 2


def test_a_version_that_was_not_there_yet_is_compared_with_those_that_were(ask: Callable[..., Any]) -> None:
    reference = ask("window:2013-01-03/2013-01-09", version="2")

    assert reference.pieces.total.rows == 6 * ROWS
    assert "version 2 did not answer in the reference" in reference.notes[0]


def test_a_rolling_reference_is_the_same_window_so_long_ago_and_the_pairs_before_it(
    ask: Callable[..., Any], captured: Path
) -> None:
    pieces = ask("rolling:2d", window=parse_window("2013-01-11/1d")).pieces

    assert [block.rows for block in pieces.windows] == [ROWS] * 10
    assert pieces.window_starts_us[-1] == parse_window("2013-01-10/1d").start_us
    assert_same(pieces.others, pieces.windows[8])  # 2013-01-09
    later, earlier = pieces.pairs()
    assert (later.tolist(), earlier.tolist()) == (list(range(2, 10)), list(range(8)))
    assert len(ask("rolling:2d", window=parse_window("2013-01-12/1d")).pieces.windows) == 11
    assert list(captured.glob("_sketches/samples/**/*.parquet"))


def test_an_hour_is_compared_with_the_same_hour_so_long_ago(ask: Callable[..., Any]) -> None:
    reference = ask("rolling:1d", window=parse_window("2013-01-11T05:00/1h"))

    starts = reference.pieces.window_starts_us
    assert starts[0] == parse_window("2013-01-09T04:00/1h").start_us  # the first with rows
    assert starts[-1] == parse_window("2013-01-11T04:00/1h").start_us
    assert reference.pieces.others.rows == window_rows(reference, "2013-01-10T05:00/1h")
    assert reference.notes[0] == "compared with the same window 1d before, 2013-01-10T05:00:00/2013-01-10T06:00:00"
    gone = ask("rolling:1d", window=parse_window("2013-01-11T15:00/1h"))
    assert (gone.pieces.others.rows, len(gone.pieces.windows) > 0) == (0, True)


def window_rows(reference: DriftReference, window: str) -> int:
    return reference.pieces.windows[reference.pieces.window_starts_us.index(parse_window(window).start_us)].rows


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


def test_no_span_leaves_the_calendar(question_of: Callable[..., Any]) -> None:
    window = Window(FIRST_DAY, FIRST_DAY + timedelta(days=30))
    spec: dict[str, Any] = {
        "kind": "data_quality",
        "every": "30d",
        "reference": "rolling:30d",
        "false_alarm_rate": 1e-300,
    }
    asked = replace(question_of(window=window), spec=MonitorSpec(**spec))

    with pytest.raises(NotFound, match="nothing was captured of 'flights' before"):
        rolling_windows(asked, MODEL, "1")
    assert rolling_span(timedelta(3660), timedelta(3660), 1e-300) < timedelta(50_000)


def test_a_log_that_is_younger_than_the_lag_has_no_window_to_compare_with(ask: Callable[..., Any]) -> None:
    window = parse_window("2013-01-09T05:00/10m")

    pieces = ask("rolling:60d", window=window).pieces

    assert (pieces.others.rows, len(pieces.pairs()[0])) == (0, 0)
    assert "the window 8640 windows before" in too_few_rows(
        ask("rolling:60d", window=window), 50, ["x"], 50, MonitorSpec(min_rows=1)
    )


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


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("window:2012-01-03/2012-01-09", NotFound, "nothing was captured of 'flights' in 2012-01-03/2012-01-09"),
        ("rolling:7d", NotFound, "nothing was captured of 'flights' before 2012-02-01"),
    ],
)
def test_a_past_without_rows_is_a_clear_error(
    ask: Callable[..., Any], reference: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(reference, window=parse_window("2012-02-01/1d"))


def test_bins_and_pieces_hold_any_number_of_windows(
    ask: Callable[..., Any], days: list[dict[str, Any]], tmp_path: Path
) -> None:
    times = [FIRST_DAY + timedelta(days=40 * number) for number in range(900)]
    pq.write_table(event_table({"_event_time": times, "x": np.arange(900.0)}), tmp_path / "models/1/reference.parquet")

    reference = ask(window=parse_window("2013-02-01/1h"), every="1h")

    assert (len(reference.pieces.windows), len(reference.pieces.steps), reference.pieces.total.rows) == (500, 0, 900)
