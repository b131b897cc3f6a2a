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
    first = {
        "_event_time": [DAY, DAY + timedelta(minutes=61)],
        "_prediction_id": ["p", "q"],
        "flight": [1, 2],
    }
    segment = writer.write(first)
    writer.write(first, segment=segment, suffix="-again")
    writer.write(
        {"_event_time": [DAY + timedelta(hours=1)], "_variant": ["challenger"]}, version="2"
    )
    writer.write({"_event_time": [DAY + timedelta(hours=5)], "_shadow": [True]}, version="3")
    return log


def test_rows_are_counted_once_by_version_variant_and_hour(flights):
    stats = log_stats(flights, "flights")

    assert stats.rows == 3
    assert stats.shadow_rows == 1
    assert stats.files == 6
    assert stats.first == DAY
    assert stats.last == DAY + timedelta(hours=5)
    assert stats.by_version == {"flight-delay version 1": 2, "flight-delay version 2": 1}
    assert stats.by_variant == {"challenger": 1, "flights": 2}
    assert stats.by_hour == {DAY: 1, DAY + timedelta(hours=1): 2}
    assert stats.account is None
    assert stats.labels == LabelCounts(0, 0, 0)


def test_labels_are_counted_with_those_that_have_no_row_in_the_log(flights, writer):
    writer.label(
        Label("p", 0, None, 1, 1),
        Label("p", 0, None, 0, 2),
        Label(None, None, {"flight": 2}, 1, 1),
        Label("nobody", None, None, 1, 1),
        Label(None, None, {"flight": 99}, 1, 1),
        Label(None, None, {"gate": 7}, 1, 1),
    )

    assert log_stats(flights, "flights").labels == LabelCounts(rows=2, names=5, unmatched=3)
    span = parse_time_range("2013-07-01/1h", None, DAY)
    stats = log_stats(flights, "flights", span)
    assert stats.rows == 1
    assert stats.labels.rows == 1
    assert stats.labels.unmatched is None


def test_the_counts_of_all_agents_are_added_up(flights):
    for number, ended in enumerate((False, True, False)):
        counts = {"flights": 10 * (number + 1), "other": 999}
        mark = Watermark(
            agent=f"a{number}",
            endpoints=("flights", "other"),
            complete_until=DAY + timedelta(days=(2, 1, 3)[number]),
            written_at=DAY,
            ended=ended,
            answered_rows=counts,
            captured_rows=counts,
            dropped_rows={"flights": 1},
            shipped_rows={},
        )
        write_watermark(flights.location, mark)

    account = log_stats(flights, "flights").account

    # An agent that has ended is ignored.
    assert account == AgentCounts(60, 60, 3, 0, DAY + timedelta(days=2))


def test_an_endpoint_of_which_every_row_was_lost_is_counted_all_the_same(log):
    mark = Watermark(
        "a", ("flights",), DAY, DAY, False, {"flights": 7}, {"flights": 0}, {"flights": 7}
    )
    write_watermark(log.location, mark)
    stats = log_stats(log, "flights")
    assert stats.rows == 0
    assert stats.account == AgentCounts(7, 0, 7, 0, DAY)


def test_shipped_rows_that_are_not_in_the_log_any_more_are_seen():
    account = AgentCounts(answered=9, captured=9, dropped=0, shipped=9, complete_until=DAY)
    assert account.gone(4) == 5
    assert account.gone(9) == 0
    assert account.gone(12) == 0


def test_stats_of_an_endpoint_without_rows_are_not_found(flights):
    with pytest.raises(NotFound, match="rows of flights"):
        log_stats(flights, "zzz")


NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_the_last_watermark_of_each_agent_is_read_back(tmp_path):
    location = locate_log(str(tmp_path / "log"))
    assert read_watermarks(location) == []
    for agent in ("b", "a"):
        write_watermark(location, Watermark(agent, ("e",), NOON, NOON))
    last = Watermark(
        "a", ("e", "f"), NOON, NOON.replace(minute=1), True, {"e": 3}, {"e": 2}, {"f": 1}, {"e": 2}
    )
    write_watermark(location, last)
    assert read_watermarks(location) == [last, Watermark("b", ("e",), NOON, NOON)]


def test_one_that_cannot_be_understood_hides_no_other(tmp_path):
    location = locate_log(str(tmp_path))
    mark = Watermark("a", (), NOON, NOON)
    write_watermark(location, mark)
    (tmp_path / "_watermarks" / "b.json").write_text('{"agent": "b", "endpoints": []')
    (tmp_path / "_watermarks" / "c.json").write_text("[]")
    assert read_watermarks(location) == [mark]


def test_watermarks_of_agents_that_are_long_gone_are_deleted(tmp_path):
    location = locate_log(str(tmp_path))
    assert expire_watermarks(location, NOON) == []
    for agent, age in (("gone", GONE_AFTER), ("quiet", GONE_AFTER - timedelta(hours=1))):
        write_watermark(location, Watermark(agent, ("e",), NOON, NOON))
        timestamp = (NOON - age).timestamp()
        os.utime(tmp_path / "_watermarks" / f"{agent}.json", (timestamp, timestamp))

    assert expire_watermarks(location, NOON) == ["gone"]
    assert [mark.agent for mark in read_watermarks(location)] == ["quiet"]
