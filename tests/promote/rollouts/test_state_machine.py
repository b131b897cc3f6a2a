"""The state machine of a rollout: the next action, whatever happened before."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from mlflow_deploy_plugin.core.spec.parts import VariantSpec
from mlflow_deploy_plugin.core.store.store import Rollout
from mlflow_deploy_plugin.promote.rollouts.state_machine import (
    MAX_FAILURES,
    PROMOTE_SECONDS,
    START_SECONDS,
    Progress,
    aborted,
    after_failure,
    after_success,
    decide,
    paused,
    progress_event,
    progress_of,
    resumed,
    step_weights,
    with_progress,
)
from tests.promote.rollouts.conftest import seen
from tests.support.refusals import mentions
from tests.support.rollouts import PLAN, counted, numbers, variants

STEP = decide(PLAN, Progress(), seen(0), 0).progress
"""The progress at the start of the first step."""
ENOUGH = numbers(counted(1500), counted(50), counted(0, same=50))
FAILING = numbers(counted(1500), counted(60, errors=15))
SILENT = "flights-b: no answer within 5 s"


def without(name):
    return {other: variant for other, variant in variants(10).items() if other != name}


def test_candidate_is_loaded_before_it_gets_traffic():
    begun = decide(PLAN, Progress(), seen(None), 0)
    loaded = decide(PLAN, begun.progress, seen(0), 1)

    assert begun.action == "prepare"
    assert begun.progress.state == "starting"
    assert loaded.action == "set_traffic"
    assert loaded.progress.state == "stepping"
    assert mentions(loaded.progress.reason, "waiting for requests", "0 of 50")
    assert loaded.progress.step == 0
    assert step_weights(PLAN, 0) == {"champion": 90, "candidate": 10}


def test_step_ends_after_time_and_requests():
    early = decide(PLAN, STEP, seen(10, counters=ENOUGH), 59)
    over = decide(PLAN, early.progress, seen(10, counters=ENOUGH), 2)

    assert early.action == "wait"
    assert early.progress.step == 0
    assert early.progress.elapsed == 59
    assert over.action == "set_traffic"
    assert over.progress.step == 1
    assert over.progress.elapsed == 0


def test_last_step_leads_to_promotion():
    last = replace(STEP, step=1, elapsed=59)
    over = decide(PLAN, last, seen(100, counters=numbers(counted(1000), counted(50))), 1)
    waiting = decide(PLAN, over.progress, seen(100), 1)
    served = decide(
        PLAN, waiting.progress, seen(100, versions=dict.fromkeys(variants(100), "7")), 1
    )

    assert over.action == "promote"
    assert over.progress.state == "promoting"
    assert waiting.action == "promote"
    assert waiting.progress.reason == "waiting until champion serves it"
    assert served.action == "finish"
    assert served.then is not None
    assert served.then.state == "promoted"
    assert served.then.reason == "version 7 is served instead of 6"


def test_same_number_of_another_model_is_not_promoted():
    plan = replace(PLAN, kind="pinned", before_uri="models:/W/7", before_version="7", selector="7")
    promoting = Progress("promoting", 1)
    served = seen(100, versions=dict.fromkeys(variants(100), "7"))
    before = {**served.variants, "champion": VariantSpec(model="models:/W/7")}
    after = {**served.variants, "champion": VariantSpec(model="models:/X/7")}

    assert decide(plan, promoting, replace(served, variants=before), 1).action == "promote"
    assert decide(plan, promoting, replace(served, variants=after), 1).action == "finish"


DECISIONS = {
    "the candidate loads": (
        Progress(),
        seen(0, versions={"champion": "6", "candidate": "7"}),
        1,
        ("wait", "starting", ["loading version 7"]),
    ),
    "few requests": (
        STEP,
        seen(10, counters=numbers(counted(1500), counted(49), counted(0, same=80))),
        3600,
        ("wait", "stepping", ["49 of 50"]),
    ),
    "few compared rows": (
        STEP,
        seen(10, counters=numbers(counted(1500), counted(50), counted(0, same=9))),
        3600,
        ("wait", "stepping", ["9 of 50 rows"]),
    ),
    "few failures": (
        STEP,
        seen(10, counters=numbers(counted(1500), counted(49, errors=49))),
        1,
        ("wait", "stepping", []),
    ),
    "failures": (
        STEP,
        seen(10, counters=FAILING),
        1,
        ("roll_back", "rolling_back", ["error_rate>1%", "25.00% of 60", "0.00% of 500"]),
    ),
    "other answers": (
        STEP,
        seen(10, counters=numbers(counted(1500), None, counted(0, 0, 0, 20, 80))),
        1,
        ("roll_back", "rolling_back", ["disagreement>20%", "80.00% of 100 rows"]),
    ),
    "wrong traffic": (STEP, seen(0), 1, ("set_traffic", "stepping", [])),
    "an unreadable server at the start": (
        Progress(),
        seen(0, unread=SILENT),
        1,
        ("wait", "starting", ["waiting for the server", SILENT]),
    ),
    "an unreadable server in a step": (
        STEP,
        seen(10, counters=ENOUGH, unread=SILENT),
        3600,
        ("wait", "stepping", ["waiting for a server", SILENT]),
    ),
    "an unreadable server and failures": (
        STEP,
        seen(10, counters=FAILING, unread=SILENT),
        1,
        ("roll_back", "rolling_back", []),
    ),
    "another promotion": (
        STEP,
        seen(10, versions=dict.fromkeys(variants(10), "7") | {"champion": "8"}),
        1,
        ("roll_back", "rolling_back", ["version 8 was promoted"]),
    ),
    "another model": (
        STEP,
        seen(10, variants=variants(10) | {"champion": VariantSpec(model="m")}),
        1,
        ("roll_back", "rolling_back", ["the model of champion was changed to m"]),
    ),
    "no candidate": (
        STEP,
        seen(10, variants=without("candidate")),
        1,
        ("roll_back", "rolling_back", ["the candidate was removed"]),
    ),
    "no shadow": (
        STEP,
        seen(10, variants=without("candidate-shadow")),
        1,
        ("roll_back", "rolling_back", ["the candidate was removed"]),
    ),
    "a lost candidate": (
        STEP,
        seen(10, errors={"candidate": "out of memory"}),
        1,
        ("roll_back", "rolling_back", ["version 7", "out of memory"]),
    ),
    "no endpoint": (STEP, None, 1, ("wait", "abandoned", ["the endpoint was deleted"])),
    "no main deployment": (
        STEP,
        seen(10, variants=without("champion")),
        1,
        ("wait", "abandoned", ["the deployment champion was deleted"]),
    ),
    "slow loading": (
        Progress(),
        seen(None),
        START_SECONDS + 1,
        ("roll_back", "rolling_back", ["version 7", "600 s"]),
    ),
    "slow promotion": (
        Progress("promoting", 1, PROMOTE_SECONDS),
        seen(100, errors={"champion": "no consent"}),
        1,
        ("roll_back", "rolling_back", ["champion", "version 7", "300 s", "no consent"]),
    ),
    "a refused candidate": (
        Progress(),
        seen(0, versions={"champion": "6"}, refused={("candidate", "7"): "not gated"}),
        1,
        ("roll_back", "rolling_back", ["version 7", "not gated"]),
    ),
    "a refused promotion": (
        Progress("promoting", 1),
        seen(100, refused={("champion", "7"): "its own code"}),
        1,
        ("roll_back", "rolling_back", ["champion", "version 7", "its own code"]),
    ),
}


@pytest.mark.parametrize(
    ("progress", "snapshot", "seconds", "expected"), DECISIONS.values(), ids=DECISIONS
)
def test_decision(progress, snapshot, seconds, expected):
    decision = decide(PLAN, progress, snapshot, seconds)
    action, state, names = expected
    assert (decision.action, decision.progress.state) == (action, state)
    assert mentions(decision.progress.reason, *names)
    if action == "roll_back":
        assert decision.then is not None
        assert decision.then.state == "rolled_back"


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_time_stops_while_the_server_is_down(state):
    waiting = decide(PLAN, STEP, seen(10, counters={}, state=state, reason="it is gone"), 3600)
    assert waiting.action == "wait"
    assert waiting.progress.elapsed == 0
    assert mentions(waiting.progress.reason, "waiting", "it is gone")


def test_paused_step_is_still_judged():
    held = paused(STEP, "paused by ada@laptop")
    assert held is not None

    waiting = decide(PLAN, held, seen(10, counters=ENOUGH), 3600)
    bad = decide(PLAN, held, seen(10, counters=FAILING), 1)

    assert waiting.action == "wait"
    assert waiting.progress.state == "paused"
    assert waiting.progress.elapsed == 0
    assert bad.progress.state == "rolling_back"
    assert resumed(held) == replace(STEP, reason="")
    assert paused(Progress(), "too early") is None
    assert resumed(STEP) is None


@pytest.mark.parametrize("progress", [Progress(), Progress("stepping", 1), Progress("paused", 0)])
def test_outside_promotion_finishes_the_rollout(progress):
    reached = decide(PLAN, progress, seen(10, versions=dict.fromkeys(variants(10), "7")), 1)

    assert (reached.action, reached.then and reached.then.state) == ("finish", "promoted")


def test_outside_change_to_the_target_is_promoted():
    plan = replace(PLAN, kind="pinned", selector="")
    changed = variants(10)["champion"].model_copy(update={"model": plan.to_uri})
    moved = seen(10, variants=variants(10) | {"champion": changed})

    waiting = decide(plan, STEP, moved, 1)

    assert waiting.action == "promote"
    assert waiting.progress.state == "promoting"


def test_rollout_without_shadow():
    plan = replace(PLAN, shadow="", abort_on="error_rate>1%")
    begun = decide(plan, Progress(), seen(0), 0).progress
    snapshot = seen(10, variants=without("candidate-shadow"))
    assert decide(plan, begun, snapshot, 1).action == "wait"


def test_rollback_is_repeated_until_it_succeeds():
    turned = aborted(STEP, "aborted by ada@laptop")
    assert turned is not None

    for snapshot in (
        seen(10),
        seen(None),
    ):  # The command may have failed before or after it changed the endpoint.
        again = decide(PLAN, turned, snapshot, 1)
        assert again.action == "roll_back"
        assert again.progress == turned
        assert again.then == replace(turned, state="rolled_back")


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("prepare", "version 7 cannot be served: no such file"),
        ("promote", "the promotion was refused: no such file"),
    ],
)
def test_permanent_failure_rolls_back(action, reason):
    after = after_failure(PLAN, STEP, action, "no such file", is_transient=False)

    assert after.state == "rolling_back"
    assert after.reason == reason
    assert after.trouble == ""


@pytest.mark.parametrize(
    ("action", "is_transient"),
    [
        ("prepare", True),
        ("promote", True),
        ("set_traffic", False),
        ("roll_back", False),
        ("finish", False),
    ],
)
def test_transient_failure_is_retried(action, is_transient):
    begun = replace(STEP, reason="too slow")

    after = after_failure(PLAN, begun, action, "no such file", is_transient)

    assert after == replace(begun, trouble="no such file", failures=1)
    assert after_success(after) == begun


def test_repeated_traffic_failures_roll_back():
    progress = STEP
    tries = 0
    while progress.state == "stepping":
        progress = after_failure(PLAN, progress, "set_traffic", "no answer", is_transient=False)
        tries = tries + 1

    assert tries == MAX_FAILURES
    assert mentions(progress.reason, "traffic", "no answer")


def test_rollout_is_aborted_once():
    ended = aborted(STEP, "aborted by ada@laptop")

    assert ended is not None
    assert ended.state == "rolling_back"
    assert ended.reason == "aborted by ada@laptop"
    assert aborted(ended, "again") == ended
    assert aborted(replace(ended, state="rolled_back"), "again") is None


def test_rollout_continues_from_stored_progress():
    looked = decide(
        PLAN,
        STEP,
        seen(10, counters=numbers(counted(1200, 2), counted(30, 1), counted(0, 0, 0, 9))),
        5,
    )
    now = datetime(2026, 11, 21, tzinfo=UTC)
    begun = Rollout(1, PLAN.endpoint, PLAN.to_json(), "starting", 0, now, {}, "", now, now)
    row = with_progress(begun, replace(looked.progress, trouble="no answer", failures=2), now)
    written = json.loads(json.dumps(row.figures))

    read = progress_of(replace(row, figures=written))

    later = seen(10, counters=numbers(counted(1500, 9), counted(80, 30), counted(0, 0, 0, 50)))
    assert with_progress(begun, read, now) == row
    assert (
        decide(PLAN, read, later, 1).progress.reason
        == decide(PLAN, looked.progress, later, 1).progress.reason
    )
    assert decide(PLAN, read, later, 1).action == "roll_back"
    assert written["candidate"] == {"requests": 30, "errors": 1}


@pytest.mark.parametrize(
    ("state", "fields", "event"),
    [
        ("stepping", {"step": 1}, ("rollout.step", "10 %", "100 %")),
        ("stepping", {"state": "paused"}, ("rollout.step", "stepping", "paused")),
        ("paused", {"state": "stepping"}, ("rollout.step", "paused", "stepping")),
        ("stepping", {"state": "promoted"}, ("rollout.end", "version 6", "version 7")),
        ("stepping", {"state": "rolled_back"}, ("rollout.end", "version 6", "version 6")),
        ("stepping", {"elapsed": 9.0}, None),
    ],
)
def test_audit_event_for_step_pause_and_end(state, fields, event):
    now = datetime(2026, 11, 21, tzinfo=UTC)
    later = datetime(2026, 11, 22, tzinfo=UTC)
    row = Rollout(1, PLAN.endpoint, PLAN.to_json(), state, 0, now, {}, "", now, now)
    progress = replace(STEP, **fields)
    entry = progress_event(row, progress, "ada@laptop", later)

    assert (entry and (entry.action, entry.before, entry.after)) == event
    assert entry is None or entry.detail["state"] == progress.state
    assert with_progress(row, progress, later).step_at == (later if event else now)


def test_evidence_trace_is_bounded():
    begun_at = datetime(2026, 11, 21, tzinfo=UTC)
    row = Rollout(
        1, PLAN.endpoint, PLAN.to_json(), "stepping", 0, begun_at, {}, "", begun_at, begun_at
    )
    looked = decide(
        PLAN, STEP, seen(10, counters=numbers(counted(1200, 2), counted(30, 1))), 5
    ).progress
    most = 0
    for look in range(1, 2001):
        row = with_progress(row, looked, begun_at + timedelta(seconds=2 * look))
        most = max(most, len(row.figures["trace"]))

    trace = row.figures["trace"]
    assert most < 240
    assert {tuple(shares) for _, _, shares in trace} == {("error_rate>1%", "disagreement>20%")}
    assert trace[0][0] == min(at for at, *_ in trace)
    assert trace[-1][0] == 4000
    assert max(later[0] - earlier[0] for earlier, later in pairwise(trace)) < 4000 / 40
