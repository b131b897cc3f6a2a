"""The log in a bucket behind a real S3 API: read, queried, labelled, compacted,
expired, erased.
"""

import uuid
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.serve.inference_log.erasure import Erasure
from mlflow_deploy_plugin.serve.inference_log.labels import Label, read_labels
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log
from mlflow_deploy_plugin.serve.inference_log.maintenance import compact, expire
from mlflow_deploy_plugin.serve.inference_log.query import Query, run_query
from mlflow_deploy_plugin.serve.inference_log.stats import log_stats
from mlflow_deploy_plugin.serve.inference_log.windows import microseconds, parse_window
from tests.support.inference_log import rows_of
from tests.support.services.s3 import NEEDS_S3, own_bucket

DAY = datetime(2013, 7, 1, tzinfo=UTC)
LATER = datetime.now(UTC) + timedelta(days=1)
WINDOW = parse_window("2013-07-01/1d")

pytestmark = NEEDS_S3


@pytest.fixture(scope="module")
def bucket():
    with own_bucket() as made:
        yield made


@pytest.fixture
def upload(bucket, tmp_path):
    """Return a function that uploads written files to the bucket and returns the log's
    URI.
    """
    prefix = uuid.uuid4().hex

    def put(writer):
        for file in writer.root.rglob("*.parquet"):
            bucket.upload_file(str(file), f"{prefix}/{file.relative_to(writer.root)}")
        return f"s3://{bucket.name}/{prefix}"

    return put


def test_log_in_a_bucket_is_queried(writer, upload):
    columns = {
        "_event_time": [DAY + timedelta(minutes=30 * number) for number in range(6)],
        "_prediction_id": [f"p{number}" for number in range(6)],
        "x": np.arange(6.0),
    }
    segment = writer.write(columns)
    writer.write(columns, segment=segment, suffix="-again")
    writer.label(Label("p3", 3, None, 1, microseconds(DAY)))
    log = open_log(upload(writer))

    select = Query(View("flights"), select="x, _label", where="_label IS NOT NULL")
    with run_query(log, select) as answer:
        assert rows_of(answer.batches) == [{"x": 3.0, "_label": "1"}]
    stats = log_stats(log, "flights")
    assert (stats.rows, stats.files) == (6, 6)
    assert (stats.labels.rows, stats.labels.unmatched) == (1, 0)


def test_person_in_a_bucket_is_erased(writer, upload):
    for hour in range(3):
        times = [DAY + timedelta(hours=hour, seconds=second) for second in range(2)]
        writer.write({"_event_time": times, "customer": ["7", "8"]})
    writer.write({"_event_time": [DAY], "customer": ["7"]})
    writer.label(*(Label(None, None, {"customer": name}, 1, 0, name, 0) for name in "78"))
    log = open_log(upload(writer))

    done = Erasure(log, "flights", "customer", ["7"])
    done.run()

    assert (done.rows, done.labels) == (4, 1)
    left = [*log.batches("flights", WINDOW), *read_labels(log.location, "flights", {})]
    assert [row.get("customer") or row["_key"] for row in rows_of(left)] == [
        *["8"] * 3,
        '{"customer":"8"}',
    ]


def test_hours_in_a_bucket_are_maintained(writer, upload):
    for hour in range(2):
        for number in range(5):
            times = [DAY + timedelta(hours=hour, seconds=second) for second in range(10)]
            writer.write({"_event_time": times, "x": np.arange(10.0) + 10 * number})
    log = open_log(upload(writer))

    done = compact(log, "flights", LATER)

    assert (done.compacted_files, done.written_files) == (10, 2)
    assert sum(map(len, log.batches("flights", WINDOW))) == 100
    assert expire(log, "flights", DAY + timedelta(hours=3), timedelta(hours=2)).expired_files == 1
    assert [hour.start for hour in log.hours("flights")] == [DAY + timedelta(hours=1)]
    assert sum(map(len, log.batches("flights", WINDOW))) == 50


def test_broken_object_and_missing_bucket(bucket, writer, upload):
    writer.write({"_event_time": [DAY]})
    uri = upload(writer)
    folder = uri.removeprefix(f"s3://{bucket.name}/")
    key = f"{folder}/endpoint=flights/date=2013-07-01/hour=00/broken.parquet"
    bucket.put_object(Key=key, Body=b"PAR1 nothing of the kind PAR1")
    log = open_log(uri)

    assert sum(map(len, log.batches("flights", WINDOW))) == 1
    assert list(log.unreadable) == [f"{bucket.name}/{key}"]
    nowhere = open_log(f"s3://onnxserve-{uuid.uuid4().hex}/log")
    assert nowhere.endpoints() == []
    with pytest.raises(OnnxserveError):
        log_stats(nowhere, "flights")
