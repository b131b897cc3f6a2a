"""Which agents a window waits for."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from mlflow_deploy_plugin.controller.monitors.readiness import readiness
from mlflow_deploy_plugin.inference_log.watermarks import Watermark

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MARK = Watermark("one", ("flights",), complete_until=NOW - timedelta(seconds=2), written_at=NOW)
LATER = replace(MARK, agent="two", complete_until=NOW - timedelta(minutes=3))


def test_the_slowest_agent_counts() -> None:
    found = readiness([MARK, LATER], "flights", NOW)

    assert found.complete_until == LATER.complete_until
    assert not found.covers(NOW - timedelta(minutes=1))
    assert found.covers(LATER.complete_until)


def test_an_agent_that_has_ended_or_serves_others_is_not_waited_for() -> None:
    assert readiness([replace(MARK, ended=True), replace(MARK, endpoints=("other",))], "flights", NOW).covers(NOW)


def test_an_agent_that_is_silent_for_an_hour_is_passed_over_with_a_note() -> None:
    silent = replace(LATER, written_at=NOW - timedelta(minutes=61))

    found = readiness([MARK, silent], "flights", NOW)

    assert found.complete_until == MARK.complete_until
    assert found.notes == ("the agent two says nothing since 2026-11-20 10:59:00 UTC: its rows are not waited for",)


def test_an_agent_whose_clock_is_far_ahead_is_passed_over_with_a_note() -> None:
    ahead = replace(LATER, written_at=NOW + timedelta(days=1))

    (note,) = readiness([ahead], "flights", NOW).notes

    assert note.startswith("the clock of the agent two is ahead")
