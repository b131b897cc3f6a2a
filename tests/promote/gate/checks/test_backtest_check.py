"""The gate's check on captured requests: version 1 of `toy` has answered 600 rows, of
which 400 have a label.
"""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.policy import ALL_PERMISSIONS, Permissions, parse_policy
from mlflow_deploy_plugin.promote.gate.run import judge
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from tests.support.classifiers import COLUMNS, labelled
from tests.support.inference_log import LogWriter, write_answers
from tests.support.refusals import mentions, refused

DAY = datetime(2013, 7, 1, tzinfo=UTC)
ROWS = labelled(600)


@pytest.fixture
def judged(folders, registry, version, monkeypatch):
    """Return the result of the check for a version and fields of `backtest`; None if
    the check does not run.
    """
    root = Path.cwd() / "log"
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(root))
    writer = LogWriter(root)
    write_answers(writer, folders["good"], {name: ROWS[name] for name in COLUMNS}, DAY)
    writer.label(*(Label(f"1-{row}", None, None, int(ROWS["label"][row]), 1) for row in range(400)))

    def run(name, allowed=ALL_PERMISSIONS, skip="", **fields):
        fields = {"window": "9999d"} | fields
        policy = parse_policy(
            f"skip: [signature, evaluation, robustness, budget{skip}]\nbacktest: {fields}", "it"
        )
        verdict = judge(version(name), None, policy, "a test", allowed=allowed)
        return {check.name: check for check in verdict.checks}.get("backtest")

    return run


def test_version_with_same_answers_passes(judged):
    check = judged("equal", endpoint="flights", max_disagreement=0)

    assert check.state == "passed"
    assert mentions(check.reason, "600", "400", "accuracy")
    assert check.figures["rows"] == 600
    assert check.figures["disagreement"] == 0
    assert check.figures["difference"] == 0
    assert check.figures["candidate_row_us"] > 0
    assert check.figures["margin"] == 0.01


def test_version_worse_on_labelled_rows_fails(judged):
    check = judged("worse", endpoint="flights")
    assert check.state == "failed"
    assert mentions(check.reason, "worse", "the margin of 0.01", "accuracy")


def test_too_many_other_answers_fail(judged):
    check = judged("worse", endpoint="flights", max_disagreement=0.2)
    assert check.state == "failed"
    assert mentions(check.reason, "differ", "20.00%")


def test_number_of_rows_is_limited(judged):
    assert judged("equal", endpoint="flights", max_rows=150).figures["rows"] == 150


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"max_rows": 99}, ["99", "100"]),
        ({"window": "7d"}, ["flights", "onnxserve log stats flights"]),
        ({"endpoint": "fligths"}, ["fligths", "flights"]),
    ],
)
def test_too_few_rows_skip_the_check(judged, fields, names):
    check = judged("worse", **{"endpoint": "flights", **fields})
    assert check.state == "skipped"
    assert mentions(check.reason, *names)


def test_check_runs_only_for_a_named_endpoint(judged):
    assert judged("equal") is None
    check = judged("worse", skip=", backtest", endpoint="flights")
    assert check is not None
    assert check.state == "skipped"


def test_log_needs_file_permission(judged):
    with refused(InvalidConfig, "flights", "onnxserve gate MODEL"):
        judged("equal", Permissions(files=False), endpoint="flights")


def test_unreachable_log_fails(judged, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "file"))
    check = judged("equal", endpoint="flights")
    assert check.state == "failed"
    assert mentions(check.reason, "inference log", "file")
