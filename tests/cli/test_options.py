"""Tests of KEY=VALUE options, aligned columns, and text without control characters."""

import json
from datetime import UTC, datetime

import click
import numpy as np
import pytest

from mlflow_deploy_plugin.cli.options import (
    align_columns,
    key_values,
    show_json,
    show_lines,
    show_progress,
)
from tests.support.refusals import refused


def test_a_value_may_hold_the_sign_itself_or_nothing() -> None:
    assert key_values(["server.workers=2", "require=accuracy>=0.8", "capture.mask="]) == {
        "server.workers": "2",
        "require": "accuracy>=0.8",
        "capture.mask": "",
    }


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        (["workers"], ["traffic", "'workers'", "KEY=VALUE"]),
        (["=2"], ["traffic", "'=2'", "KEY=VALUE"]),
        (["a=1", "a=2"], ["traffic", "'a'", "twice"]),
    ],
)
def test_an_entry_that_makes_no_sense_is_named(entries: list[str], names: list[str]) -> None:
    with refused(click.UsageError, *names):
        key_values(entries, "traffic")


def test_a_column_is_as_wide_as_its_widest_cell_and_lines_end_without_spaces() -> None:
    rows = [("NAME", "STATE"), ("flights", ""), ("x", "running")]
    assert list(align_columns(rows)) == ["NAME     STATE", "flights", "x        running"]


def test_a_terminal_gets_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    show_lines(["a\x1b[31mb\nc\u202ed"])
    show_progress("\x1b]0;title\x07")
    shown = capsys.readouterr()
    assert shown.out == "a [31mb c d\n"
    assert shown.err == " ]0;title \n"


def test_json_has_times_in_iso_8601_and_nothing_that_json_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_json(
        {
            "at": datetime(2013, 7, 1, tzinfo=UTC),
            "rmse": float("nan"),
            "auc": np.float64(0.5),
            "label": "ü",
        },
    )
    shown = capsys.readouterr().out
    assert json.loads(shown, parse_constant=pytest.fail) == {
        "at": "2013-07-01T00:00:00+00:00",
        "rmse": None,
        "auc": 0.5,
        "label": "ü",
    }
