"""The page equals that of prometheus_client for the same files."""

import errno
import os
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.server.observability.exposition import (
    COUNTED,
    CaptureCounters,
    Metric,
    MmapCounters,
    agent_metrics_page,
    make_metrics_folder,
    prometheus_text,
    read_capture_counters,
    read_families,
    save_capture_counters,
    saved_capture_counters,
)
from mlflow_deploy_plugin.server.observability.metrics import Metrics
from mlflow_deploy_plugin.statedir import AGENT, METRICS, AgentState, RefusedVersion, ShippingState, write_state

Page = dict[str, tuple[str, str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]]
WORDS = st.text(st.sampled_from('le": ,\\n\n{}ü"='), max_size=6)
HELP, SECONDS = Metric("f", "help"), Metric("h", "seconds", ("0.0005", "2.5", "10.0", "1024.0"))
LABELS = st.dictionaries(st.sampled_from(["a", "endpoint", "model"]), WORDS, min_size=3)


def parsed(page: bytes) -> Page:
    """Return by family its type, its help, and its samples by name and labels."""
    return {
        family.name: (
            family.type,
            family.documentation,
            {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in family.samples},
        )
        for family in text_string_to_metric_families(page.decode())
    }


def both(folder: Path) -> tuple[Page, Page]:
    summed = CollectorRegistry()
    MultiProcessCollector(summed, str(folder))  # type: ignore[no-untyped-call]
    return parsed(prometheus_text(read_families(folder))), parsed(generate_latest(summed))


def fill(folder: Path, worker: int, label_sets: list[dict[str, str]], value: float) -> None:
    tallies = {
        "counter": MmapCounters(folder / f"counter_w{worker}.db"),
        "histogram": MmapCounters(folder / f"histogram_w{worker}.db"),
        "gauge": MmapCounters(folder / f"gauge_livesum_{worker}.db"),
        "latest": MmapCounters(folder / f"gauge_max_w{worker}.db"),
    }
    for number, labels in enumerate(label_sets):
        total, buckets = tallies["histogram"].histogram(SECONDS, labels)
        slots = [
            ("counter", tallies["counter"].counter(Metric("c", 'help\\ of\n"c"'), labels)),
            ("gauge", tallies["gauge"].gauge(Metric("g", "of those that live"), labels)),
            ("latest", tallies["latest"].gauge(Metric("latest", "the latest"), labels)),
            *(("histogram", slot) for slot in (total, *buckets)),
        ]
        for name, slot in slots:
            tallies[name].cells[slot] = value * (1 + number + slot % 7)


@settings(max_examples=60)
@given(st.lists(st.lists(LABELS, max_size=4, unique_by=lambda labels: tuple(sorted(labels.items()))), max_size=3))
def test_the_page_is_that_of_prometheus_client(
    tmp_path_factory: pytest.TempPathFactory, workers: list[list[dict[str, str]]]
) -> None:
    folder = tmp_path_factory.mktemp("metrics")
    for number, label_sets in enumerate(workers):
        fill(folder, number, label_sets, 0.25 + 1e9 * number)
    ours, theirs = both(folder)
    assert ours == theirs


def test_what_a_dead_worker_has_counted_stays_and_what_it_was_goes(tmp_path: Path) -> None:
    labels = {"a": "1", "endpoint": "e", "model": "m"}
    for worker in (1, 2):
        fill(tmp_path, worker, [labels], 1.0)
    before, _ = both(tmp_path)
    mark_process_dead(1, str(tmp_path))  # type: ignore[no-untyped-call]
    after, theirs = both(tmp_path)
    assert after == theirs
    assert {name for name in before if after[name] != before[name]} == {"g"}
    assert sum(after["g"][2].values()) * 2 == sum(before["g"][2].values())


def test_a_file_that_its_worker_has_just_made_is_empty(tmp_path: Path) -> None:
    (tmp_path / "counter_new.db").touch()
    (tmp_path / "counter_newer.db").write_bytes(bytes(65536))
    assert prometheus_text(read_families(tmp_path)) == b""


def serve(state_dir: Path, run: str, responses: int) -> CaptureCounters:
    """Count as two workers of the server `run`, and end it."""
    folder = state_dir / run
    folder.mkdir()
    (state_dir / METRICS).unlink(missing_ok=True)
    (state_dir / METRICS).symlink_to(folder)
    for metrics in (Metrics(folder), Metrics(folder)):
        for _ in range(responses):
            metrics.count_capture("e", 3, 2, True)
        metrics.count_capture("e", 3, 0, None)
        metrics.count_capture("other", 1, 1, False)
    counters = read_capture_counters(state_dir)
    assert counters is not None
    save_capture_counters(state_dir)
    shutil.rmtree(folder)
    return counters


def test_rows_of_all_workers_are_added_up_and_saved(tmp_path: Path) -> None:
    counters = serve(tmp_path, "first", 5)
    assert counters.rows == {
        "answered": {"e": 36, "other": 2},
        "captured": {"e": 20, "other": 0},
        "dropped": {"e": 0, "other": 2},
    }
    assert read_capture_counters(tmp_path) == counters
    later = serve(tmp_path, "second", 1)
    assert saved_capture_counters(tmp_path) == [counters, later]


def test_a_damaged_file_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / COUNTED).write_text("[{}")
    assert saved_capture_counters(tmp_path) == []
    assert read_capture_counters(tmp_path) is None


def read(path: Path) -> dict[str, float]:
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path))}  # type: ignore[no-untyped-call]


def test_what_is_added_is_read_by_prometheus_client(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    tally = MmapCounters(path)
    slots = [tally.counter(HELP, {"label": "é" * length}) for length in range(17)]
    for slot in slots:
        tally.cells[slot] += slot / 8
    assert [value for key, value in read(path).items() if "label" in key] == [slot / 8 for slot in slots]


def test_labels_that_no_utf_8_has_do_not_break_the_page(tmp_path: Path) -> None:
    tally = MmapCounters(tmp_path / "counter_1.db")
    tally.counter(HELP, {"prediction": '\ud800 \n\r"\\ \0'})
    page = prometheus_text(read_families(tmp_path)).decode()
    assert 'f_total{prediction="? \\n\r\\"\\\\ \0"} 0.0\n' in page


def test_a_slot_keeps_its_value_while_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    tally = MmapCounters(path)
    before = tally.cells
    first = tally.counter(HELP, {"n": "first"})
    for number in range(2000):
        tally.cells[tally.counter(HELP, {"n": str(number)})] += 1
    tally.cells[first] += 1
    before[first] += 1  # a thread may have taken the cells before the file grew
    assert sum(read(path).values()) == 2002


def test_a_full_memory_loses_values_and_not_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counter_1.db"
    tally = MmapCounters(path)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for number in range(2000):
        tally.cells[tally.counter(HELP, {"n": str(number)})] += 1
    values = read(path)
    assert sum(values.values()) == 2000
    assert next(value for key, value in values.items() if "onnxserve_unrecorded" in key) > 500


def test_a_reader_meets_only_whole_entries(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    tally = MmapCounters(path)

    def fill() -> None:
        for number in range(2000):
            tally.counter(HELP, {"n": str(number)})

    writer = threading.Thread(target=fill)
    writer.start()
    while writer.is_alive():
        assert set(read(path).values()) == {0.0}
    writer.join()
    assert len(read(path)) == 2001


REFUSED = RefusedVersion(endpoint="e", variant="v", model='x"\n', version="2", cause="gate", reason="not passed")


def samples(state_dir: Path) -> dict[str, list[tuple[dict[str, str], float]]]:
    families = text_string_to_metric_families(agent_metrics_page(state_dir).decode())
    return {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in families}


def test_what_is_not_served_is_a_metric(tmp_path: Path) -> None:
    shipping = ShippingState(complete_until=120.0)
    state = AgentState(pid=os.getpid(), checked_at=12.5, error="a; b", errors=2, refused=(REFUSED,), shipping=shipping)
    write_state(tmp_path / AGENT, state)
    assert samples(tmp_path) == {
        "onnxserve_agent_up": [({}, 1.0)],
        "onnxserve_agent_errors": [({}, 2.0)],
        "onnxserve_registry_checked_timestamp_seconds": [({}, 12.5)],
        "onnxserve_log_complete_until_timestamp_seconds": [({}, 120.0)],
        "onnxserve_wanted_version_refused": [
            ({"endpoint": "e", "variant": "v", "model": 'x"\n', "version": "2", "cause": "gate"}, 1.0)
        ],
    }


@pytest.mark.parametrize("is_there", [False, True])
def test_an_agent_that_is_not_there_is_told(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        dead = subprocess.Popen(["true"])
        dead.wait()
        write_state(tmp_path / AGENT, AgentState(pid=dead.pid))
        assert samples(tmp_path)["onnxserve_agent_up"] == [({}, 0.0)]
    else:
        assert agent_metrics_page(tmp_path) == b""


def test_metrics_lie_on_the_disk_where_shared_memory_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100_000))
    os.close(make_metrics_folder(tmp_path))
    assert (tmp_path / METRICS).readlink().parent == tmp_path
