"""Tests of the part of the log that a monitor and the sample of its retraining read,
and of seasons and budgets.
"""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.document import apply_config, dump_spec, load_specs
from mlflow_deploy_plugin.core.spec.monitors import (
    Condition,
    MonitorSpec,
    Requirement,
    SampleSpec,
    parse_condition,
)
from tests.support.refusals import refused
from tests.support.specs import flights


def test_estimated_figures_read_earlier_windows():
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


SAMPLED = {"mode": "incremental", "project": "p", "sample.recent": "30d"}


def with_sample(**fields):
    """Return an endpoint whose monitor of daily windows retrains on a sample; `__` in a
    name stands for a dot.
    """
    options = SAMPLED | {name.replace("__", "."): value for name, value in fields.items()}
    return apply_config(
        flights(), {f"monitors.daily.retrain.{name}": value for name, value in options.items()}
    )


def test_sample_is_set_and_removed():
    spec = with_sample(sample__fraction="0.2", sample__stratify="carrier", sample__weight="14d")

    sample = spec.monitors["daily"].sample
    assert sample == SampleSpec(recent="30d", fraction=0.2, stratify="carrier", weight="14d")
    assert load_specs(dump_spec(spec)) == [spec]
    assert (
        apply_config(spec, {"monitors.daily.retrain.sample": ""}).monitors["daily"].sample is None
    )
    with refused(InvalidConfig, "'monitors.daily.retrain.sample'", "monitors.NAME.retrain.sample"):
        apply_config(spec, {"monitors.daily.retrain.sample": "30d"})


def test_retention_covers_sample():
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
def test_invalid_sample_is_refused(fields, names):
    with refused(InvalidConfig, *names):
        with_sample(**fields)


@pytest.mark.parametrize("field", ["drop", "mask", "keys"])
def test_unavailable_column_is_not_stratified(field):
    spec = with_sample(sample__stratify="carrier")
    with refused(
        InvalidConfig, "monitors.daily.retrain.sample.stratify", "'carrier'", f"capture.{field}"
    ):
        apply_config(spec, {f"capture.{field}": "carrier"})


@pytest.mark.parametrize(
    ("season", "every", "nearest"),
    [("36h", "1d", "2d"), ("1d", "1d", "2d"), ("25h", "1h", ""), ("10d", "3d", "9d")],
)
def test_season_has_whole_windows(season, every, nearest):
    fields = {"monitors.daily.season": season, "monitors.daily.every": every}
    if not nearest:
        assert apply_config(flights(), fields).monitors["daily"].season == season
        return
    with refused(InvalidConfig, f"season {season}", f"window of {every}", nearest):
        apply_config(flights(), fields)


def test_monitors_share_alarm_budget():
    two = {"monitors.daily.every": "1d", "monitors.answers.false_alarm_rate": "0.1"}
    spec = apply_config(flights(), {"alarms.false_per_year": "3", **two})

    assert [spec.budget_share(monitor) for monitor in spec.monitors.values()] == [1.5, 1.5]
    with refused(InvalidConfig, "alarms.false_per_year", "at least 0.1", "'0'"):
        apply_config(spec, {"alarms.false_per_year": "0"})


def test_default_budget_is_one_alarm_per_year():
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


def required(kind, *texts):
    return MonitorSpec.model_validate({"kind": kind, "require": texts}).requirements


def test_requirements_have_columns_and_units():
    assert required("performance", "accuracy>=0.8", " rmse <= 3 ") == (
        Requirement("accuracy>=0.8", "accuracy", "", ">=", 0.8),
        Requirement("rmse <= 3", "rmse", "", "<=", 3.0),
    )
    assert [
        (requirement.argument, requirement.value)
        for requirement in required("drift", "missing<=0.1", "missing(wind (m/s))<5%")
    ] == [("", 0.1), ("wind (m/s)", 0.05)]
    assert [
        requirement.value
        for requirement in required("service_level", "p99<=0.2", "p50<=20ms", "error_rate<=1%")
    ] == [0.2, 0.02, 0.01]


def test_requirement_holds_within_its_bound():
    (accuracy,) = required("performance", "accuracy>=0.8")

    assert [accuracy.holds(value) for value in (0.81, 0.8, 0.79, float("nan"))] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (
            "performance",
            "acuracy>=0.8",
            "no metric 'acuracy'; its metrics are accuracy, .*; did you mean 'accuracy'",
        ),
        ("performance", "p99<=1s", "a monitor of kind performance has no metric 'p99'"),
        (
            "performance",
            "accuracy",
            "'accuracy' is not a requirement; e.g. accuracy>=0.8 is expected",
        ),
        (
            "performance",
            "accuracy<=0.8",
            "has the wrong direction; accuracy is better when higher: accuracy>=0.8",
        ),
        ("performance", "accuracy>=80", "accuracy must be between 0 and 1"),
        ("performance", "accuracy(carrier)>=0.8", "does not accept brackets"),
        ("performance", "rmse<=3ms", "'ms' is not a unit of rmse; allowed: a bare number"),
        ("service_level", "p99<=0", "a time above 0 is expected"),
        ("service_level", "p99<=2x", "'x' is not a unit of p99; allowed: a bare number, s, ms"),
        (
            "drift",
            "missing(a)<=0.1,missing(a)<=0.2",
            r"missing\(a\)<=0.1 and missing\(a\)<=0.2 set the same limit",
        ),
    ],
)
def test_invalid_requirement_error_suggests_correction(kind, text, said):
    with pytest.raises(ValidationError, match=said):
        MonitorSpec.model_validate({"kind": kind, "require": text})


@pytest.mark.parametrize(
    ("kind", "require", "field", "value"),
    [
        ("performance", "f1>=0.7", "reference", "rolling:7d"),
        ("service_level", "p99<=0.2", "columns", "a"),
        ("shadow", "disagreement<=0.05", "columns", "a"),
        ("drift", "missing<=0.1", "estimate", "decides"),
    ],
)
def test_field_of_other_kind_is_refused(kind, require, field, value):
    with pytest.raises(ValidationError, match=f"kind {kind} .*`{field}`"):
        MonitorSpec.model_validate({"kind": kind, "require": require, field: value})


@pytest.mark.parametrize(
    "text", ["", "accuracy", ">0.8", "accuracy>=", "accuracy>=x", "a b>=1", "accuracy=>0.8"]
)
def test_invalid_condition_parses_to_none(text):
    assert parse_condition(text) is None


def test_condition_keeps_its_unit():
    assert parse_condition("p99>2x") == Condition("p99", "", ">", 2.0, "x")
