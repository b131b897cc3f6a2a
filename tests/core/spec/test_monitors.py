"""Tests of the part of the log that a monitor and the sample of its retraining read,
and of seasons and budgets.
"""

from datetime import timedelta

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import apply_config, dump_spec, load_specs
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec, SampleSpec
from tests.support.refusals import refused
from tests.support.specs import flights


def test_only_estimated_figures_read_rows_of_earlier_windows():
    def reads(figure, **fields):
        return MonitorSpec(
            kind="performance", require=(figure,), every="1h", grace="5m", **fields
        ).max_row_age

    waited = timedelta(hours=1, minutes=5)
    assert reads("rmse<=3") == waited
    # The figure needs the three windows before its window.
    assert reads("f1>=0.7") == waited + timedelta(hours=3)
    assert reads("f1>=0.7", labels_within="90m") == waited + timedelta(minutes=90) + timedelta(
        hours=4
    )


SAMPLED: dict[str, object] = {"mode": "incremental", "project": "p", "sample.recent": "30d"}


def with_sample(**fields):
    """Return an endpoint whose monitor of daily windows retrains on a sample; `__` in a
    name stands for a dot.
    """
    options = SAMPLED | {name.replace("__", "."): value for name, value in fields.items()}
    return apply_config(
        flights(), {f"monitors.daily.retrain.{name}": value for name, value in options.items()}
    )


def test_a_sample_is_set_by_dotted_names_and_removed_by_its_name():
    spec = with_sample(sample__fraction="0.2", sample__stratify="carrier", sample__weight="14d")

    sample = spec.monitors["daily"].sample
    assert sample == SampleSpec(recent="30d", fraction=0.2, stratify="carrier", weight="14d")
    assert load_specs(dump_spec(spec)) == [spec]
    assert (
        apply_config(spec, {"monitors.daily.retrain.sample": ""}).monitors["daily"].sample is None
    )
    with refused(InvalidConfig, "'monitors.daily.retrain.sample'", "'monitors.NAME.retrain.sample"):
        apply_config(spec, {"monitors.daily.retrain.sample": "30d"})


def test_the_rows_of_a_sample_are_kept_in_the_log():
    config = {"capture.retention": "30d"}
    with refused(InvalidConfig, "capture.retention 30d", "'daily'", "31d"):
        apply_config(with_sample(), config)
    assert apply_config(with_sample(sample__recent="29d"), config).capture.retention == "30d"


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"sample__fraction": "0"}, ("retrain.sample.fraction", "more than 0")),
        ({"sample__fraction": "1.5"}, ("retrain.sample.fraction", "at most 1")),
        ({"sample__recent": "1d"}, ("retrain.sample.recent 1d", "window of 1d")),
        ({"sample__recent": "", "sample__fraction": "0.5"}, ("retrain.sample.recent",)),
        ({"sample__weight": "often"}, ("retrain.sample.weight", "'often'")),
        (
            {"sample__recnt": "2d"},
            ("retrain.sample.recnt", "'monitors.NAME.retrain.sample.recent'"),
        ),
        ({"mode": "full"}, ("monitors.daily", "retrain.sample", "retrain.mode incremental")),
    ],
)
def test_a_sample_that_cannot_be_taken_is_refused(fields, names):
    with refused(InvalidConfig, *names):
        with_sample(**fields)


@pytest.mark.parametrize("field", ["drop", "mask", "keys"])
def test_a_column_that_a_training_does_not_receive_cannot_be_stratified(field):
    spec = with_sample(sample__stratify="carrier")
    with refused(
        InvalidConfig, "monitors.daily.retrain.sample.stratify", "'carrier'", f"capture.{field}"
    ):
        apply_config(spec, {f"capture.{field}": "carrier"})


@pytest.mark.parametrize(
    ("season", "every", "nearest"),
    [("36h", "1d", "2d"), ("1d", "1d", "2d"), ("25h", "1h", ""), ("10d", "3d", "9d")],
)
def test_a_season_has_whole_windows(season, every, nearest):
    fields = {"monitors.daily.season": season, "monitors.daily.every": every}
    if not nearest:
        assert apply_config(flights(), fields).monitors["daily"].season == season
        return
    with refused(InvalidConfig, f"season {season}", f"window of {every}", nearest):
        apply_config(flights(), fields)


def test_the_monitors_of_an_endpoint_share_its_budget_of_alarms():
    two = {"monitors.daily.every": "1d", "monitors.answers.false_alarm_rate": "0.1"}
    spec = apply_config(flights(), {"alarms.false_per_year": "3", **two})

    assert [spec.budget_share(monitor) for monitor in spec.monitors.values()] == [1.5, 1.5]
    with refused(InvalidConfig, "alarms.false_per_year", "at least 0.1", "'0'"):
        apply_config(spec, {"alarms.false_per_year": "0"})


def test_one_false_alarm_per_year_is_the_default_of_monitors_without_a_rate():
    monitors = {
        "monitors.daily.every": "1d",
        "monitors.hits.kind": "performance",
        "monitors.hits.require": "accuracy>=0.8",
        "monitors.answers.false_alarm_rate": "0.1",
        "monitors.files.independent_rows": "true",
    }
    spec = apply_config(flights(), monitors)

    shares = {name: spec.budget_share(monitor) for name, monitor in spec.monitors.items()}
    assert shares == {"daily": 0.5, "hits": 0.5, "answers": None, "files": None}
    assert spec.monitors["answers"].window_rate == 0.1
    assert spec.monitors["daily"].window_rate == 0.05


def test_smallest_effect_is_positive():
    spec = apply_config(flights(), {"alarms.min_effect": "0.02"})

    assert spec.alarms.min_effect == 0.02
    for number in ("0", "-0.02", "nan", "a tenth"):
        with refused(InvalidConfig, "alarms.min_effect", f"'{number}'"):
            apply_config(spec, {"alarms.min_effect": number})
