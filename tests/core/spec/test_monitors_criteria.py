"""Tests of the requirements of a monitor and of the errors for invalid requirements."""

import pytest
from pydantic import ValidationError

from mlflow_deploy_plugin.core.spec.monitors import (
    Condition,
    MonitorSpec,
    Requirement,
    parse_condition,
)


def required(kind, *texts):
    return MonitorSpec.model_validate({"kind": kind, "require": texts}).requirements


def test_requirements_are_read_with_their_columns_and_units():
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


def test_a_command_line_says_several_in_one_text():
    assert [
        requirement.name
        for requirement in MonitorSpec.model_validate(
            {"kind": "shadow", "require": "disagreement<=5%"}
        ).requirements
    ] == ["disagreement"]


def test_requirement_holds_on_one_side_of_its_bound_and_never_for_nan():
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
def test_invalid_requirement_is_refused_with_a_correction(kind, text, said):
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
def test_a_field_that_the_kind_does_not_read_is_refused(kind, require, field, value):
    with pytest.raises(ValidationError, match=f"kind {kind} .*`{field}`"):
        MonitorSpec.model_validate({"kind": kind, "require": require, field: value})


@pytest.mark.parametrize(
    "text", ["", "accuracy", ">0.8", "accuracy>=", "accuracy>=x", "a b>=1", "accuracy=>0.8"]
)
def test_invalid_condition_parses_to_none(text):
    assert parse_condition(text) is None


def test_a_condition_keeps_its_unit():
    assert parse_condition("p99>2x") == Condition("p99", "", ">", 2.0, "x")
