"""The fire times of a crontab line, for monitors and for scheduled retrainings."""

import re
from functools import lru_cache

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import MONTHS, WEEKDAYS, load_time_zone, validate_crontab

_DAYS = (*WEEKDAYS, "sun")
_MONTH = re.compile("|".join(MONTHS))


@lru_cache(maxsize=256)
def crontab_trigger(schedule: str, time_zone: str) -> BaseTrigger:
    """Return the times of a line like `15 6 * * 1-5`, as crontab(5) has them: 0 and 7 are Sunday, and if both a day of
    the month and a day of the week are given, either will do. (APScheduler counts from Monday, and wants both.)

    Times that a clock change skips come an hour later, and times that it doubles come twice.

    Raises:
        InvalidConfig: it cannot be read.
    """
    zone = load_time_zone(time_zone)
    try:
        minute, hour, day, month, weekday = validate_crontab(schedule).split()
        weekday = ",".join(_weekdays(part) for part in weekday.split(","))
        month = _MONTH.sub(lambda name: str(MONTHS.index(name[0]) + 1), month.lower())
        given = {"minute": minute, "hour": hour, "month": month, "timezone": zone}
        if day.startswith("*") or weekday.startswith("*"):
            return CronTrigger(day=day, day_of_week=weekday, **given)
        return OrTrigger([CronTrigger(day=day, **given), CronTrigger(day_of_week=weekday, **given)])
    except (ValueError, IndexError) as error:
        raise InvalidConfig(f"schedule {schedule!r}: {error}") from None


def _weekdays(part: str) -> str:
    """Return one part of a weekday field day by day: `1-5` is mon,…,fri; `5-7` and `fri-sun` are fri,sat,sun."""
    days, slash, step = part.lower().partition("/")
    first, dash, last = days.partition("-")
    if first == "*":
        return part
    begin, end = _day(first), _day(last) if dash else 6 if slash else _day(first)
    if dash and last == _DAYS[0]:
        end = 7
    numbers = range(begin, end + 1, int(step) if slash else 1)
    return ",".join(_DAYS[number] for number in numbers)


def _day(text: str) -> int:
    return int(text) if text.isdigit() else _DAYS.index(text)
