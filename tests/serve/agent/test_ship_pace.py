"""`Shipper`: segments are shipped when they are due, and retries of a log that is down
become less frequent.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.clocks import Clock
from tests.support.inference_log import rows_of
from tests.support.shipping import rows, write


def test_only_new_rows_are_shipped_and_a_released_segment_is_deleted(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    assert shipper.ship() == 1
    assert shipper.ship() == 0
    write(writer, "b", ["UA"])
    again = Shipper(tmp_path / "spool", str(tmp_path / "log"))
    assert again.ship() == 1
    assert len(list((tmp_path / "spool").glob("*.seg"))) == 1

    write(writer, "c", ["DL"])
    writer.close()
    assert again.ship() == 1
    assert not list((tmp_path / "spool").iterdir())
    assert sorted(row["_request_id"] for row in rows(tmp_path)) == ["a", "b", "c"]


def test_complete_until_follows_a_clock_that_is_set_back(tmp_path):
    clock = Clock(0.0)
    day = 86400.0
    shipper = Shipper(tmp_path / "spool", str(tmp_path / "log"), now=clock)
    times = []
    for clock.now in (day, 3 * day, day + 60):
        shipper.round()
        times.append(shipper.state.complete_until)
    assert times == [day, 3 * day, day + 60]


def test_a_new_server_whose_log_is_away_is_behind_since_its_start(tmp_path):
    clock = Clock(86400.0)
    (tmp_path / "log").touch()
    shipper = Shipper(tmp_path / "spool", str(tmp_path / "log"), clock, clock)
    write(CaptureWriter(tmp_path / "spool"), "a", ["AA"])
    clock.now += 60
    shipper.ship()
    assert shipper.state.error
    assert shipper.state.complete_until == 86400.0


def test_a_segment_that_grows_is_left_to_grow_for_ten_seconds(writer, patient, clock):
    shipped = []
    for second in range(0, 14, 2):
        clock.now = float(second)
        write(writer, str(second), ["AA"])
        shipped.append(patient.round())
    assert shipped == [0, 0, 0, 0, 0, 6, 0]


def test_a_segment_that_has_stopped_growing_is_shipped_in_the_next_round(writer, patient):
    write(writer, "a", ["AA"])
    assert [patient.round() for _ in range(3)] == [0, 1, 0]
    write(writer, "b", ["AA"])
    assert [patient.round() for _ in range(3)] == [0, 1, 0]


def test_a_segment_that_its_worker_let_go_of_is_shipped_at_once(writer, patient):
    write(writer, "a", ["AA"])
    writer.close()
    assert patient.round() == 1


def test_an_unwritable_log_is_reported_once_and_retried_with_backoff(
    patient, clock, tmp_path, caplog
):
    caplog.set_level("INFO")
    (tmp_path / "log").touch()
    for name in "ab":
        writer = CaptureWriter(tmp_path / "spool")
        write(writer, name, ["AA"])
        writer.close()
    failed = []
    for second in range(60):
        clock.now = float(second)
        before = patient._retry_at
        assert patient.round() == 0
        if patient._retry_at != before:
            failed.append(second)
    assert failed == [0, 2, 6, 14, 30]
    assert patient.state.error.startswith(
        f"the inference log {tmp_path / 'log'} cannot be written: "
    )
    assert len(caplog.records) == 1

    (tmp_path / "log").unlink()
    clock.now = 60.0
    assert patient.round() == 2
    assert patient.state.error == ""
    assert caplog.messages[1:] == ["the inference log can be written again"]


def test_a_log_that_is_down_for_days_is_asked_on(patient, clock, tmp_path):
    (tmp_path / "log").touch()
    writer = CaptureWriter(tmp_path / "spool")
    write(writer, "a", ["AA"])
    writer.close()
    for _ in range(48):
        clock.now += 3600
        assert patient.round() == 0
    (tmp_path / "log").unlink()
    clock.now += 3600
    assert patient.round() == 1


def test_an_hour_without_the_log_costs_no_row_and_few_attempts(writer, tmp_path, caplog):
    clock = Clock(0.0)
    shipper = Shipper(tmp_path / "spool", str(tmp_path / "log"), clock, clock)
    (tmp_path / "log").write_text("a file where the folder should be")
    written = 0
    attempts = 0
    while clock.now < 3600:
        write(writer, str(written), ["AA"])
        written += 1
        before = shipper._retry_at
        assert shipper.round() == 0
        attempts += shipper._retry_at != before
        clock.now += 2
    assert attempts <= 3600 / 30 + 10
    assert len([line for line in caplog.messages if "cannot be written" in line]) == 1
    (tmp_path / "log").unlink()
    clock.now += 60
    shipper.round()
    clock.now += 2
    shipper.round()
    assert sorted(row["_request_id"] for row in rows(tmp_path)) == sorted(map(str, range(written)))
    assert (shipper.state.error, shipper.progress.complete_until >= 3600) == ("", True)


def test_a_refusing_bucket_is_logged_once_and_later_gets_each_row_once(
    writer, bucket, tmp_path, caplog
):
    shipper = Shipper(tmp_path / "spool", "s3://b/log")
    bucket.refusals = [403, 403]
    shipped = []
    for name in "abc":
        write(writer, name, ["AA"])
        shipped.append(shipper.ship())
    assert shipped == [0, 0, 3]
    assert [line for line in caplog.messages if "cannot be written" in line] == [caplog.messages[0]]
    tables = [
        pq.ParquetFile(pa.BufferReader(content)).read() for content in bucket.objects.values()
    ]
    assert [row["_request_id"] for row in rows_of(tables)] == ["a", "b", "c"]
