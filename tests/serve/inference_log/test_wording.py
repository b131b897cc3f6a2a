"""The error messages of queries over the log and of label files."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog
from mlflow_deploy_plugin.serve.inference_log.stats import log_stats
from mlflow_deploy_plugin.serve.inference_log.windows import parse_time_range
from tests.support.messages import message_of

DAY = datetime(2013, 7, 1, tzinfo=UTC)


MESSAGES: dict[str, tuple[Callable[[InferenceLog], object], str]] = {
    "an unknown endpoint": (
        lambda log: log_stats(log, "flihgts"),
        "the inference log LOG has no rows of endpoint 'flihgts'; did you mean 'flights'?",
    ),
    "nothing captured": (
        lambda log: log.latest_window("taxis", "1d", DAY),
        "no rows of endpoint 'taxis' have been captured yet in LOG",
    ),
    "a window that is not over": (
        lambda log: log.latest_window("flights", "1d", DAY + timedelta(hours=1)),
        (
            "no finished window of 1d has rows of endpoint 'flights'; 2013-07-01/2013-07-02 is "
            "not over yet: use --window 2013-07-01/2013-07-02 to judge its rows so far"
        ),
    ),
    "a time that is none": (
        lambda log: parse_time_range("yesterday", None, DAY),
        (
            "--since 'yesterday' cannot be read; it is a duration before now (90s, 15m, 1h, 7d), "
            "a time of the events (2013-07-01, 2013-07-01T12:00Z), or a window of them "
            "(2013-07-01/1d)"
        ),
    ),
}


@pytest.mark.parametrize(("cause", "message"), MESSAGES.values(), ids=MESSAGES)
def test_refusals_list_the_valid_choices(log, writer, cause, message):
    writer.write({"_event_time": [DAY], "distance": [1.0]})
    assert message_of(lambda: cause(log)).replace(str(writer.root), "LOG") == message
