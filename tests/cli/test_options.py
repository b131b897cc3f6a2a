"""Tests of KEY=VALUE options, aligned columns, and text without control characters."""

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from contextlib import closing
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
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from tests.support.refusals import refused


def test_a_value_may_hold_the_sign_itself_or_nothing():
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
def test_an_entry_that_makes_no_sense_is_named(entries, names):
    with refused(click.UsageError, *names):
        key_values(entries, "traffic")


def test_a_column_is_as_wide_as_its_widest_cell_and_lines_end_without_spaces():
    rows = [("NAME", "STATE"), ("flights", ""), ("x", "running")]
    assert list(align_columns(rows)) == ["NAME     STATE", "flights", "x        running"]


@pytest.mark.parametrize(
    ("limit", "lines"),
    [
        (40, ["NAME  MODEL            URL", "a     models:/flights  http://localhost"]),
        (30, ["NAME  MODEL        URL", "a     models:/fl…  http://loc…"]),
        (9, ["NAME  MODEL     URL", "a     models:…  http://…"]),
    ],
)
def test_widest_columns_shrink_to_the_line(limit, lines):
    rows = [("NAME", "MODEL", "URL"), ("a", "models:/flights", "http://localhost")]
    assert list(align_columns(rows, limit)) == lines


@pytest.mark.parametrize("columns", [60, 200])
def test_table_fits_the_terminal(columns, tmp_path):
    with closing(open_store(f"sqlite:///{tmp_path}/onnxserve.db")) as store:
        ApiKeys(store).create("shop", ("infer", "read"), tuple(f"endpoint-{n}" for n in range(9)))
    terminal, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path)}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "keys", "list"]
    subprocess.run(command, stdout=side, env=environment, check=True, timeout=120)
    os.close(side)
    row = os.read(terminal, 10_000).decode().splitlines()[1]
    os.close(terminal)
    assert len(row) <= columns
    assert ("…" in row) is (columns == 60)


def test_a_terminal_gets_no_control_characters(capsys):
    show_lines(["a\x1b[31mb\nc\u202ed"])
    show_progress("\x1b]0;title\x07")
    shown = capsys.readouterr()
    assert shown.out == "a [31mb c d\n"
    assert shown.err == " ]0;title \n"


def test_json_has_times_in_iso_8601_and_nothing_that_json_does_not_know(capsys):
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
