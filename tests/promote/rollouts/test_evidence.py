"""The evidence of a step: counts since its start, bounds from the history, and counters
that restart at zero.
"""

import json
import math
from dataclasses import replace

import pytest

from mlflow_deploy_plugin.promote.rollouts.evidence import (
    StepEvidence,
    add_counters,
    begin_step,
    figures,
    rejection,
)
from mlflow_deploy_plugin.ship.deployments.server_metrics import VersionCounters
from tests.support.refusals import mentions
from tests.support.rollouts import PLAN, counted, numbers, versions_counted


def looked(plan, *looks, step=0):
    """Return the evidence of a step that began with the first of these snapshots."""
    ledger = begin_step(plan, step, add_counters(plan, step, StepEvidence(), looks[0]))
    for look in looks[1:]:
        ledger = add_counters(plan, step, ledger, look)
    return ledger


ERRORS = replace(PLAN, abort_on="error_rate>1%", shadow="")
SLOW = replace(PLAN, abort_on="p99>2x", shadow="")


def test_only_requests_since_the_step_are_judged():
    ledger = looked(
        ERRORS,
        numbers(counted(1000, 10), counted(500, 400)),
        numbers(counted(1100, 11), counted(600, 400)),
    )

    assert figures(ERRORS, ledger)["candidate"] == {"requests": 100, "errors": 0}
    assert figures(ERRORS, ledger)["current"] == {"requests": 100, "errors": 1}
    assert rejection(ERRORS, ledger) == ""


def test_counter_reset_is_handled():
    ledger = looked(
        ERRORS,
        numbers(counted(1000)),
        numbers(counted(1100), counted(80)),
        numbers(counted(30), counted(5)),
    )

    assert figures(ERRORS, ledger)["candidate"]["requests"] == 85
    assert figures(ERRORS, ledger)["current"]["requests"] == 130


def test_each_pod_is_counted_once():
    def pod(current, candidate=0):
        return versions_counted(counted(current), counted(candidate))

    ledger = looked(
        ERRORS,
        {"a": pod(1000), "b": pod(1000)},
        {"a": pod(1010, 5), "b": pod(1010, 5)},
        {"a": pod(1020, 9)},  # b cannot be read
        {"a": pod(1030, 12), "b": pod(1050, 20)},
        {"b": pod(1060, 25), "c": pod(8, 3)},  # a was replaced by c
        {"b": pod(2, 1), "c": pod(9, 4)},  # the server of b was restarted
    )

    assert ledger.step["current"].requests == 30 + 60 + 1 + 2
    assert ledger.step["candidate"].requests == 12 + 25 + 1 + 1
    assert ledger.history.requests == 2000 + 8 + ledger.step["current"].requests


def test_earlier_requests_of_a_new_pod_are_ignored():
    begun = counted(100)
    old = versions_counted(counted(5000, 400), counted(900, 890))
    ledger = looked(
        ERRORS,
        {"a": versions_counted(begun)},
        {"a": versions_counted(begun), "unready before": old},
    )

    assert figures(ERRORS, ledger)["candidate"] == {"requests": 0, "errors": 0}
    assert figures(ERRORS, ledger)["current"] == {"requests": 0, "errors": 0}
    assert rejection(ERRORS, ledger) == ""
    assert ledger.history.requests == 5100


def test_counters_of_ended_pods_are_dropped():
    counts = versions_counted(counted(10))
    ledger = looked(ERRORS, *({f"pod {number}": counts, "always": counts} for number in range(300)))

    assert len(ledger.last) < 150
    assert {"always", "pod 299", "pod 298"} <= {*ledger.last}


def test_errors_of_both_versions_do_not_reject():
    both = looked(ERRORS, numbers(counted(0)), numbers(counted(1000, 300), counted(500, 150)))
    alone = looked(ERRORS, numbers(counted(0)), numbers(counted(1000, 3), counted(500, 150)))

    assert rejection(ERRORS, both) == ""
    assert rejection(ERRORS, alone).startswith(
        "error_rate>1%: 30.00% of 500 requests to version 7 failed, 0.30%"
    )


def test_full_traffic_step_is_judged_against_history():
    before = numbers(counted(10_000, 300))  # 3 %, above the threshold
    as_before = looked(ERRORS, before, numbers(counted(10_000, 300), counted(2000, 60)), step=1)
    worse = looked(ERRORS, before, numbers(counted(10_000, 300), counted(2000, 160)), step=1)

    assert rejection(ERRORS, as_before) == ""
    assert rejection(ERRORS, worse).startswith(
        "error_rate>1%: 8.00% of 2,000 requests to version 7 failed"
    )


def test_slow_candidate_is_rejected_if_current_is_faster():
    begun = numbers(counted(1000, slow=5))
    same = looked(SLOW, begun, numbers(counted(2000, slow=10), counted(1000, slow=5)))
    slower = looked(SLOW, begun, numbers(counted(2000, slow=10), counted(1000, slow=100)))

    assert rejection(SLOW, same) == ""
    assert rejection(SLOW, slower) == (
        "p99>2x: 10.00% of 1,000 requests to version 7 took longer than 100 ms, 0.50% of 1,000 to "
        "version 6; " + rejection(SLOW, slower).rpartition("; ")[2]
    )


def test_absolute_latency_needs_no_history():
    plan = replace(PLAN, abort_on="p50>80ms", shadow="")
    slow = looked(plan, numbers(counted(0)), numbers(counted(500), counted(500, slow=400)))

    assert rejection(plan, slow).startswith(
        "p50>80ms: 80.00% of 500 requests to version 7 took longer than 100 ms"
    )


def test_unknown_quantile_is_not_judged():
    ledger = looked(
        SLOW, numbers(VersionCounters()), numbers(counted(50), counted(1000, slow=1000))
    )

    assert rejection(SLOW, ledger) == ""
    assert mentions(
        figures(SLOW, ledger)["criteria"]["p99>2x"]["figures"], "too few timed requests"
    )


def test_latency_above_the_last_bucket_is_not_judged():
    history = VersionCounters(1000, 0, {0.01: 0, 0.1: 0, 1.0: 1000, math.inf: 1000})
    ledger = looked(SLOW, numbers(history), numbers(history, counted(500, slow=500)))

    assert rejection(SLOW, ledger) == ""


def test_look_does_not_change_the_earlier_ledger():
    first = looked(ERRORS, numbers(counted(0)), numbers(counted(100), counted(100, 50)))
    evidence = float(first.tests["error_rate>1%"].log_evidence)

    add_counters(ERRORS, 0, first, numbers(counted(100), counted(200, 150)))

    assert float(first.tests["error_rate>1%"].log_evidence) == pytest.approx(evidence)


def test_evidence_round_trips_through_json():
    evidence = looked(
        SLOW, numbers(counted(500)), numbers(counted(800, slow=1), counted(1000, slow=10))
    )

    written = json.loads(json.dumps(evidence.to_json()))

    read = StepEvidence.from_json(SLOW, 0, written)
    assert replace(read, tests={}) == replace(evidence, tests={})
    assert read.tests["p99>2x"].log_evidence == evidence.tests["p99>2x"].log_evidence != 0
    assert StepEvidence.from_json(SLOW, 0, {}) == StepEvidence()
    of_an_earlier_checkout = {
        "last": {},
        "step": {},
        "history": {},
        "before_step": {},
        "tests": {},
    }
    assert StepEvidence.from_json(SLOW, 0, of_an_earlier_checkout) == StepEvidence()
