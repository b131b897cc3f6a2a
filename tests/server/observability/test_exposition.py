"""The page equals that of prometheus_client for the same files."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.server.observability.exposition import prometheus_text, read_families
from mlflow_deploy_plugin.server.observability.mmap_counters import MmapCounters

Page = dict[str, tuple[str, str, dict[tuple[str, tuple[tuple[str, str], ...]], float]]]
WORDS = st.text(st.sampled_from('le": ,\\n\n{}ü"='), max_size=6)
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
        slots = [
            ("counter", tallies["counter"].slot("c", "c_total", labels, 'help\\ of\n"c"')),
            ("gauge", tallies["gauge"].slot("g", "g", labels, "of those that live")),
            ("latest", tallies["latest"].slot("latest", "latest", labels, "the latest")),
            ("histogram", tallies["histogram"].slot("h", "h_sum", labels, "seconds")),
        ]
        for bound in ("0.0005", "2.5", "10.0", "1024.0", "+Inf"):
            slot = tallies["histogram"].slot("h", "h_bucket", {**labels, "le": bound}, "seconds")
            slots.append(("histogram", slot))
        for name, slot in slots:
            tallies[name].cells[slot] = value * (1 + number + slot % 7)


@settings(max_examples=60, deadline=None)
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
