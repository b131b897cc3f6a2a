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
    read_capture_counters,
    save_capture_counters,
)
from mlflow_deploy_plugin.core.statedir.models import Wanted, WantedEndpoint
from mlflow_deploy_plugin.serve.agent.progress import ShippingProgress, WatermarkWriter
from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.inference_log.stats import Watermark, read_watermarks
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.spool.frames import segments
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support.clocks import Clock

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

    def answer(
        self, rows: int = 1, endpoint: str = "e", max_rows: int = 100, is_shadow: bool = False
    ) -> bool:
        record = RequestRecord(endpoint, "v", "r", "p", 0, 0, is_shadow=is_shadow)
        captured = self.writer.write(
            record, MODEL, {"x": np.zeros((rows, 1))}, {"y": np.zeros(rows)}, max_rows
        )
        if is_shadow:
            self.metrics.count_shadow_capture(captured[-1])
        else:
            self.metrics.count_capture(endpoint, captured)
        return captured[-1]

    def restart(self) -> None:
        self.shipper = Shipper(
            self.folder / "spool", str(self.folder / "log"), self.clock, self.clock
        )
        self.watermark = WatermarkWriter(
            self.folder, self.shipper.location, self.shipper.progress, self.clock, self.clock
        )

    def start_server(self, run: str) -> None:
        """End the server's run, and start the next run."""
        self.writer.close()
        self.writer = CaptureWriter(self.folder / "spool")
        self.metrics = start_run(self.folder, run)

    def told(self) -> Watermark:
        (mark,) = read_watermarks(locate_log(str(self.folder / "log")))
        return mark

    def logged(self) -> int:
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


def test_a_watermark_counts_answered_captured_and_shipped_rows(machine):
    write_state(machine.folder / WANTED, Wanted(endpoints={"idle": WantedEndpoint(variants={})}))
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


def test_rows_of_shadows_are_in_the_log_and_in_no_count(machine):
    shadows = CaptureWriter(machine.folder / "spool")
    machine.writer, answering = shadows, machine.writer
    machine.answer(3, is_shadow=True)
    machine.writer = answering
    machine.answer(2)
    machine.shipper.ship()
    machine.watermark.round()
    mark = machine.told()
    assert mark.answered_rows == {"e": 2}
    assert mark.shipped_rows == {"e": 2}
    assert machine.logged() == 5
    shadows.close()


def test_the_log_is_complete_until_the_last_look_at_which_nothing_waited(machine):
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


def test_complete_until_stands_still_while_the_log_is_down(machine):
    machine.shipper.round()
    log = machine.folder / "log"
    log.write_text("a file where the folder should be")
    for second in range(1001, 1101):
        machine.clock.now = second
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
    assert mark.shipped_rows == {"e": 100}
    assert mark.answered_rows == {"e": 100}


def test_a_bucket_that_nothing_can_write_to_ends_no_agent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    shipper = Shipper(tmp_path / "spool", "s3://b/log")
    writer = WatermarkWriter(tmp_path, shipper.location, shipper.progress)
    writer.round()
    writer.end(is_shipped=True)


def test_rows_that_come_again_after_a_crash_are_counted_once(machine):
    machine.answer(3)
    machine.shipper.ship()
    name = machine.shipper.progress.totals.agent
    machine.answer(4)
    machine.shipper.ship()
    (shipped,) = (machine.folder / "spool").glob("*.shipped")
    shipped.unlink()  # Simulate a crash before the file was written.
    machine.restart()
    machine.shipper.ship()
    machine.watermark.end(is_shipped=False)
    mark = machine.told()
    assert mark.agent == name
    assert mark.shipped_rows == {"e": 7}
    assert mark.captured_rows == {"e": 7}


def test_a_full_disk_does_not_keep_the_spool_from_being_emptied(machine):
    (machine.folder / "progress.json").mkdir()  # Writing the file now fails.
    machine.answer(3)
    machine.writer.close()
    assert machine.shipper.ship() == 3
    assert segments(machine.folder / "spool") == []
    (machine.folder / "progress.json").rmdir()
    machine.watermark.end(is_shipped=True)
    assert machine.told().shipped_rows == {"e": 3}


def test_counts_go_on_over_restarts_of_the_server_and_of_the_agent(machine):
    machine.answer(3)
    machine.shipper.ship()
    machine.watermark.round()
    machine.answer(2)  # The agent has not read these counts.
    machine.start_server("b")
    machine.answer(4)
    machine.restart()
    machine.shipper.ship()
    machine.watermark.end(is_shipped=True)
    mark = machine.told()
    assert mark.answered_rows == mark.captured_rows == mark.shipped_rows == {"e": 9}
    assert mark.ended


def test_no_run_is_counted_twice_where_the_last_one_could_leave_nothing(machine):
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
    machine.restart()
    machine.shipper.ship()
    machine.watermark.end(is_shipped=True)
    mark = machine.told()
    assert mark.answered_rows == mark.captured_rows == mark.shipped_rows == {"e": 12}


def test_a_run_that_no_agent_has_seen_the_end_of_is_counted_after_the_next_one(machine):
    machine.answer(3)
    machine.watermark.round()
    machine.answer(2)
    for run in "bc":  # The agent of b is killed before its first round.
        machine.start_server(run)
        machine.answer(4)
    machine.restart()
    machine.shipper.ship()
    machine.watermark.end(is_shipped=True)
    mark = machine.told()
    assert mark.answered_rows == mark.captured_rows == mark.shipped_rows == {"e": 13}


def test_runs_whose_agents_were_killed_before_their_first_look_are_counted_while_the_next_goes_on(
    machine,
):
    machine.answer(3)
    machine.start_server("b")
    for rows in (4, 5):
        machine.answer(rows)
        machine.shipper.ship()
        machine.clock.now += 10
        machine.watermark.round()
    mark = machine.told()
    assert mark.answered_rows == mark.captured_rows == mark.shipped_rows == {"e": 12}


def test_counts_of_ended_runs_keep_the_earlier_agent_name_if_progress_is_unreadable(machine):
    machine.answer(3)
    machine.shipper.ship()
    machine.watermark.end(is_shipped=False)
    machine.start_server("b")
    (machine.folder / "progress.json").write_text('{"agent": ')
    machine.answer(4)
    machine.restart()
    machine.shipper.ship()
    machine.watermark.end(is_shipped=True)
    marks = read_watermarks(locate_log(str(machine.folder / "log")))
    assert sorted(mark.answered_rows["e"] for mark in marks) == [3, 4]


def test_rows_that_have_no_form_in_the_log_are_dropped_and_not_on_their_way(machine, monkeypatch):
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


def test_the_last_watermark_counts_the_rows_of_an_ended_server(machine):
    machine.answer(3)
    machine.writer.close()
    counted = read_capture_counters(machine.folder)
    save_capture_counters(machine.folder)
    for file in (machine.folder / METRICS).readlink().iterdir():
        file.unlink()
    (machine.folder / METRICS).readlink().rmdir()
    (machine.folder / METRICS).unlink()
    assert read_capture_counters(machine.folder) == counted
    machine.shipper.ship()
    machine.watermark.end(is_shipped=True)
    assert machine.told().answered_rows == {"e": 3}


def test_watermarks_are_written_often_only_while_rows_are_counted(machine):
    times: list[datetime] = []
    for second in range(1000, 1070, 2):
        machine.clock.now = second
        if second == 1050:
            machine.answer()
        machine.shipper.round()
        machine.watermark.round()
        written = machine.told().written_at
        if not times or written != times[-1]:
            times.append(written)
    assert times == [moment(1000), moment(1030), moment(1050), moment(1056)]


def test_a_progress_that_makes_no_sense_begins_anew_under_another_name(tmp_path):
    first = ShippingProgress(tmp_path / "spool")
    first.save()
    assert ShippingProgress(tmp_path / "spool").totals == first.totals
    (tmp_path / "progress.json").write_text('{"agent": ')
    assert ShippingProgress(tmp_path / "spool").totals.agent != first.totals.agent


def test_the_agent_of_a_copied_state_folder_takes_a_name_of_its_own_and_counts_from_zero(
    machine, tmp_path
):
    machine.answer(3)
    machine.shipper.ship()
    machine.watermark.round()
    machine.answer(2)
    original = machine.told()
    copy = replace(machine, folder=tmp_path / "copy", metrics=start_run(tmp_path, "b"))
    shutil.copytree(
        machine.folder,
        copy.folder,
        symlinks=True,
        ignore=lambda folder, names: {"log", "copy"} & set(names),
    )
    (copy.folder / "log").symlink_to(machine.folder / "log")
    (copy.folder / METRICS).unlink()
    (copy.folder / METRICS).symlink_to(tmp_path / "metrics-b")
    copy.restart()
    copy.writer = CaptureWriter(copy.folder / "spool")
    copy.answer(5)
    copy.writer.close()
    copy.shipper.ship()
    copy.watermark.end(is_shipped=True)

    marks = {mark.agent: mark for mark in read_watermarks(locate_log(str(machine.folder / "log")))}
    assert marks.pop(original.agent) == original
    ((name, mark),) = marks.items()
    assert mark.answered_rows == {"e": 5}
    assert mark.captured_rows == {"e": 5}
    copy.restart()
    copy.watermark.round()
    assert copy.shipper.progress.totals.agent == name
    moved = replace(copy, folder=copy.folder.rename(tmp_path / "moved"))
    moved.restart()
    assert moved.shipper.progress.totals.agent == name
