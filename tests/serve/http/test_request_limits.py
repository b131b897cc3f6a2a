"""The limits of HTTP requests are the same in the docs and in gunicorn's settings."""

import re
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.gunicorn_conf import gunicorn_command
from mlflow_deploy_plugin.serve.http import request_limits
from tests.support.guides import ROOT


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        ("request line", [request_limits.REQUEST_LINE_BYTES]),
        (
            "header fields",
            [request_limits.FIELDS, request_limits.FIELD_BYTES, request_limits.HEAD_BYTES // 1024],
        ),
        (
            "bodies that are incomplete or not yet answered",
            [request_limits.ConnectionLimits(60).body_bytes // 1024**2],
        ),
        ("answers of one worker", [request_limits.MAX_UNSENT_BYTES // 1024**2]),
        ("time between two requests", [request_limits.KEEP_ALIVE_SECONDS]),
        ("open connections", [request_limits.MAX_CONNECTIONS]),
    ],
)
def test_docs_state_the_limit(row, numbers):
    page = (ROOT / "docs" / "server-settings.md").read_text()
    (limit,) = re.findall(rf"^\| {row}[^|]*\|([^|]*)\|", page, re.MULTILINE)
    assert [int(number) for number in re.findall(r"\d+", limit)] == numbers


def test_gunicorn_has_limits_of_head():
    command = gunicorn_command(Path("/s"), ServerSpec(), 7)
    options = (
        "--limit-request-line",
        "--limit-request-fields",
        "--limit-request-field_size",
        "--keep-alive",
    )
    values = [int(command[command.index(option) + 1]) for option in options]
    assert values == [
        request_limits.REQUEST_LINE_BYTES,
        request_limits.FIELDS,
        request_limits.FIELD_BYTES,
        request_limits.KEEP_ALIVE_SECONDS,
    ]
