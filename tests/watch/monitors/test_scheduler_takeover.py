"""Windows that were judged by hand do not replace windows of the schedule."""

from dataclasses import replace
from datetime import timedelta

from mlflow_deploy_plugin.core.store.alerts import Alerts
from tests.support.monitors import DUE, HOUR, NOON


def judged_by_hand(world, start, end):
    window = world.monitors.add("flights", "hourly", start, end, by_hand=True)
    world.monitors.update(replace(window, state="judged", verdict="drift", log_rows=1000))


def as_shown(windows):
    return [(window.start, window.end - window.start, window.revision) for window in windows]


def test_a_shorter_window_that_begins_with_it_does_not_stand_for_the_schedules(world):
    world.endpoint()
    world.rows(NOON)
    judged_by_hand(world, NOON, NOON + HOUR / 2)
    world.now = DUE

    world.start()

    assert {(NOON, HOUR / 2, 1), (NOON, HOUR, 2)} <= set(as_shown(world.wait_for(2)))


def test_a_window_that_was_judged_before_it_was_due_is_judged_again(world):
    world.endpoint(hourly={"grace": "30m"})
    world.rows(NOON)
    world.now = NOON + HOUR
    judged_by_hand(world, NOON, NOON + HOUR)
    world.now = NOON + HOUR + timedelta(minutes=31)
    world.judge = lambda asked: "drift"

    world.start()

    assert as_shown(world.wait_for(2)) == [(NOON, HOUR, 1), (NOON, HOUR, 2)]
    assert [alert.monitor for alert in Alerts(world.store).firing()] == ["hourly"]


def test_alarm_fires_although_later_windows_were_judged_by_hand(world):
    world.endpoint()
    world.rows(NOON)
    judged_by_hand(world, NOON + HOUR, NOON + 2 * HOUR)
    judged_by_hand(world, NOON + HOUR / 2, NOON + 3 * HOUR / 2)
    world.now = DUE
    world.judge = lambda asked: "drift"

    world.start()
    world.wait_for(3)

    assert [alert.monitor for alert in Alerts(world.store).firing()] == ["hourly"]


def test_rows_that_come_later_belong_to_the_window_that_holds_them(world):
    world.due()
    over = world.start()
    world.wait_for(1)
    over.set()
    judged_by_hand(world, NOON, NOON + HOUR / 4)

    world.rows(NOON, rows=2)
    world.start()

    assert (NOON, HOUR, 3) in as_shown(world.wait_for(3))


def test_monitor_removed_while_it_is_judged_fires_no_alert(world):
    world.due(hourly={}, other={"every": "30d"})

    def judge(asked):
        world.store.replace_spec(world.spec(other={"every": "30d"}))
        return "drift"

    world.judge = judge
    world.start()
    world.wait_for(1, "hourly")

    assert Alerts(world.store).firing() == []
