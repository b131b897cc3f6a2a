"""When what was found is an alarm."""

from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.inference_log.windows import Window
from mlflow_deploy_plugin.monitoring.judgement import Judgement, is_alarm
from mlflow_deploy_plugin.spec import MonitorSpec

WINDOW = Window(datetime(2013, 4, 1, tzinfo=UTC), datetime(2013, 4, 2, tzinfo=UTC))


def judged(state) -> Judgement:
    return Judgement("flights", "daily", "drift", "m", "1", "", WINDOW, 1, state, "", 100)


@pytest.mark.parametrize(
    ("state", "before", "alarm"),
    [
        ("drift", ["no drift", "drift", "drift"], True),
        ("drift", ["drift", "no drift", "drift"], False),
        ("drift", ["drift", "not judged", "drift"], True),
        ("drift", ["drift"], False),
        ("drift", [], False),
        ("no drift", ["drift", "drift"], False),
        ("not judged", ["drift", "drift"], False),
        ("violated", ["kept", "violated", "violated"], True),
    ],
)
def test_three_windows_in_a_row_make_an_alarm_and_what_was_not_judged_says_nothing(state, before, alarm) -> None:
    assert is_alarm(MonitorSpec(consecutive=3), judged(state), before) is alarm


def test_one_window_is_enough_where_nothing_else_is_asked() -> None:
    assert is_alarm(MonitorSpec(), judged("drift"), ["no drift"])
