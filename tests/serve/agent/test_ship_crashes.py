"""`Shipper`: all rows are kept if a worker, the shipper or the machine is killed at any
time.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.inference_log.labels import read_labels
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.serve.spool.codec import Feedback
from tests.support.inference_log import rows_of
from tests.support.shipping import NOON, files, forget_what_is_shipped, rows, write
from tests.support.spool import read_segment


def test_a_crash_before_the_offset_is_written_makes_no_doubles(writer, shipper, tmp_path):
    write(writer, "a", ["AA"])
    shipper.ship()
    forget_what_is_shipped(tmp_path)
    Shipper(tmp_path / "spool", str(tmp_path / "log")).ship()
    assert [row["_request_id"] for row in rows(tmp_path)] == ["a"]


def test_shipping_again_after_a_crash_never_overwrites_files_that_may_have_been_read(
    writer, shipper, tmp_path
):
    feedback = [Feedback("p-a", None, None, 1)]
    for request in "ab":
        write(writer, request, ["AA"])
        writer.write_feedback("flights", NOON, feedback)
        if request == "a":
            shipper.ship()
            read = files(tmp_path)
            before = [file.read_bytes() for file in read]
            forget_what_is_shipped(tmp_path)
    Shipper(tmp_path / "spool", str(tmp_path / "log")).ship()
    assert len(read) == 2  # one file of rows and one file of labels
    assert [file.read_bytes() for file in read] == before
    for file in read:
        file.unlink()
    log = open_log(str(tmp_path / "log"))
    tables = log.batches("flights", parse_window("2026-06-01/1d"))
    assert sorted(row["_request_id"] for row in rows_of(tables)) == ["a", "b"]
    assert sum(map(len, read_labels(log.location, "flights", {}))) == 2


def test_the_segment_of_a_killed_worker_is_shipped_up_to_the_torn_frame(shipper, tmp_path):
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path; import test_ship as "
        "t, time;w = t.CaptureWriter(Path(sys.argv[3])); t.write(w, 'a', ['AA']); t.write(w, 'b', "
        "['UA']);print('written', flush=True); time.sleep(60)"
    )
    folders = Path(__file__).parent, Path(__file__).parents[3], tmp_path / "spool"
    command = [sys.executable, "-c", script, *map(str, folders)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"written\n"
    (segment,) = (tmp_path / "spool").glob("*.seg")
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    os.truncate(segment, segment.stat().st_size - 3)

    assert shipper.ship() == 1
    assert [row["_request_id"] for row in rows(tmp_path)] == ["a"]
    assert not list((tmp_path / "spool").iterdir())


def test_a_torn_end_is_counted_and_logged(writer, shipper, tmp_path, caplog):
    for name in "ab":
        write(writer, name, ["AA"])
    writer.close()
    (segment,) = (tmp_path / "spool").glob("*.seg")
    (_, last), end = read_segment(segment)
    os.truncate(segment, end - 3)
    assert shipper.ship() == 1
    assert shipper.state.torn_segments == 1
    lost = end - 3 - last.offset
    assert caplog.messages == [
        f"{lost} bytes of segment {segment.stem} are not a complete frame and are lost"
    ]
