"""The watermark reports until when the log is complete, and counts all rows."""

import shutil
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pytest

from mlflow_deploy_plugin.core.statedir.files import METRICS, WANTED, write_state
from mlflow_deploy_plugin.core.statedir.metric_files import (
    save_capture_counters,
)
from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint
from mlflow_deploy_plugin.serve.agent.progress import WatermarkWriter
from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.inference_log.stats import read_watermarks
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.clocks import Clock
from tests.support.shipping import forget_what_is_shipped

MODEL = CapturedModel(
    "m",
    "1",
    Schema((Column("x", "double"),), (), (Input("x", "float64", (-1, 1), ("x",)),)),
    ("y",),
)


def start_run(state_dir, run):
    """The metrics of a server's run, in the layout of `serve/gunicorn_conf.py`."""
    save_capture_counters(state_dir)
    folder = state_dir / f"metrics-{run}"
    folder.mkdir()
    (state_dir / METRICS).unlink(missing_ok=True)
    (state_dir / METRICS).symlink_to(folder)
    return Metrics(folder)


@dataclass
class Machine:
    """A state folder with a worker and the parts of the agent. `restart` recreates the
    parts that a crash loses.
    """

    folder: Path
    clock: Clock[float]
    writer: CaptureWriter
    metrics: Metrics
    shipper: Shipper
    watermark: WatermarkWriter

    def answer(self, rows=1, endpoint="e", max_rows=100, is_shadow=False):
        record = RequestRecord(endpoint, "v", "r", "p", 0, 0, is_shadow=is_shadow)
        captured = self.writer.write(
            record, MODEL, {"x": np.zeros((rows, 1))}, {"y": np.zeros(rows)}, max_rows
        )
        if is_shadow:
            self.metrics.count_shadow_capture(captured[-1])
        else:
            self.metrics.count_capture(endpoint, captured)
        return captured[-1]

    def restart(self):
        self.shipper = Shipper(
            self.folder / "spool", str(self.folder / "log"), self.clock, self.clock
        )
        self.watermark = WatermarkWriter(
            self.folder, self.shipper.location, self.shipper.progress, self.clock, self.clock
        )

    def start_server(self, run):
        """End the server's run, and start the next run."""
        self.writer.close()
        self.writer = CaptureWriter(self.folder / "spool")
        self.metrics = start_run(self.folder, run)

    def told(self):
        (mark,) = read_watermarks(locate_log(str(self.folder / "log")))
        return mark

    def last(self):
        """Restart the agent, ship everything, and return the last watermark."""
        self.restart()
        self.shipper.ship()
        self.watermark.end(is_shipped=True)
        return self.told()

    def logged(self):
        return int(
            pyarrow.dataset.dataset(str(self.folder / "log"), partitioning="hive").count_rows()
        )


@pytest.fixture
def machine(tmp_path):
    clock = Clock(1000.0)
    metrics = start_run(tmp_path, "a")
    writer = CaptureWriter(tmp_path / "spool")
    machine = Machine(tmp_path, clock, writer, metrics, None, None)  # type: ignore[arg-type]
    machine.restart()
    yield machine
    machine.writer.close()


def moment(seconds):
    return datetime.fromtimestamp(seconds, UTC)


def test_watermark_counts_rows_by_outcome(machine):
    write_state(machine.folder / WANTED, Wanted(endpoints={"idle": WantedEndpoint()}))
    machine.answer(3)
    machine.answer(200, max_rows=100)
    machine.answer(7, "f")
    machine.metrics.count_capture("f", (5, 0, None))
    machine.shipper.ship()
    machine.watermark.round()
    mark = machine.told()
    assert (mark.endpoints, mark.ended) == (("e", "f", "idle"), False)
    assert mark.answered_rows == {"e": 203, "f": 12}
    assert mark.captured_rows == mark.shipped_rows == {"e": 103, "f": 7}
    assert mark.dropped_rows == {"e": 0, "f": 0}
    assert machine.logged() == 110
    assert mark.complete_until == mark.written_at == moment(1000)


def counted(mark):
    """Return the rows of `e`, which were all answered, captured and shipped."""
    assert mark.answered_rows == mark.captured_rows == mark.shipped_rows
    return mark.answered_rows["e"]


def test_shadow_rows_are_not_counted(machine):
    machine.answer(3, is_shadow=True)
    machine.answer(2)
    machine.shipper.ship()
    machine.watermark.round()
    mark = machine.told()
    assert mark.answered_rows == {"e": 2}
    assert mark.shipped_rows == {"e": 2}
    assert machine.logged() == 5


def test_log_is_complete_until_the_last_empty_round(machine):
    shipper = machine.shipper
    clock = machine.clock
    shipper.round()
    assert shipper.progress.complete_until == 1000
    clock.now = 1002
    machine.answer()
    shipper.round()  # The segment may still grow, so it is not shipped yet.
    assert shipper.progress.complete_until == 1000
    clock.now = 1004
    shipper.round()
    assert shipper.progress.complete_until == 1004
    assert machine.logged() == 1
    machine.writer.close()
    clock.now = 1006
    shipper.round()
    assert shipper.progress.complete_until == 1006
    assert segments(machine.folder / "spool") == []


def test_complete_until_stops_while_the_log_is_down(machine):
    machine.shipper.round()
    log = machine.folder / "log"
    log.write_text("a file where the folder should be")
    for machine.clock.now in range(1001, 1101):
        machine.answer()
        machine.shipper.round()
        machine.watermark.round()
    assert machine.shipper.progress.complete_until < 1002
    log.unlink()
    machine.clock.now = 1200
    machine.shipper.round()
    machine.watermark.round()
    mark = machine.told()
    assert mark.complete_until == moment(1200)
    assert counted(mark) == 100


def test_unwritable_bucket_ends_no_agent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    shipper = Shipper(tmp_path / "spool", "s3://b/log")
    writer = WatermarkWriter(tmp_path, shipper.location, shipper.progress)
    writer.round()
    writer.end(is_shipped=True)


def test_rows_shipped_twice_are_counted_once(machine):
    machine.answer(3)
    machine.shipper.ship()
    name = machine.shipper.progress.totals.agent
    machine.answer(4)
    machine.shipper.ship()
    forget_what_is_shipped(machine.folder)
    mark = machine.last()
    assert mark.agent == name
    assert counted(mark) == 7


def test_full_disk_does_not_stop_shipping(machine):
    (machine.folder / "progress.json").mkdir()  # Writing the file now fails.
    machine.answer(3)
    machine.writer.close()
    assert machine.shipper.ship() == 3
    assert segments(machine.folder / "spool") == []
    (machine.folder / "progress.json").rmdir()
    machine.watermark.end(is_shipped=True)
    assert machine.told().shipped_rows == {"e": 3}


def test_counts_continue_after_restarts(machine):
    machine.answer(3)
    machine.shipper.ship()
    machine.watermark.round()
    machine.answer(2)  # The agent has not read these counts.
    machine.start_server("b")
    machine.answer(4)
    mark = machine.last()
    assert counted(mark) == 9
    assert mark.ended


def test_no_run_is_counted_twice(machine):
    machine.answer(3)
    machine.watermark.round()
    machine.start_server("b")
    machine.answer(4)
    machine.shipper.ship()
    machine.watermark.end(is_shipped=False)
    # The server ends on a full disk, so the saved counts are old.
    (machine.folder / METRICS).unlink()
    machine.restart()
    machine.watermark.end(is_shipped=False)
    machine.start_server("c")
    machine.answer(5)
    assert counted(machine.last()) == 12


def test_run_of_a_killed_agent_is_counted(machine):
    machine.answer(3)
    machine.watermark.round()
    machine.answer(2)
    for run in "bc":  # The agent of b is killed before its first round.
        machine.start_server(run)
        machine.answer(4)
    assert counted(machine.last()) == 13


def test_unreadable_progress_gets_a_new_name(machine):
    machine.answer(3)
    machine.shipper.ship()
    machine.watermark.end(is_shipped=False)
    machine.start_server("b")
    (machine.folder / "progress.json").write_text('{"agent": ')
    machine.answer(4)
    machine.restart()
    machine.shipper.ship()
    machine.watermark.end(is_shipped=True)
    marks = read_watermarks(machine.shipper.location)
    assert sorted(mark.answered_rows["e"] for mark in marks) == [3, 4]


def test_rows_without_a_log_form_are_dropped(machine, monkeypatch):
    machine.answer(2)
    machine.shipper.ship()
    with monkeypatch.context() as patched:
        patched.setattr(
            "mlflow_deploy_plugin.serve.agent.ship.to_log_columns", lambda *parts: 1 / 0
        )
        machine.answer(3)
        machine.shipper.ship()
    machine.watermark.end(is_shipped=True)
    mark = machine.told()
    assert mark.answered_rows == {"e": 5}
    assert mark.captured_rows == {"e": 2}
    assert mark.dropped_rows == {"e": 3}
    assert mark.shipped_rows == {"e": 2}


def test_idle_watermarks_are_infrequent(machine):
    times = []
    for machine.clock.now in range(1000, 1070, 2):
        if machine.clock.now == 1050:
            machine.answer()
        machine.shipper.round()
        machine.watermark.round()
        times.append(machine.told().written_at)
    assert sorted(set(times)) == [moment(1000), moment(1030), moment(1050), moment(1056)]


def test_copied_state_folder_gets_its_own_agent(machine, tmp_path):
    machine.answer(3)
    machine.shipper.ship()
    machine.watermark.round()
    machine.answer(2)
    original = machine.told()
    copy = replace(machine, folder=tmp_path / "copy", metrics=start_run(tmp_path, "b"))
    left_out = shutil.ignore_patterns("log", "copy", METRICS)
    shutil.copytree(machine.folder, copy.folder, symlinks=True, ignore=left_out)
    (copy.folder / "log").symlink_to(machine.folder / "log")
    (copy.folder / METRICS).symlink_to(tmp_path / "metrics-b")
    copy.restart()
    copy.writer = CaptureWriter(copy.folder / "spool")
    copy.answer(5)
    copy.writer.close()
    copy.shipper.ship()
    copy.watermark.end(is_shipped=True)

    marks = {mark.agent: mark for mark in read_watermarks(copy.shipper.location)}
    assert marks.pop(original.agent) == original
    ((name, mark),) = marks.items()
    assert mark.answered_rows == mark.captured_rows == {"e": 5}
    copy.restart()
    copy.watermark.round()
    assert copy.shipper.progress.totals.agent == name
    moved = replace(copy, folder=copy.folder.rename(tmp_path / "moved"))
    moved.restart()
    assert moved.shipper.progress.totals.agent == name
