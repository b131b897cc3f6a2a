"""A schedule that can never be, or cannot be read, is refused when it is written."""

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import load_time_zone, validate_crontab


@pytest.mark.parametrize(
    "line",
    [
        "15 6 * * *",
        "*/15 0-6,22 1 jan-mar,12 mon-fri/2",
        "0 6 30 2 mon",  # either day will do, and there are Mondays
        "0 6 29 feb *",
        "0 0 * * sat-sun",
    ],
)
def test_a_line_is_taken_as_it_is(line: str) -> None:
    assert validate_crontab(line) == line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("15 6 * *", "minute, hour, day, month and weekday are expected"),
        ("60 6 * * *", "minute '60': 0 to 59 are expected"),
        ("0 6 * * mo", "weekday 'mo': numbers, lists, ranges and steps are expected"),
        ("0 6 * foo *", "month 'foo': 1 to 12 are expected, or jan feb"),
        ("0 6-3 * * *", "hour '6-3' ends before it begins"),
        ("*/0 * * * *", "the step has to be at least 1"),
        ("0 6 31 2,4 *", "no month that is named has a day 31"),
    ],
)
def test_a_line_that_cannot_be_says_which_field(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        validate_crontab(line)


@pytest.mark.parametrize("name", ["Europe/Nowhere", "../etc/passwd", ""])
def test_a_time_zone_that_this_machine_does_not_know_is_refused(name: str) -> None:
    assert load_time_zone("Europe/Berlin").key == "Europe/Berlin"
    with pytest.raises(InvalidConfig, match="is not known; as Europe/Berlin"):
        load_time_zone(name)
