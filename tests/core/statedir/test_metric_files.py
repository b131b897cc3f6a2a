"""The metrics page equals prometheus_client's page for the same values."""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from itertools import accumulate
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

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

Page = dict[str, tuple[str, str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]]
WORDS = st.text(st.sampled_from('le": ,\\n\n{}ü"='), max_size=6)
HELP = Metric("f", "help")
SECONDS = Metric("h", "seconds", ("0.0005", "2.5", "10.0", "1024.0"))
COUNTER = Metric("c", 'help\\ of\n"c"')
GAUGE = Metric("g", "of those that live", kind="gauge")
LATEST = Metric("latest", "the latest", kind="gauge")
NAMES = ["a", "endpoint", "model"]
LABELS = st.dictionaries(st.sampled_from(NAMES), WORDS, min_size=3)


def parsed(page):
    """Return the type, the help text, and the samples by name and labels for each
    family.
    """
    families = {}
    for family in text_string_to_metric_families(page.decode()):
        values = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for sample in family.samples
        }
        families[family.name] = (family.type, family.documentation, values)
    return families


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


class Expected(Collector):
    """Return prometheus_client's sums of the values that `fill` writes for these
    workers.
    """

    def __init__(self, workers: list[list[dict[str, str]]], living: list[int]) -> None:
        self.workers = workers
        self.living = living

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        counter = CounterMetricFamily(COUNTER.name, COUNTER.help, labels=NAMES)
        gauge = GaugeMetricFamily(GAUGE.name, GAUGE.help, labels=NAMES)
        latest = GaugeMetricFamily(LATEST.name, LATEST.help, labels=NAMES)
        seconds = HistogramMetricFamily(SECONDS.name, SECONDS.help, labels=NAMES)
        for labels in {
            tuple(labels[name] for name in NAMES) for worker in self.workers for labels in worker
        }:
            by = dict(zip(NAMES, labels, strict=True))
            places = [
                (number, sets.index(by)) for number, sets in enumerate(self.workers) if by in sets
            ]
            counter.add_metric(
                labels, sum(0.25 + 1e9 * worker + number for worker, number in places)
            )
            latest.add_metric(labels, max(7.5 * worker - number for worker, number in places))
            if alive := [number for worker, number in places if worker in self.living]:
                gauge.add_metric(labels, sum(1.5 + number for number in alive))
            cells = [sum(worker + place for worker, _ in places) for place in range(6)]
            buckets = zip([*SECONDS.bounds, "+Inf"], accumulate(cells[1:]), strict=True)
            seconds.add_metric(labels, list(buckets), cells[0])
        yield from (family for family in (counter, gauge, latest, seconds) if family.samples)


def check(folder, workers, living):
    registry = CollectorRegistry()
    registry.register(Expected(workers, living))
    ours = parsed(prometheus_text(read_families(folder)))
    assert {name: family for name, family in ours.items() if "unrecorded" not in name} == parsed(
        generate_latest(registry)
    )


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(LABELS, max_size=4, unique_by=lambda labels: tuple(sorted(labels.items()))),
        max_size=3,
    )
)
def test_the_page_is_that_of_prometheus_client(tmp_path_factory, workers):
    folder = tmp_path_factory.mktemp("metrics")
    for number, label_sets in enumerate(workers):
        fill(folder, number, label_sets)
    check(folder, workers, [*range(len(workers))])


def test_dead_worker_keeps_its_counters_and_loses_its_gauges(tmp_path):
    workers = [[{"a": "1", "endpoint": "e", "model": "m"}]] * 2
    for number, label_sets in enumerate(workers):
        fill(tmp_path, number, label_sets)
    (tmp_path / "gauges_0.db").unlink()
    check(tmp_path, workers, [1])


def test_a_file_that_its_worker_has_just_made_is_empty(tmp_path):
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
    assert counters is not None
    save_capture_counters(state_dir)
    shutil.rmtree(folder)
    return counters


def test_rows_of_all_workers_are_added_up_and_saved(tmp_path):
    counters = serve(tmp_path, "first", 5)
    assert counters.rows == {
        "answered": {"e": 36, "other": 2},
        "captured": {"e": 20, "other": 0},
        "dropped": {"e": 0, "other": 2},
    }
    assert read_capture_counters(tmp_path) == counters
    later = serve(tmp_path, "second", 1)
    assert saved_capture_counters(tmp_path) == [counters, later]


def test_a_damaged_file_counts_nothing(tmp_path):
    (tmp_path / COUNTED).write_text("[{}")
    assert saved_capture_counters(tmp_path) == []
    assert read_capture_counters(tmp_path) is None


def read(folder, name="f"):
    """Return the values of a metric."""
    (family,) = [family for family in read_families(folder) if family.name == name]
    return [series.value for series in family.series]


def test_keys_of_any_length_keep_their_values(tmp_path):
    tally = MmapCounters(tmp_path / "counts_1.db")
    slots = [tally.slot(HELP, {"label": "é" * length}) for length in range(17)]
    for slot in slots:
        tally.cells[slot] += slot / 8
    assert read(tmp_path) == [slot / 8 for slot in slots]


def test_labels_that_no_utf_8_has_do_not_break_the_page(tmp_path):
    tally = MmapCounters(tmp_path / "counts_1.db")
    tally.slot(HELP, {"prediction": '\ud800 \n\r"\\ \0'})
    page = prometheus_text(read_families(tmp_path)).decode()
    assert 'f_total{prediction="? \\n\r\\"\\\\ \0"} 0.0\n' in page


def test_a_slot_keeps_its_value_while_the_file_grows(tmp_path):
    tally = MmapCounters(tmp_path / "counts_1.db")
    before = tally.cells
    first = tally.slot(HELP, {"n": "first"})
    for number in range(2000):
        slot = tally.slot(HELP, {"n": str(number)})
        tally.cells[slot] += 1
    tally.cells[first] += 1
    before[first] += 1  # A thread may have a reference to the cells from before the file grew.
    assert sum(read(tmp_path)) == 2002


def test_a_full_memory_loses_values_and_not_the_answer(tmp_path, monkeypatch):
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


def test_a_reader_meets_only_whole_entries(tmp_path):
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


def test_metrics_lie_on_the_disk_where_shared_memory_has_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100_000))
    os.close(make_metrics_folder(tmp_path))
    assert (tmp_path / METRICS).readlink().parent == tmp_path
