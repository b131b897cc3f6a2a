"""The state machine of a rollout: the next action, whatever happened before."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from mlflow_deploy_plugin.core.spec.parts import VariantSpec
from mlflow_deploy_plugin.core.store.store import Rollout
from mlflow_deploy_plugin.promote.rollouts.snapshot import EndpointSnapshot
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

See = Callable[..., EndpointSnapshot]


@pytest.fixture
def first_step():
    """Return the progress at the start of the first step."""
    return decide(PLAN, Progress(), seen(0), 0).progress


def test_candidate_is_loaded_before_it_gets_traffic():
    begun = decide(PLAN, Progress(), seen(None), 0)
    loading = decide(PLAN, begun.progress, seen(0, versions={"champion": "6", "candidate": "7"}), 1)
    loaded = decide(PLAN, loading.progress, seen(0), 1)

    assert begun.action == "prepare"
    assert begun.progress.state == "starting"
    assert loading.action == "wait"
    assert loading.progress.reason == "loading version 7"
    assert loaded.action == "set_traffic"
    assert loaded.progress.state == "stepping"
    assert mentions(loaded.progress.reason, "waiting for requests", "0 of 50")
    assert loaded.progress.step == 0
    assert step_weights(PLAN, 0) == {"champion": 90, "candidate": 10}


def test_step_ends_after_time_and_requests(first_step):
    enough = numbers(counted(1500), counted(50), counted(0, same=50))

    early = decide(PLAN, first_step, seen(10, counters=enough), 59)
    over = decide(PLAN, early.progress, seen(10, counters=enough), 2)

    assert early.action == "wait"
    assert early.progress.step == 0
    assert early.progress.elapsed == 59
    assert over.action == "set_traffic"
    assert over.progress.step == 1
    assert over.progress.elapsed == 0


def test_step_waits_for_its_requests(first_step):
    few = numbers(counted(1500), counted(49), counted(0, same=80))
    uncompared = numbers(counted(1500), counted(50), counted(0, same=9))

    waiting = decide(PLAN, first_step, seen(10, counters=few), 3600)
    comparing = decide(PLAN, first_step, seen(10, counters=uncompared), 3600)

    assert mentions(waiting.progress.reason, "requests", "49 of 50")
    assert mentions(comparing.progress.reason, "9 of 50 rows")
    assert waiting.action == "wait"
    assert comparing.action == "wait"


def test_last_step_leads_to_promotion(first_step):
    last = replace(first_step, step=1, elapsed=59)
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


def test_failing_candidate_is_rolled_back(first_step):
    bad = decide(
        PLAN, first_step, seen(10, counters=numbers(counted(1500), counted(60, errors=15))), 1
    )

    assert bad.action == "roll_back"
    assert bad.progress.state == "rolling_back"
    assert bad.progress.reason.startswith(
        "error_rate>1%: 25.00% of 60 requests to version 7 failed, 0.00% of 500 to version 6; "
        "evidence "
    )
    assert bad.then is not None
    assert bad.then.state == "rolled_back"


def test_disagreeing_candidate_is_rolled_back(first_step):
    bad = decide(
        PLAN,
        first_step,
        seen(10, counters=numbers(counted(1500), None, counted(0, 0, 0, 20, 80))),
        1,
    )

    assert bad.progress.reason.startswith(
        "disagreement>20%: version 7 answers 80.00% of 100 rows differently from the current "
        "version"
    )


def test_too_few_requests_are_not_judged(first_step):
    few = decide(
        PLAN, first_step, seen(10, counters=numbers(counted(1500), counted(49, errors=49))), 1
    )

    assert few.action == "wait"
    assert few.progress.state == "stepping"


def test_wrong_traffic_is_set_again(first_step):
    again = decide(PLAN, first_step, seen(0), 1)

    assert again.action == "set_traffic"
    assert again.progress.elapsed == 0


def test_unreadable_server_delays_steps(first_step):
    silent = "flights-b: no answer within 5 s"
    enough = numbers(counted(1500), counted(50), counted(0, same=50))
    bad = numbers(counted(1500), counted(60, errors=15))

    beginning = decide(PLAN, Progress(), seen(0, unread=silent), 1)
    ending = decide(PLAN, first_step, seen(10, counters=enough, unread=silent), 3600)
    proven = decide(PLAN, first_step, seen(10, counters=bad, unread=silent), 1)

    assert beginning.action == "wait"
    assert beginning.progress.reason == f"waiting for the server: {silent}"
    assert ending.action == "wait"
    assert ending.progress.reason == f"waiting for a server: {silent}"
    assert proven.action == "roll_back"


def test_time_stops_while_the_server_is_down(first_step):
    silent = decide(
        PLAN, first_step, seen(10, counters={}, state="failed", reason="the server is gone"), 3600
    )
    stopped = decide(
        PLAN, first_step, seen(10, counters={}, state="stopped", reason="`onnxserve start` …"), 3600
    )

    assert silent.action == "wait"
    assert silent.progress.elapsed == 0
    assert mentions(silent.progress.reason, "waiting", "the server is gone")
    assert stopped.action == "wait"
    assert stopped.progress.elapsed == 0


def test_paused_step_is_still_judged(first_step):
    held = paused(first_step, "paused by ada@laptop")
    assert held is not None

    waiting = decide(
        PLAN,
        held,
        seen(10, counters=numbers(counted(1500), counted(50), counted(0, same=50))),
        3600,
    )
    bad = decide(PLAN, held, seen(10, counters=numbers(counted(1500), counted(60, errors=30))), 1)

    assert waiting.action == "wait"
    assert waiting.progress.state == "paused"
    assert waiting.progress.elapsed == 0
    assert bad.progress.state == "rolling_back"
    assert resumed(held) == replace(first_step, reason="")
    assert paused(Progress(), "too early") is None
    assert resumed(first_step) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"versions": dict.fromkeys(variants(10), "7") | {"champion": "8"}},
            "version 8 was promoted during the rollout",
        ),
        (
            {
                "variants": variants(10)
                | {"champion": variants(10)["champion"].model_copy(update={"model": "m"})}
            },
            "the model of champion was changed to m during the rollout",
        ),
        (
            {
                "variants": {"champion": variants(10)["champion"]}
                | {"candidate-shadow": variants(10)["candidate-shadow"]}
            },
            "the candidate was removed by a user",
        ),
        (
            {
                "variants": {"champion": variants(10)["champion"]}
                | {"candidate": variants(10)["candidate"]}
            },
            "the candidate was removed by a user",
        ),
        (
            {"errors": {"candidate": "out of memory"}},
            "version 7 can no longer be served: out of memory",
        ),
    ],
)
def test_outside_change_rolls_back(first_step, fields, said):
    turned = decide(PLAN, first_step, seen(10, **fields), 1)

    assert turned.action == "roll_back"
    assert turned.progress.reason == said


@pytest.mark.parametrize("progress", [Progress(), Progress("stepping", 1), Progress("paused", 0)])
def test_outside_promotion_finishes_the_rollout(progress):
    reached = decide(PLAN, progress, seen(10, versions=dict.fromkeys(variants(10), "7")), 1)

    assert (reached.action, reached.then and reached.then.state) == ("finish", "promoted")


def test_outside_change_to_the_target_is_promoted(first_step):
    plan = replace(PLAN, kind="pinned", selector="")
    changed = variants(10)["champion"].model_copy(update={"model": plan.to_uri})
    moved = seen(10, variants=variants(10) | {"champion": changed})

    waiting = decide(plan, first_step, moved, 1)

    assert waiting.action == "promote"
    assert waiting.progress.state == "promoting"


def test_rollout_without_shadow():
    plan = replace(PLAN, shadow="", abort_on="error_rate>1%")
    alone = {name: variant for name, variant in variants(10).items() if name != "candidate-shadow"}
    begun = decide(plan, Progress(), seen(0), 0).progress

    assert decide(plan, begun, seen(10, variants=alone), 1).action == "wait"


def test_deleted_endpoint_abandons_the_rollout(first_step):
    gone = decide(PLAN, first_step, None, 1)
    without_main = decide(
        PLAN, first_step, seen(10, variants={"candidate": variants(10)["candidate"]}), 1
    )

    assert gone.action == "wait"
    assert gone.progress.state == "abandoned"
    assert gone.progress.reason == "the endpoint was deleted"
    assert without_main.progress == replace(
        gone.progress, reason="the deployment champion was deleted"
    )


def test_rollback_is_repeated_until_it_succeeds(first_step):
    turned = aborted(first_step, "aborted by ada@laptop")
    assert turned is not None

    for snapshot in (
        seen(10),
        seen(None),
    ):  # The command may have failed before or after it changed the endpoint.
        again = decide(PLAN, turned, snapshot, 1)
        assert again.action == "roll_back"
        assert again.progress == turned
        assert again.then == replace(turned, state="rolled_back")


def test_timeout_rolls_back():
    unloaded = decide(PLAN, Progress(), seen(None), START_SECONDS + 1)
    promoting = Progress("promoting", 1, PROMOTE_SECONDS)
    unserved = decide(PLAN, promoting, seen(100, errors={"champion": "no consent"}), 1)

    assert mentions(unloaded.progress.reason, "version 7", "600 s")
    assert mentions(unserved.progress.reason, "champion", "version 7", "300 s", "no consent")


def test_version_refused_by_the_agent_rolls_back_at_once():
    refused = {
        ("champion", "7"): "it would run its own code",
        ("candidate", "7"): "the gate has not passed",
    }

    starting = decide(PLAN, Progress(), seen(0, versions={"champion": "6"}, refused=refused), 1)
    promoting = decide(PLAN, Progress("promoting", 1), seen(100, refused=refused), 1)

    assert mentions(starting.progress.reason, "version 7", refused["candidate", "7"])
    assert mentions(promoting.progress.reason, "champion", "version 7", refused["champion", "7"])


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("prepare", "version 7 cannot be served: no such file"),
        ("promote", "the promotion was refused: no such file"),
    ],
)
def test_permanent_failure_rolls_back(first_step, action, reason):
    after = after_failure(PLAN, first_step, action, "no such file", is_transient=False)

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
def test_transient_failure_is_retried(first_step, action, is_transient):
    begun = replace(first_step, reason="too slow")

    after = after_failure(PLAN, begun, action, "no such file", is_transient)

    assert after == replace(begun, trouble="no such file", failures=1)
    assert after_success(after) == begun


def test_repeated_traffic_failures_roll_back(first_step):
    progress = first_step
    tries = 0
    while progress.state == "stepping":
        progress = after_failure(PLAN, progress, "set_traffic", "no answer", is_transient=False)
        tries = tries + 1

    assert tries == MAX_FAILURES
    assert mentions(progress.reason, "traffic", "no answer")


def test_rollout_is_aborted_once(first_step):
    ended = aborted(first_step, "aborted by ada@laptop")

    assert ended is not None
    assert ended.state == "rolling_back"
    assert ended.reason == "aborted by ada@laptop"
    assert aborted(ended, "again") == ended
    assert aborted(replace(ended, state="rolled_back"), "again") is None


def test_rollout_continues_from_stored_progress(first_step):
    looked = decide(
        PLAN,
        first_step,
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
def test_audit_event_for_step_pause_and_end(first_step, state, fields, event):
    now = datetime(2026, 11, 21, tzinfo=UTC)
    later = datetime(2026, 11, 22, tzinfo=UTC)
    row = Rollout(1, PLAN.endpoint, PLAN.to_json(), state, 0, now, {}, "", now, now)
    progress = replace(first_step, **fields)
    entry = progress_event(row, progress, "ada@laptop", later)

    assert (entry and (entry.action, entry.before, entry.after)) == event
    assert entry is None or entry.detail["state"] == progress.state
    assert with_progress(row, progress, later).step_at == (later if event else now)


def test_evidence_trace_is_bounded(first_step):
    begun_at = datetime(2026, 11, 21, tzinfo=UTC)
    row = Rollout(
        1, PLAN.endpoint, PLAN.to_json(), "stepping", 0, begun_at, {}, "", begun_at, begun_at
    )
    looked = decide(
        PLAN, first_step, seen(10, counters=numbers(counted(1200, 2), counted(30, 1))), 5
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
