"""The metrics page, as prometheus_client's parser reads it."""

import errno
import os
import shutil
import threading
from collections import defaultdict
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.core.statedir import metric_files
from mlflow_deploy_plugin.core.statedir.files import METRICS
from mlflow_deploy_plugin.core.statedir.metric_files import (
    COUNTED,
    Metric,
    MmapCounters,
    make_metrics_folder,
    prometheus_text,
    read_capture_counters,
    read_families,
    save_capture_counters,
    saved_capture_counters,
)
from mlflow_deploy_plugin.serve.observability.metrics import Metrics

WORDS = st.text(st.sampled_from('le": ,\\n\n{}ü"='), max_size=6)
HELP = Metric("f", "help")
SECONDS = Metric("h", "seconds", ("0.0005", "2.5", "10.0", "1024.0"))
COUNTER = Metric("c", 'help\\ of\n"c"')
GAUGE = Metric("g", "of those that live", kind="gauge")
LATEST = Metric("latest", "the latest", kind="gauge")
NAMES = ["a", "endpoint", "model"]
LABELS = st.dictionaries(st.sampled_from(NAMES), WORDS, min_size=3)


def parsed(page):
    """Return the type and the help text of each family, and all samples."""
    kinds = {}
    samples = {}
    for family in text_string_to_metric_families(page.decode()):
        if "unrecorded" not in family.name:
            kinds[family.name] = (family.type, family.documentation)
            for sample in family.samples:
                samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return kinds, samples


def fill(folder, worker, label_sets):
    counts = MmapCounters(folder / f"counts_{worker}.db")
    gauges = MmapCounters(folder / f"gauges_{worker}.db")
    for number, labels in enumerate(label_sets):
        counts.cells[counts.slot(COUNTER, labels)] = 0.25 + 1e9 * worker + number
        counts.cells[counts.slot(LATEST, labels)] = 7.5 * worker - number
        gauges.cells[gauges.slot(GAUGE, labels)] = 1.5 + number
        total = counts.slot(SECONDS, labels)
        for place in range(6):
            counts.cells[total + place] = worker + place


KINDS = {
    "c": ("counter", COUNTER.help),
    "g": ("gauge", GAUGE.help),
    "latest": ("gauge", LATEST.help),
    "h": ("histogram", SECONDS.help),
}


def expected(workers, living):
    """Return the samples of the values that `fill` writes for these workers."""
    samples = defaultdict[Any, float](float)
    for worker, label_sets in enumerate(workers):
        for number, labels in enumerate(label_sets):
            key = tuple(sorted(labels.items()))
            samples["c_total", key] += 0.25 + 1e9 * worker + number
            latest = 7.5 * worker - number
            samples["latest", key] = max(latest, samples.get(("latest", key), latest))
            if worker in living:
                samples["g", key] += 1.5 + number
            samples["h_sum", key] += worker
            counts = accumulate(worker + place for place in range(1, 6))
            for bound, count in zip([*SECONDS.bounds, "+Inf"], counts, strict=True):
                bucket = tuple(sorted({**labels, "le": bound}.items()))
                samples["h_bucket", bucket] += count
            samples["h_count", key] += count
    return samples


def check(folder, workers, living):
    kinds, samples = parsed(prometheus_text(read_families(folder)))
    assert samples == expected(workers, living)
    assert kinds.items() <= KINDS.items()


@settings(max_examples=30)
@given(
    st.lists(
        st.lists(LABELS, max_size=4, unique_by=lambda labels: tuple(sorted(labels.items()))),
        max_size=3,
    )
)
def test_page_adds_up_all_workers(tmp_path_factory, workers):
    folder = tmp_path_factory.mktemp("metrics")
    for number, label_sets in enumerate(workers):
        fill(folder, number, label_sets)
    check(folder, workers, [*range(len(workers))])


def test_dead_worker_keeps_counters_but_not_gauges(tmp_path):
    workers = [[{"a": "1", "endpoint": "e", "model": "m"}]] * 2
    for number, label_sets in enumerate(workers):
        fill(tmp_path, number, label_sets)
    (tmp_path / "gauges_0.db").unlink()
    check(tmp_path, workers, [1])


def test_new_files_are_empty(tmp_path):
    (tmp_path / "counts_1.db").touch()
    (tmp_path / "counts_2.db").write_bytes(bytes(65536))
    assert prometheus_text(read_families(tmp_path)) == b""


def serve(state_dir, run, responses):
    """Count as two workers of the server `run`, and end the server."""
    folder = state_dir / run
    folder.mkdir()
    (state_dir / METRICS).unlink(missing_ok=True)
    (state_dir / METRICS).symlink_to(folder)
    for metrics in (Metrics(folder), Metrics(folder)):
        for _ in range(responses):
            metrics.count_capture("e", (3, 2, True))
        metrics.count_capture("e", (3, 0, None))
        metrics.count_capture("other", (1, 1, False))
    counters = read_capture_counters(state_dir)
    save_capture_counters(state_dir)
    shutil.rmtree(folder)
    return counters


def test_captured_rows_are_added_up_and_saved(tmp_path):
    counters = serve(tmp_path, "first", 5)
    assert counters.rows == {
        "answered": {"e": 36, "other": 2},
        "captured": {"e": 20, "other": 0},
        "dropped": {"e": 0, "other": 2},
    }
    assert read_capture_counters(tmp_path) == counters
    later = serve(tmp_path, "second", 1)
    assert saved_capture_counters(tmp_path) == [counters, later]


def test_damaged_file_counts_nothing(tmp_path):
    (tmp_path / COUNTED).write_text("[{}")
    assert saved_capture_counters(tmp_path) == []
    assert read_capture_counters(tmp_path) is None


def read(folder, name="f"):
    """Return the values of a metric."""
    (family,) = [family for family in read_families(folder) if family.name == name]
    return [series.value for series in family.series]


def test_keys_of_any_length_keep_values(tmp_path):
    tally = MmapCounters(tmp_path / "counts_1.db")
    slots = [tally.slot(HELP, {"label": "é" * length}) for length in range(17)]
    for slot in slots:
        tally.cells[slot] += slot / 8
    assert read(tmp_path) == [slot / 8 for slot in slots]


def test_invalid_utf_8_label_is_replaced(tmp_path):
    tally = MmapCounters(tmp_path / "counts_1.db")
    tally.slot(HELP, {"prediction": '\ud800 \n\r"\\ \0'})
    page = prometheus_text(read_families(tmp_path)).decode()
    assert 'f_total{prediction="? \\n\r\\"\\\\ \0"} 0.0\n' in page


def test_slot_keeps_value_while_file_grows(tmp_path):
    tally = MmapCounters(tmp_path / "counts_1.db")
    before = tally.cells
    first = tally.slot(HELP, {"n": "first"})
    for number in range(2000):
        slot = tally.slot(HELP, {"n": str(number)})
        tally.cells[slot] += 1
    tally.cells[first] += 1
    before[first] += 1  # A thread may have a reference to the cells from before the file grew.
    assert sum(read(tmp_path)) == 2002


def test_full_memory_counts_lost_values(tmp_path, monkeypatch):
    tally = MmapCounters(tmp_path / "counts_1.db")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metric_files, "open", full, raising=False)
    for number in range(2000):
        tally.cells[tally.slot(HELP, {"n": str(number)})] += 1
        histogram = tally.slot(SECONDS, {"n": str(number)})
        tally.cells[histogram + 5] += 1
    (lost,) = read(tmp_path, "onnxserve_unrecorded")
    assert lost > 500
    assert sum(read(tmp_path)) + lost == 2000
    (lost_rows,) = [
        family
        for family in read_families(tmp_path)
        if family.name == "onnxserve_unrecorded_histograms"
    ]
    (series,) = lost_rows.series
    # A histogram always has a bucket and therefore a count.
    assert series.buckets == [("+Inf", series.count)]
    assert series.count > 500


def test_reader_sees_only_complete_entries(tmp_path):
    tally = MmapCounters(tmp_path / "counts_1.db")

    def fill():
        for number in range(2000):
            tally.slot(HELP, {"n": str(number)})

    writer = threading.Thread(target=fill)
    writer.start()
    while writer.is_alive():
        assert all(
            series.value == 0.0 for family in read_families(tmp_path) for series in family.series
        )
    writer.join()
    assert len(read(tmp_path)) == 2000


def test_full_shared_memory_falls_back_to_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100_000))
    os.close(make_metrics_folder(tmp_path))
    assert (tmp_path / METRICS).readlink().parent == tmp_path
