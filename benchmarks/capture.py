"""Measure the cost of capturing: a request before its response, a row on the disk, and
the agent that ships it.

    .venv/bin/python benchmarks/capture.py                   # about a minute
    PYTHONPATH=/path/to/another/checkout .venv/bin/python benchmarks/capture.py

There are two models, the same as in `benchmarks/request_path.py`: 30 floats in one
input, and the flights' 15 mixed columns. `request` is the complete
`CaptureWriter.write` with its counters for one row, in microseconds of the thread's CPU
time: the best and the median of 25 rounds, because other jobs on the cores can only add
time. `whole`: every column. `drop 5`, `mask 1`, `mask 5`: columns that are omitted or
masked. `one label`: a request with one label of feedback. Shipping is the agent's CPU
seconds per million requests of one row, into a folder in memory. The log's bytes are
the bytes of its Parquet files.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

import numpy as np

from benchmarks import request_path

VARIETY = 997
ROUNDS = 25
ROUND_REQUESTS = 2000
MOST_MICROSECONDS = {"whole": 10.0, "drop 5": 10.0, "mask 1": 10.0, "mask 5": 25.0}
"""Only masked columns cost time for masking: 3 µs each."""
MOST_SHIPPING_SECONDS = 10.0
"""CPU seconds per million rows: a tenth of a core if the worker answers 10,000 requests
per second.
"""
Captured = Iterator[tuple[Any, dict[str, Any], dict[str, Any]]]
"""The captured model, feeds and outputs of each request."""
CHOICES = {
    "whole": ((), ()),
    "drop 5": (slice(0, 5), ()),
    "mask 1": ((), slice(0, 1)),
    "mask 5": ((), slice(0, 5)),
}


@dataclass(frozen=True)
class Cost:
    """The figures of one model and one choice of columns: microseconds per request,
    bytes per row, CPU seconds per million rows.
    """

    best: float
    median: float
    spool_bytes: float
    log_bytes: float
    shipping: float


def captured(kind: str) -> Iterator[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Return the captured model, feeds and outputs of requests of one row: `VARIETY`
    outputs, and new floats in each request.
    """
    from mlflow_deploy_plugin.serve.runtime.feeds import sent_arrays
    from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
    from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel

    loaded = OnnxModel.load(request_path.MODELS / kind)
    bound = CapturedModel("m", "1", loaded.schema, loaded.artifact.prediction)
    draw = np.random.default_rng(0)
    found = []
    for _ in range(VARIETY):
        row = {name: [draw.normal()] for name in loaded.schema.names}
        if kind == "flights":
            row = {name: [value] for name, value in request_path.FLIGHT.items()}
            row |= {name: [draw.choice(["AA", "B6", "UA", "LAX"])] for name in request_path.STRINGS}
            row |= {name: [int(draw.integers(0, 30))] for name in request_path.INTEGERS}
            row |= {name: [float(draw.uniform(0, 30))] for name in request_path.DOUBLES}
        feeds = loaded.schema.from_columns(row)
        found.append((bound, dict(sent_arrays(feeds)), dict(loaded.run(feeds, None))))
    while True:
        for model, feeds, outputs in found:
            varied = {
                name: draw.normal(size=array.shape).astype(array.dtype)
                if array.dtype.kind == "f"
                else array
                for name, array in feeds.items()
            }
            yield model, varied, outputs


def cost(kind: str, choice: str, requests: int) -> Cost:
    """Write and ship this number of requests of one row."""
    from mlflow_deploy_plugin.serve.agent.ship import Shipper

    source = captured(kind)
    model = _captured_model(next(source)[0], choice)
    with tempfile.TemporaryDirectory(prefix="onnxserve-capture-", dir="/dev/shm") as folder:
        best, median = _time_of_a_record(kind, model, source, Path(folder))
        spool = Path(folder, "spool")
        _fill(spool, kind, model, source, requests)
        spool_bytes = _size_of(spool.iterdir())
        shipper = Shipper(spool, str(Path(folder, "log")))
        began = time.process_time()
        rows = shipper.ship()
        spent = time.process_time() - began
        assert rows == requests, (rows, requests)
        log_bytes = _size_of(Path(folder, "log").rglob("*.parquet"))
    return Cost(best, median, spool_bytes / requests, log_bytes / requests, spent * 1e6 / requests)


def _captured_model(whole: Any, choice: str) -> Any:
    """Return the captured model without the columns that the choice drops and masks."""
    from mlflow_deploy_plugin.serve.spool.captured_model import exclude_columns

    drop, mask = (() if chosen == () else whole.schema.names[chosen] for chosen in CHOICES[choice])
    return exclude_columns(whole, tuple(drop), tuple(mask))


def _time_of_a_record(
    kind: str,
    model: Any,
    source: Captured,
    folder: Path,
) -> tuple[float, float]:
    """Return the microseconds of writing a record, best and median."""
    from mlflow_deploy_plugin.serve.observability.metrics import Metrics
    from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
    from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter

    metrics = Metrics(folder / "metrics")
    writer = CaptureWriter(folder / "measured" / "spool")
    _, feeds, outputs = next(source)

    def write() -> None:
        record = RequestRecord(
            kind,
            kind,
            "0" * 32,
            "1" * 32,
            1_700_000_000,
            1_700_000_000,
            120,
        )
        metrics.count_capture(kind, writer.write(record, model, feeds, outputs, 10_000))

    taken = microseconds(write)
    writer.close()
    return taken


def _fill(spool: Path, kind: str, model: Any, source: Captured, requests: int) -> None:
    from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
    from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter

    writer = CaptureWriter(spool)
    now = time.time_ns() // 1000
    ids = [os.urandom(16).hex() for _ in range(2 * requests)]
    for number in range(requests):
        _, feeds, outputs = next(source)
        moment = now + 30 * number
        record = RequestRecord(
            kind,
            kind,
            ids[2 * number],
            ids[2 * number + 1],
            moment,
            moment,
            120,
        )
        writer.write(record, model, feeds, outputs, 10_000)
    writer.close()


def _size_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def labels() -> tuple[float, float]:
    """Return the microseconds of writing one label, best and median."""
    from mlflow_deploy_plugin.serve.spool.codec import Feedback
    from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter

    with tempfile.TemporaryDirectory(prefix="onnxserve-capture-", dir="/dev/shm") as folder:
        writer = CaptureWriter(Path(folder))
        entries = [Feedback("1" * 32, 0, None, True)]
        taken = microseconds(lambda: writer.write_feedback("e", 1_700_000_000, entries))
        writer.close()
    return taken


def microseconds(act: Callable[[], None]) -> tuple[float, float]:
    """Return the best and the median of the rounds."""
    act()
    taken = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(ROUND_REQUESTS):
            act()
        taken.append((time.thread_time() - began) / ROUND_REQUESTS * 1e6)
    return min(taken), statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--requests", type=int, default=50_000)
    options = parser.parse_args()
    if not (request_path.MODELS / "flights").is_dir():
        subprocess.run([sys.executable, request_path.__file__, "--make-models"], check=True)
    verdicts: list[tuple[str, float, float]] = []
    heads = ("best µs", "median µs", "B in spool", "B in log", "CPU s/million")
    print(f"{'per request, per row':22}" + "".join(f"{head:>16}" for head in heads), flush=True)
    cost("numbers", "mask 5", 1000)  # imports
    for kind, shown in (("numbers", "30 floats"), ("flights", "15 mixed")):
        for choice in CHOICES:
            rounds = [cost(kind, choice, options.requests) for _ in range(3)]
            found = min(rounds, key=lambda one: one.shipping)
            best = min(one.best for one in rounds)
            median = statistics.median(one.median for one in rounds)
            values = (best, median, found.spool_bytes, found.log_bytes, found.shipping)
            print(
                f"{shown + ', ' + choice:22}" + "".join(f"{value:16.1f}" for value in values),
                flush=True,
            )
            if kind == "numbers":
                verdicts.append((f"{choice}: µs per request", best, MOST_MICROSECONDS[choice]))
                verdicts.append(
                    (f"{choice}: CPU s per million rows", found.shipping, MOST_SHIPPING_SECONDS),
                )
    best, median = labels()
    print(f"{'one label':22}{best:16.1f}{median:16.1f}")
    verdicts.append(("one label: µs", best, MOST_MICROSECONDS["whole"]))
    for name, value, most in verdicts:
        print(f"{'met' if value <= most else 'MISSED':8}{value:6.1f}, at most {most:.0f}: {name}")


if __name__ == "__main__":
    main()
