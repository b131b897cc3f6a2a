"""Crontab lines fire when crontab(5) says."""

from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.controller.work import crontab_trigger
from mlflow_deploy_plugin.errors import InvalidConfig


@pytest.mark.parametrize(
    ("schedule", "days"),
    [
        ("0 6 * * 0", ["Sun"]),
        ("0 6 * * 7", ["Sun"]),
        ("0 6 * * 1-5", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("0 6 * * 5-7", ["Fri", "Sat", "Sun"]),
        ("0 6 * * mon,3", ["Mon", "Wed"]),
        ("0 6 * * 1-5/2", ["Mon", "Wed", "Fri"]),
        ("0 6 * * */2", ["Tue", "Thu", "Sat", "Sun"]),
        ("0 6 * NOV-12 Sun-tue", ["Mon", "Sun", "Tue"]),
        ("0 6 * * fri-sun", ["Fri", "Sat", "Sun"]),
        ("0 6 23 * 5", ["Mon", "Fri"]),  # 2026-11-23 is a Monday: either will do
    ],
)
def test_days_of_the_week_are_those_of_crontab(schedule: str, days: list[str]) -> None:
    trigger, time, found = crontab_trigger(schedule, "UTC"), datetime(2026, 11, 22, 12, tzinfo=UTC), []
    while (fires := trigger.get_next_fire_time(None, time)) <= datetime(2026, 11, 29, 12, tzinfo=UTC):
        found.append(fires.strftime("%a"))
        time = fires + timedelta(minutes=1)

    assert sorted(found) == sorted(days)


@pytest.mark.parametrize("zone", ["Europe/Berlinn", "../etc/passwd", "Europe"])
def test_a_time_zone_that_is_not_known_is_said(zone: str) -> None:
    with pytest.raises(InvalidConfig, match=f"time_zone '{zone}' is not known"):
        crontab_trigger("15 6 * * *", zone)
