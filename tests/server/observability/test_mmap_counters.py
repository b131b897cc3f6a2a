"""A worker's counters in shared memory are read back by prometheus_client's own reader."""

import errno
import os
import threading
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from mlflow_deploy_plugin.server.observability.exposition import prometheus_text, read_families
from mlflow_deploy_plugin.server.observability.mmap_counters import MmapCounters


def read(path: Path) -> dict[str, float]:
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path))}  # type: ignore[no-untyped-call]


def test_what_is_added_is_read_by_prometheus_client(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    tally = MmapCounters(path)
    slots = [tally.slot("f", "f_total", {"label": "é" * length}, "help") for length in range(17)]
    for slot in slots:
        tally.cells[slot] += slot / 8
    assert [value for key, value in read(path).items() if "label" in key] == [slot / 8 for slot in slots]


def test_labels_that_no_utf_8_has_do_not_break_the_page(tmp_path: Path) -> None:
    tally = MmapCounters(tmp_path / "counter_1.db")
    tally.slot("f", "f_total", {"prediction": '\ud800 \n\r"\\ \0'}, "help")
    page = prometheus_text(read_families(tmp_path)).decode()
    assert 'f_total{prediction="? \\n\r\\"\\\\ \0"} 0.0\n' in page


def test_a_slot_keeps_its_value_while_the_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    tally = MmapCounters(path)
    before = tally.cells
    first = tally.slot("f", "f_total", {"n": "first"}, "help")
    for number in range(2000):
        tally.cells[tally.slot("f", "f_total", {"n": str(number)}, "help")] += 1
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
        tally.cells[tally.slot("f", "f_total", {"n": str(number)}, "help")] += 1
    values = read(path)
    assert sum(values.values()) == 2000
    assert next(value for key, value in values.items() if "onnxserve_unrecorded" in key) > 500


def test_a_reader_meets_only_whole_entries(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    tally = MmapCounters(path)

    def fill() -> None:
        for number in range(2000):
            tally.slot("f", "f_total", {"n": str(number)}, "help")

    writer = threading.Thread(target=fill)
    writer.start()
    while writer.is_alive():
        assert set(read(path).values()) == {0.0}
    writer.join()
    assert len(read(path)) == 2001
