"""Profiles of whole hours, stored next to the log. They make long windows cheap and
always match the log.
"""

import io
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest
from mlflow_deploy_plugin.watch.drift.sketches.hourly import (
    SketchStore,
    window_profile,
    window_versions,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import sketch_batches
from tests.support.inference_log import ENDPOINT, MODEL, event_table
from tests.watch.conftest import FIRST_DAY, day_of_rows

from .test_sketch import assert_same

DAYS = 3
MONTH = parse_window("2013-01-01/2013-02-01")
CUT = parse_window("2013-01-01T05:20/2013-01-03T07:40")


@pytest.fixture
def days():
    rng = np.random.default_rng(0)
    days = [day_of_rows(rng, FIRST_DAY + timedelta(days=number)) for number in range(DAYS)]
    for number, day in enumerate(days):  # five hours per day, since each hour is a file
        start = FIRST_DAY + timedelta(days=number)
        day["_event_time"] = [
            start + timedelta(hours=3) + (time - start) * 5 / 24 for time in day["_event_time"]
        ]
    return days


@pytest.fixture
def log(writer, days):
    for number, day in enumerate(days):
        writer.write(day, segment=f"s{number}")
    return open_log(str(writer.root))


@pytest.fixture
def bins(days):
    return freeze_table(event_table(days[0]), (), "the reference")[0]


def profile(log, bins, window=MONTH, version="1"):
    return window_profile(
        SketchStore(log, ENDPOINT, bins, bins_digest(bins)), MODEL, version, window
    )


def expected(bins, days, window=MONTH):
    table = pa.concat_tables([event_table(day) for day in days])
    times = table.column("_event_time").cast(pa.int64()).to_numpy()
    return sketch_batches(
        bins, [table.filter(pa.array((times >= window.start_us) & (times < window.end_us)))]
    )


def stored(log):
    return sorted(Path(log.location.root).glob("_sketches/*/endpoint=flights/date=*/hours.parquet"))


@pytest.mark.parametrize(
    "window", [MONTH, CUT, parse_window("2013-01-02T03:10/10m"), parse_window("2014-01-01/1d")]
)
def test_profile_of_a_window_equals_its_rows(log, bins, days, window):
    made = profile(log, bins, window)

    assert_same(made, expected(bins, days, window)) if made.rows else None
    assert made.rows == expected(bins, days, window).rows
    assert_same(profile(log, bins, window), made)  # Stored profiles are used.


def test_late_rows_and_compaction_update_profiles(log, bins, days, writer):
    profile(log, bins)
    late = day_of_rows(np.random.default_rng(9), FIRST_DAY + timedelta(days=1), rows=7)

    writer.write(late, segment="late")
    assert_same(profile(log, bins), expected(bins, [*days, late]))

    hour = next(Path(log.location.root).glob("endpoint=*/date=2013-01-02/hour=*"))
    for path in hour.iterdir():
        path.rename(path.with_name(f"compacted-{path.name}"))
    assert_same(profile(log, bins), expected(bins, [*days, late]))


def test_invalid_stored_profiles_are_replaced(log, bins, days):
    profile(log, bins)
    other = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}).replace_schema_metadata({"onnxserve": "[1]"}), other)
    broken = [other.getvalue(), b"no parquet", stored(log)[2].read_bytes()[:-40]]
    for path, content in zip(stored(log), broken, strict=True):
        path.write_bytes(content)

    assert_same(profile(log, bins), expected(bins, days))
    assert all(path.stat().st_size > 1000 for path in stored(log))


def test_unreadable_file_is_named_until_readable(log, bins, days):
    path = next(Path(log.location.root).glob("endpoint=*/date=2013-01-02/hour=*/*.parquet"))
    content = path.read_bytes()
    path.write_bytes(b"x" * len(content))
    assert profile(log, bins).rows < expected(bins, days).rows

    again = open_log(log.location.shown)
    profile(again, bins)
    assert list(again.unreadable) == [str(path)]

    path.write_bytes(content)
    assert_same(profile(open_log(log.location.shown), bins), expected(bins, days))


def test_unwritable_sketches_do_not_matter(log, bins, days):
    (Path(log.location.root) / "_sketches").write_text("a file where the folder would be")

    assert_same(profile(log, bins), expected(bins, days))


def test_profiles_are_stored_in_the_bucket(log, bins, days, bucket):
    for path in Path(log.location.root).glob("endpoint=*/**/*.parquet"):
        bucket.objects[f"b/log/{path.relative_to(log.location.root)}"] = path.read_bytes()
    first = profile(open_log("s3://b/log"), bins)
    bucket.asked.clear()

    assert_same(profile(open_log("s3://b/log"), bins), first)

    assert_same(first, expected(bins, days))
    assert len([name for name in bucket.objects if "_sketches" in name]) == DAYS
    assert not bucket.headers_of("GET", "s0-0.parquet")  # No file with rows is opened.
    assert len(bucket.asked) < 20


def test_versions_have_separate_profiles(log, bins, days, writer):
    writer.write(day_of_rows(np.random.default_rng(9), FIRST_DAY, rows=11), version="2")

    assert profile(log, bins, version="2").rows == 11
    assert_same(profile(log, bins), expected(bins, days))
    assert profile(log, bins, version="").rows == 371
    assert profile(log, bins, version="3").rows == 0
    assert window_versions(log, ENDPOINT, MONTH) == {(MODEL, "1"): 360, (MODEL, "2"): 11}


def test_duplicate_row_counts_once(log, bins, days, writer):
    writer.write(days[1], segment="s1", suffix="-again")

    assert_same(profile(log, bins), expected(bins, days))
