"""Tests of `onnxserve log errors`: failures of a log by cause,
and of a running endpoint.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
import requests
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.inference_log import LogWriter
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

NOW = datetime.now(UTC).replace(microsecond=0)


def errors(*arguments):
    return CliRunner().invoke(main, ["log", "errors", *arguments])


def found(*arguments):
    result = errors(*arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


@pytest.fixture
def writer(tmp_path, monkeypatch):
    """The log of 30 answered requests, each with two rows, a minute ago."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "log"))
    writer = LogWriter(tmp_path / "log")
    for number in range(30):
        writer.write(
            {"_event_time": [NOW - timedelta(minutes=1)] * 2}, segment=f"answered-{number}"
        )
    return writer


@pytest.fixture
def fail(writer):
    """A function that logs failed requests of the endpoint, the first at a given age,
    each one second later.
    """

    def fail(messages, age=timedelta(hours=1), **reason):
        times = [NOW - age + timedelta(seconds=number) for number in range(len(messages))]
        columns: Mapping[str, Any] = {
            "_event_time": times,
            "_request_id": [f"request-{number}" for number in range(len(messages))],
            "_status": pa.array([reason.get("status", 400)] * len(messages), pa.int16()),
            "_error_code": pa.array(
                [reason.get("code", "BAD_REQUEST")] * len(messages), pa.string()
            ),
            "_column": pa.array([reason.get("column")] * len(messages), pa.string()),
            "_message": pa.array(messages, pa.string()),
        }
        LogWriter(writer.root / "_failed").write(columns, version=reason.get("version", "3"))

    return fail


def test_failures_are_grouped_by_cause_with_share_times_example_and_remedy(fail):
    bad = [
        f"column 'hour' (long), row {number}: 'x{number}'; an integer is expected"
        for number in range(8)
    ]
    fail(bad, column="hour")
    fail(
        ["the queue of the model is full"] * 2,
        status=429,
        code="REQUEST_LIMIT_EXCEEDED",
        version="10",
    )
    document = found("flights", "--last", "24h")
    assert document["answered"] == 30
    assert document["failed"] == 10
    first, second = document["causes"]
    assert first["count"] == 8
    assert first["share"] == 0.2
    assert first["column"] == "hour"
    assert first["versions"] == ["3"]
    assert datetime.fromisoformat(first["first"]) == NOW - timedelta(hours=1)
    assert datetime.fromisoformat(first["last"]) == NOW - timedelta(hours=1) + timedelta(seconds=7)
    assert first["newest"]["message"] == bad[-1]
    assert first["newest"]["request_id"] == "request-7"
    assert "x7" not in first["cause"]
    assert second["status"] == 429
    assert second["error_code"] == "REQUEST_LIMIT_EXCEEDED"
    assert second["versions"] == ["10"]
    assert mentions(second["remedy"], "server.max_queue_size")
    text = errors("flights").stdout
    assert mentions(
        text, "10 of 40", "8", "20.00%", "'hour'", "request-7", "24h", "onnxserve rollback flights"
    )
    assert bad[-1] in text


@pytest.mark.parametrize(
    "messages",
    [
        [
            f"column 'hour' (long), row 3: {value}; an integer is expected"
            for value in [
                "'a'",
                '"it\'s"',
                "'a\\'b'",
                "1.5",
                "-3e+20",
                "null",
                "true",
                "[1, 2, ...]",
                "{'a': [1]}",
            ]
        ],
        [
            (
                "column 'carrier', row 3: 'XX' is not a known category of the model; did you mean "
                "'AA'?"
            ),
            (
                "column 'carrier', row 12: 'Z' is not a known category of the model; the allowed "
                "values are AA, UA"
            ),
        ],
        [
            "the model's answer 3f2a9b1c4d5e6f708192a3b4c5d6e7f8 failed",
            "the model's answer 3f2a9b1c-4d5e-6f70-8192-a3b4c5d6e7f8 failed",
        ],
        [
            "the CSV has 1,024 lines; at most 1,000 are allowed",
            "the CSV has 99 lines; at most 1,000 are allowed",
        ],
        [
            "could not convert string to float: 'abc' truncated at the end of this quo",
            "could not convert string to ",
        ],
    ],
    ids=["values", "categories", "ids", "numbers", "different texts"],
)
def test_values_row_numbers_and_ids_do_not_make_another_cause(fail, messages, request):
    fail(list(messages), column="hour")
    expected = 2 if request.node.callspec.id == "different texts" else 1
    assert len(found("flights")["causes"]) == expected


def test_other_columns_and_other_types_are_other_causes(fail):
    fail(["column 'a', row 1: 'x' does not fit the type float32"], column="a")
    fail(["column 'b', row 1: 'x' does not fit the type float32"], column="b")
    fail(["column 'b', row 1: 'x' does not fit the type int64"], column="b")
    assert sorted(cause["column"] for cause in found("flights")["causes"]) == ["a", "b", "b"]


def test_without_messages_the_causes_are_codes_and_columns(fail):
    fail([None] * 3, column="hour")
    fail([None] * 2, column="carrier")
    assert [
        (cause["count"], cause["column"], cause["cause"]) for cause in found("flights")["causes"]
    ] == [(3, "hour", ""), (2, "carrier", "")]


def test_only_requests_of_the_last_time_count(fail):
    fail(["old"], age=timedelta(days=3))
    assert found("flights")["failed"] == 0
    assert mentions(errors("flights").stdout, "0 of 30", "24h")
    assert found("flights", "--last", "7d")["failed"] == 1


def test_an_endpoint_without_failures_is_not_an_error(writer):
    result = errors("flights")
    assert result.exit_code == 0
    assert mentions(result.stdout, "0 of 30")


@pytest.mark.parametrize(
    ("arguments", "status", "names"),
    [
        (["flights", "--last", "0s"], 2, ["--last", "'0s'"]),
        (["flights", "--last", "tomorrow"], 2, ["--last", "'tomorrow'"]),
        (["flights", "--last", "999999d"], 2, ["--last", "999999d"]),
        (["fligts"], 1, ["'fligts'", "'flights'"]),
    ],
)
def test_bad_input_is_refused_in_one_line(writer, arguments, status, names):
    result = errors(*arguments)
    assert result.exit_code == status
    assert mentions(result.stderr.splitlines()[-1], *names)


@pytest.mark.long
@pytest.mark.parametrize("mask", ["", "b"])
def test_failures_of_a_running_endpoint_are_shares_of_its_requests(home, models, free_port, mask):
    name = f"sums{mask}"
    config = {"server.port": free_port, "capture.mask": mask}
    home.create_deployment(name, models.once, config=config)
    url = f"http://127.0.0.1:{free_port}"
    for number in range(5):
        body = {"dataframe_split": {"columns": ["a", "b"], "data": [[1, f"bad-{number}"]]}}
        assert requests.post(f"{url}/invocations", json=body, timeout=30).status_code == 400
    for _ in range(15):
        body = {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}}
        assert requests.post(f"{url}/invocations", json=body, timeout=30).ok
    wait_until(
        lambda: errors(name).exit_code == 0 and found(name)["answered"] == 15,
        60,
        "the agent ships the rows",
    )
    wait_until(lambda: found(name)["failed"] == 5, 60, "the agent ships the failures")
    document = found(name)
    (cause,) = document["causes"]
    assert cause["count"] == 5
    assert cause["share"] == 0.25
    assert cause["column"] == "b"
    assert (cause["newest"]["message"] is None) is bool(mask)
    assert mentions(errors(name).stdout, "5 of 20")
