"""Judges the drift of one file of rows against another, for somebody who has two tables and no endpoint yet.

The rows become one window of a temporary log that holds the file alone. Verdict and report are those of a
drift monitor.
"""

import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.controller.monitors.evaluation import EvaluatedWindow, Judge, window_request
from mlflow_deploy_plugin.controller.monitors.manual_runs import DEFAULT_MONITOR, SelectedMonitor
from mlflow_deploy_plugin.controller.monitors.window_runner import as_judged, unsaved_window
from mlflow_deploy_plugin.inference_log import EPOCH, HOUR_US, Window, window_at
from mlflow_deploy_plugin.monitoring import ReferenceRows, load_dataset
from mlflow_deploy_plugin.runtime import EVENT_TIME
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import CaptureSpec, MonitorSpec, empty_endpoint
from mlflow_deploy_plugin.store import MonitorWindow

_OWN = {"_model": "", "_version": "", "_segment": "file"}
_UNITS = (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1))
_INDEPENDENT = f"{{}} says when its rows happened (a column {EVENT_TIME}): they are taken as independent of each other"


def run_files(
    name: str, rows: str, reference: str, settings: Settings, judge: Judge, **bounds: float | None
) -> tuple[MonitorWindow, EvaluatedWindow]:
    """Compare the rows of a file with those of another, and log the report to the experiment `onnxserve/NAME`.

    Nothing is written but the run. The columns are those of the files. If both files say when each row happened, the
    rows are one window, as long as they last, compared with windows of the reference. Otherwise rows are compared with
    rows, taken as independent, and a note says so.

    Args:
        name: an endpoint's name; the endpoint need not exist.
        rows: Parquet or CSV, a path or any URI that MLflow can fetch; of more than a million rows a sample is taken.
        reference: the same.
        bounds: fields of the monitor's spec; None: the default.

    Raises:
        NotFound: a file is not there.
        InvalidConfig: one cannot be read, or has no rows, or the name cannot be an endpoint's.
        RegistryUnavailable: MLflow, or the storage of a file, does not answer.
    """
    empty_endpoint(name)
    found, against = load_dataset(rows), load_dataset(reference)
    without = [one.shown for one in (found, against) if one.times is None]
    neither = "neither file" if len(without) == 2 else f"only one file (not {''.join(without)})"
    notes = [_INDEPENDENT.format(neither)] if without else []
    spec = MonitorSpec(reference=f"dataset:{reference}", independent_rows=bool(without))
    monitor = SelectedMonitor(name, DEFAULT_MONITOR, spec, CaptureSpec()).with_bounds(**bounds)
    now = datetime.now(UTC)
    times = found.times if found.times is not None else np.full(len(found.table), int(now.timestamp()) * 1_000_000)
    window = _window(times) if found.times is not None else window_at(int(times[0]), "1d")
    unsaved = unsaved_window(name, DEFAULT_MONITOR, window, now)
    with tempfile.TemporaryDirectory(prefix="onnxserve-rows-") as folder:
        _lay_out(found, times, Path(folder) / f"endpoint={name}")
        alone = settings.model_copy(update={"log_uri": folder})
        tried = ", ".join(filter(None, [f"rows={rows}", f"reference={reference}", monitor.tried]))
        result = judge(replace(window_request(unsaved, monitor.spec, alone, None, notes), tried=tried))
    return as_judged(unsaved, result, notes), result


def _window(times: np.ndarray) -> Window:
    """Return the time that the rows last, in whole days, hours or minutes, so that the reference's windows keep its
    phase.

    Args:
        times: [N] int64, microseconds since 1970.
    """
    first, last = int(times.min()), int(times.max())
    unit = next((one for one in _UNITS if timedelta(microseconds=last - first) >= one), _UNITS[-1])
    start, end = EPOCH + timedelta(microseconds=first), EPOCH + timedelta(microseconds=last)
    return Window(start - (start - EPOCH) % unit, end - (end - EPOCH) % unit + unit)


def _lay_out(rows: ReferenceRows, times: np.ndarray, folder: Path) -> None:
    """Write the rows as an agent does: a file for each hour of event time."""
    count = len(rows.table)
    table = rows.table.select([name for name in rows.table.column_names if not name.startswith("_")])
    table = table.append_column(EVENT_TIME, pa.array(times, pa.timestamp("us", tz="UTC")))
    for name, value in _OWN.items():
        table = table.append_column(name, pa.array([value] * count))
    table = table.append_column("_offset", pa.array(np.zeros(count, np.int64)))
    table = table.append_column("_row", pa.array(np.arange(count, dtype=np.int32)))
    hours = times // HOUR_US
    order = np.argsort(hours, kind="stable")
    sorted_table = table.take(pa.array(order))
    found, begins = np.unique(hours[order], return_index=True)
    for hour, begin, end in zip(found, begins, [*begins[1:], count], strict=True):
        moment = EPOCH + timedelta(hours=int(hour))
        place = folder / moment.strftime("date=%Y-%m-%d/hour=%H")
        place.mkdir(parents=True)
        pq.write_table(sorted_table.slice(begin, end - begin), place / "rows.parquet")
