"""Counts of the log show whether rows are missing."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.serve.inference_log.stats import (
    GONE_AFTER,
    AgentCounts,
    LabelCounts,
    Watermark,
    expire_watermarks,
    log_stats,
    read_watermarks,
    write_watermark,
)
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.serve.inference_log.windows import parse_time_range

DAY = datetime(2013, 7, 1, tzinfo=UTC)


@pytest.fixture
def flights(log, writer):
    times = [DAY, DAY + timedelta(minutes=61)]
    first = {"_event_time": times, "_prediction_id": ["p", "q"], "flight": [1, 2]}
    segment = writer.write(first)
    writer.write(first, segment=segment, suffix="-again")
    second = {"_event_time": [DAY + timedelta(hours=1)], "_variant": ["challenger"]}
    writer.write(second, version="2")
    writer.write({"_event_time": [DAY + timedelta(hours=5)], "_shadow": [True]}, version="3")
    return log


def test_rows_are_counted_once(flights):
    stats = log_stats(flights, "flights")
    assert (stats.rows, stats.shadow_rows, stats.files) == (3, 1, 6)
    assert (stats.first, stats.last) == (DAY, DAY + timedelta(hours=5))
    assert stats.by_version == {"flight-delay version 1": 2, "flight-delay version 2": 1}
    assert stats.by_variant == {"challenger": 1, "flights": 2}
    assert stats.by_hour == {DAY: 1, DAY + timedelta(hours=1): 2}
    assert stats.account is None
    assert stats.labels == LabelCounts(0, 0, 0)


def test_labels_without_rows_are_counted(flights, writer):
    names = [("p", 0, None), (None, None, {"flight": 2}), ("nobody", None, None)]
    names += [(None, None, {"flight": 99}), (None, None, {"gate": 7})]
    writer.label(Label("p", 0, None, 0, 2), *(Label(*name, 1, 1) for name in names))
    assert log_stats(flights, "flights").labels == LabelCounts(rows=2, names=5, unmatched=3)
    span = parse_time_range("2013-07-01/1h", None, DAY)
    stats = log_stats(flights, "flights", span)
    assert (stats.rows, stats.labels.rows, stats.labels.unmatched) == (1, 1, None)


def test_counts_of_all_agents_are_summed(flights):
    for number, ended in enumerate((False, True, False)):
        rows = {"flights": 10 * (number + 1), "other": 999}
        until = DAY + timedelta(days=(2, 1, 3)[number])
        names = ("flights", "other")
        mark = Watermark(f"a{number}", names, until, DAY, ended, rows, rows, {"flights": 1}, {})
        write_watermark(flights.location, mark)

    # An agent that has ended is ignored.
    account = AgentCounts(60, 60, 3, 0, DAY + timedelta(days=2))
    assert log_stats(flights, "flights").account == account


def test_endpoint_that_lost_every_row_is_counted(log):
    lost = {"flights": 7}
    mark = Watermark("a", ("flights",), DAY, DAY, False, lost, {"flights": 0}, lost)
    write_watermark(log.location, mark)
    stats = log_stats(log, "flights")
    assert (stats.rows, stats.account) == (0, AgentCounts(7, 0, 7, 0, DAY))


def test_missing_shipped_rows_are_noticed():
    account = AgentCounts(answered=9, captured=9, dropped=0, shipped=9, complete_until=DAY)
    assert account.gone(4) == 5
    assert account.gone(9) == 0
    assert account.gone(12) == 0


def test_stats_without_rows_are_not_found(flights):
    with pytest.raises(NotFound, match="rows of flights"):
        log_stats(flights, "zzz")


NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_last_watermark_per_agent_is_read(tmp_path):
    location = locate_log(str(tmp_path / "log"))
    assert read_watermarks(location) == []
    other = Watermark("b", ("e",), NOON, NOON)
    last = Watermark(
        "a", ("e", "f"), NOON, NOON.replace(minute=1), True, {"e": 3}, {"e": 2}, {"f": 1}, {"e": 2}
    )
    for mark in (other, Watermark("a", ("e",), NOON, NOON), last):
        write_watermark(location, mark)
    assert read_watermarks(location) == [last, other]


def test_malformed_watermark_hides_no_other(tmp_path):
    location = locate_log(str(tmp_path))
    mark = Watermark("a", (), NOON, NOON)
    write_watermark(location, mark)
    (tmp_path / "_watermarks" / "b.json").write_text('{"agent": "b", "endpoints": []')
    (tmp_path / "_watermarks" / "c.json").write_text("[]")
    assert read_watermarks(location) == [mark]


def test_watermarks_of_gone_agents_are_deleted(tmp_path):
    location = locate_log(str(tmp_path))
    assert expire_watermarks(location, NOON) == []
    for agent, age in (("gone", GONE_AFTER), ("quiet", GONE_AFTER - timedelta(hours=1))):
        write_watermark(location, Watermark(agent, ("e",), NOON, NOON))
        timestamp = (NOON - age).timestamp()
        os.utime(tmp_path / "_watermarks" / f"{agent}.json", (timestamp, timestamp))

    assert expire_watermarks(location, NOON) == ["gone"]
    assert [mark.agent for mark in read_watermarks(location)] == ["quiet"]
