"""The log returns the same rows, and the last label of each row, for any order of
files.
"""

import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.serve.inference_log import labels as labels_module
from mlflow_deploy_plugin.serve.inference_log import log_reader, maintenance
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log, view_tables
from mlflow_deploy_plugin.serve.inference_log.maintenance import compact, expire
from mlflow_deploy_plugin.serve.inference_log.stats import LabelCounts, log_stats
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.serve.runtime.log_columns import as_key, as_text
from tests.support.inference_log import LogWriter, rows_of

DAY = datetime(2013, 7, 1, tzinfo=UTC)
HOURS = 4
WINDOW = Window(DAY, DAY + timedelta(hours=HOURS))
LATER = datetime.now(UTC) + timedelta(days=1)

_hour = st.integers(0, HOURS - 1)
_ships = st.tuples(st.just("ship"), _hour, st.integers(1, 5))
_doubles = st.tuples(st.just("ship again"), st.integers(0, 20), st.integers(0, 3))
_upkeep = st.tuples(st.sampled_from(["compact", "compact and die", "expire"]), _hour, st.just(0))
_steps = st.lists(st.one_of(_ships, _ships, _doubles, _upkeep), min_size=3, max_size=14)


class Died(BaseException):
    """The end of a killed process."""


@settings(max_examples=20)
@given(_steps)
def test_rows_are_those_that_were_shipped_and_have_not_expired_each_once(steps):
    with tempfile.TemporaryDirectory() as folder:
        writer = LogWriter(Path(folder))
        log = open_log(folder)
        numbers = count()
        shipped: list[tuple[str, int, dict[str, Any]]] = []
        expected: set[tuple[str, int]] = set()
        kept_from = 0
        for step, which, size in steps:
            if step == "ship":
                columns = {
                    "_event_time": [
                        DAY + timedelta(hours=which, seconds=row) for row in range(size)
                    ]
                }
                segment = writer.write(columns)
                shipped.append((segment, which, columns))
                expected |= {(segment, row) for row in range(size)}
            elif step == "ship again" and shipped:
                segment, which, columns = shipped[which % len(shipped)]
                if which >= kept_from:  # An agent that was offline ships its rows later.
                    writer.write(columns, segment=segment, suffix=f"-{next(numbers)}")
            elif step == "expire":
                kept_from = max(kept_from, which)
                expire(log, "flights", LATER, LATER - (DAY + timedelta(hours=which)))
                gone = {segment for segment, hour, _ in shipped if hour < which}
                expected = {row for row in expected if row[0] not in gone}
            elif step == "compact":
                compact(log, "flights", LATER)
            elif step == "compact and die":
                _compact_and_die(log, after=which)
            assert sorted(_rows(log)) == sorted(expected)


def _compact_and_die(log, after):
    """Run a compaction that is killed before it deletes the file with this number."""
    delete = maintenance._delete
    deleted = count()

    def dying(*arguments):
        if next(deleted) == after:
            raise Died
        return delete(*arguments)

    with pytest.MonkeyPatch.context() as patch, suppress(Died):
        patch.setattr(maintenance, "_delete", dying)
        compact(log, "flights", LATER)


def _rows(log):
    """Return (segment, row) of every row that is read, including duplicates."""
    return [
        (row["_segment"], row["_row"])
        for row in rows_of(log.batches("flights", WINDOW, ["_segment", "_row"]))
    ]


_names = st.one_of(
    st.tuples(st.sampled_from(["p0", "p1", "unknown"]), st.sampled_from([None, 0, 1]), st.none()),
    st.tuples(st.none(), st.none(), st.sampled_from([5, 6.0, "7", 99])),
)
_labels = st.lists(
    st.tuples(_names, st.sampled_from([0, 1, "late", 2.5, True, None]), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


@pytest.mark.long
@settings(max_examples=25)
@given(
    _labels,
    st.randoms(use_true_random=False),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([1, 3, 500_000]),
)
def test_the_last_label_wins_in_whatever_order_and_files_labels_arrive_however_many_they_are(
    given_labels, random, files, compacted, most_held
):
    labels = [
        Label(
            prediction_id,
            row,
            None if flight is None else {"flight": flight},
            value,
            at,
            "s",
            offset,
        )
        for offset, ((prediction_id, row, flight), value, at) in enumerate(given_labels)
    ]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels_module, "_BATCH_ROWS", most_held)
        patch.setattr(log_reader, "_LABELLED_ROWS", 1)  # Each request is a table.
        writer = LogWriter(Path(folder))
        log = open_log(folder)
        for number, flights in enumerate(([5, 6], [7, 8])):
            times = [datetime(1970, 1, 1, tzinfo=UTC)] * 2
            writer.write(
                {
                    "_event_time": times,
                    "_prediction_id": [f"p{number}"] * 2,
                    "flight": pa.array(flights),
                }
            )
        arriving = labels + random.sample(labels, len(labels) // 2)  # Some rows are repeated.
        random.shuffle(arriving)
        for number in range(files):
            writer.label(
                *arriving[number::files], name=f"f{number}", day=f"1970-01-0{number % 2 + 1}"
            )
        if compacted:
            compact(log, "flights", LATER)

        rows = log.labelled(
            "flights", Window(datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 2, tzinfo=UTC))
        )
        tables = list(view_tables(log, View("flights"), ["flight", "_label"]))
        counts = log_stats(log, "flights").labels

    assert rows is not None
    last = {flight: _last_label(labels, flight) for flight in (5, 6, 7, 8)}
    for table in (rows.table, pa.concat_tables(tables)):
        assert {row["flight"]: row["_label"] for row in table.to_pylist()} == last
    names = {
        (
            entry.prediction_id,
            entry.row,
            as_key(entry.key["flight"]) if isinstance(entry.key, dict) else None,
        )
        for entry in labels
    }
    unknown = {name for name in names if name[0] == "unknown" or name[2] == "99"}
    assert counts == LabelCounts(
        sum(label is not None for label in last.values()), len(names), len(unknown)
    )


def _last_label(labels, flight):
    """Return the expected label: the last received label of the row, then the label
    with the highest offset.
    """
    prediction_id, row = {5: ("p0", 0), 6: ("p0", 1), 7: ("p1", 0), 8: ("p1", 1)}[flight]
    theirs = [
        label
        for label in labels
        if (label.prediction_id == prediction_id and label.row in (None, row))
        or (isinstance(label.key, dict) and as_text(label.key["flight"]) == str(flight))
    ]
    last = max(theirs, key=lambda label: (label.received_us, label.offset), default=None)
    return None if last is None else as_text(last.label)
