"""Prometheus' rules: checked by promtool, and limited to existing metrics. The tests
need no Docker.
"""

import re
import shutil
import subprocess
from itertools import chain, product
from pathlib import Path

import pytest
import yaml

from tests.support.metrics_page import undeclared_metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker" / "prometheus" / "onnxserve.rules.yaml"
CASES = sorted(Path(__file__).parent.glob("rules.*test.yaml"))


@pytest.mark.long
@pytest.mark.parametrize(("job", "files"), [("check", [RULES]), ("test", CASES)])
def test_promtool_accepts_and_tests_the_rules(job, files):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    command = ["promtool", job, "rules", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_is_tested_firing_and_silent():
    rules = {rule["alert"] for rule in _alerts()}
    tests = list(chain.from_iterable(yaml.safe_load(file.read_text())["tests"] for file in CASES))
    cases = chain.from_iterable(test["alert_rule_test"] for test in tests)
    tried = {(case["alertname"], "exp_alerts" in case) for case in cases}
    assert tried == {(rule, fires) for rule, fires in product(rules, (True, False))}


def test_rules_use_existing_metrics():
    assert undeclared_metrics(" ".join(rule["expr"] for rule in _rules())) == set()


def test_runbook_has_exactly_the_alerts():
    alerts = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in _alerts()}
    assert alerts == {alert: f"docs/runbook.md#{alert.lower()}" for alert in alerts}
    entries = (ROOT / "docs" / "runbook.md").read_text().split("\n### ")[1:]
    assert [entry.partition("\n")[0] for entry in entries] == list(alerts)
    for entry in entries:
        assert re.findall(r"^\| (meaning|look|do) \| \S", entry, re.MULTILINE) == [
            "meaning",
            "look",
            "do",
        ], entry


def _rules():
    return list(
        chain.from_iterable(group["rules"] for group in yaml.safe_load(RULES.read_text())["groups"])
    )


def _alerts():
    return [rule for rule in _rules() if "alert" in rule]
