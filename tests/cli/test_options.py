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


def test_value_may_contain_the_equals_sign():
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
def test_invalid_entry_is_named(entries, names):
    with refused(click.UsageError, *names):
        key_values(entries, "traffic")


def test_columns_are_aligned():
    rows = [("NAME", "STATE"), ("flights", ""), ("x", "running")]
    assert list(align_columns(rows)) == ["NAME     STATE", "flights", "x        running"]


WIDE = [("NAME", "MODEL", "URL"), ("a", "models:/flights", "http://localhost")]


@pytest.mark.parametrize(
    ("limit", "lines"),
    [
        (40, ["NAME  MODEL            URL", "a     models:/flights  http://localhost"]),
        (30, ["NAME  MODEL        URL", "a     models:/fl…  http://loc…"]),
        (9, ["NAME  MODEL     URL", "a     models:…  http://…"]),
    ],
)
def test_wide_columns_shrink(limit, lines):
    assert list(align_columns(WIDE, limit)) == lines


def test_terminal_limits_the_width(monkeypatch):
    monkeypatch.setattr("os.isatty", lambda descriptor: True)
    monkeypatch.setenv("COLUMNS", "30")
    assert list(align_columns(WIDE)) == list(align_columns(WIDE, 30))


def test_control_characters_are_not_printed(capsys):
    show_lines(["a\x1b[31mb\nc\u202ed"])
    show_progress("\x1b]0;title\x07")
    shown = capsys.readouterr()
    assert shown.out == "a [31mb c d\n"
    assert shown.err == " ]0;title \n"


def test_json_has_standard_values(capsys):
    show_json(
        {
            "at": datetime(2013, 7, 1, tzinfo=UTC),
            "rmse": float("nan"),
            "auc": np.float64(0.5),
            "label": "ü",
        }
    )
    shown = capsys.readouterr().out
    assert json.loads(shown, parse_constant=pytest.fail) == {
        "at": "2013-07-01T00:00:00+00:00",
        "rmse": None,
        "auc": 0.5,
        "label": "ü",
    }
