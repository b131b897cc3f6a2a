"""The evidence in a rollout's step: the counts since the step began, and the results of
the sequential tests.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import TypeAdapter

from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.rollouts.plan import Criterion, RolloutPlan
from mlflow_deploy_plugin.promote.rollouts.sequential import SequentialTest, upper_limit
from mlflow_deploy_plugin.ship.deployments.server_metrics import CountersByVersion, VersionCounters

_MIN_TIMED = 100
"""The number of timed requests that the current version needs before its latency
quantiles are used.
"""
_UNREAD = 100
"""The maximum number of unavailable servers whose last counters are kept in case such a
server returns.
"""
_MAX_EXPONENT = 700
"""The exponential function of larger numbers is not a float."""
_ROLES = ("current", "candidate", "shadow")
_COUNTERS = TypeAdapter(Mapping[str, VersionCounters])


@dataclass(frozen=True)
class StepEvidence:
    """The counts of requests in a rollout, and the tests of its current step.

    Attributes:
        last: server → role → the counters that were read last, ordered by the time of
            reading; empty at first.
        step: role → the counts since the step began.
        history: the counts of the current version, from before the rollout to the last
            reading. The latency bounds of a reading are computed from the history
            before that reading.
        before_step: the value of `history` when the step began.
    """

    last: Mapping[str, Mapping[str, VersionCounters]] = field(default_factory=dict)
    step: Mapping[str, VersionCounters] = field(default_factory=dict)
    history: VersionCounters = field(default_factory=VersionCounters)
    before_step: VersionCounters = field(default_factory=VersionCounters)
    tests: Mapping[str, SequentialTest] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Return the document for the store, without the levels of the tests, which
        follow from the plan.
        """
        return {
            "last": {
                server: _COUNTERS.dump_python(roles, mode="json")
                for server, roles in self.last.items()
            },
            "step": _COUNTERS.dump_python(self.step, mode="json"),
            "current": _COUNTERS.dump_python(
                {"all": self.history, "before": self.before_step}, mode="json"
            ),
            "tests": {
                text: [test.above_threshold.tolist(), test.above_current.tolist()]
                for text, test in self.tests.items()
            },
        }

    @staticmethod
    def from_json(plan: RolloutPlan, step: int, document: Json) -> "StepEvidence":
        """Return the evidence of the plan's step from a stored document, which is empty
        before the first reading.
        """
        if "current" not in document:  # No counters were read yet.
            return StepEvidence()
        last = {
            server: _COUNTERS.validate_python(roles) for server, roles in document["last"].items()
        }
        current = _COUNTERS.validate_python(document["current"])
        step_counts = _COUNTERS.validate_python(document["step"])
        evidence = StepEvidence(
            last, step_counts, history=current["all"], before_step=current["before"]
        )
        tests = _new_tests(plan, step, evidence)
        for text, (above_threshold, above_current) in document["tests"].items():
            tests[text].above_threshold = np.array(above_threshold)
            tests[text].above_current = np.array(above_current)
        return replace(evidence, tests=tests)


def begin_step(plan: RolloutPlan, step: int, evidence: StepEvidence) -> StepEvidence:
    """Return the evidence of a new step. The history keeps the counts of earlier
    steps.
    """
    begun = replace(
        evidence, step={role: VersionCounters() for role in _ROLES}, before_step=evidence.history
    )
    return replace(begun, tests=_new_tests(plan, step, begun))


def add_counters(
    plan: RolloutPlan, step: int, evidence: StepEvidence, counters: Mapping[str, CountersByVersion]
) -> StepEvidence:
    """Return the evidence with the counts since the last reading.

    For each server, the difference to its last counters is added, so the counts do not
    fall if a server ends. A server's first counters are not added to the step, because
    these counters may include requests from before the step.
    """
    variants = {
        "current": (plan.main, plan.before_version),
        "candidate": (plan.candidate, plan.version),
        "shadow": (plan.shadow, plan.version),
    }
    now = {}
    for server, counted in counters.items():
        now[server] = {
            role: counted.get(variant, VersionCounters()) for role, variant in variants.items()
        }
    added = dict.fromkeys(_ROLES, VersionCounters())
    for server in now.keys() & evidence.last.keys():
        for role in _ROLES:
            since = now[server][role].since(evidence.last[server][role])
            added[role] = added[role].plus(since)
    unread = [(server, roles) for server, roles in evidence.last.items() if server not in now]
    step_counts = {}
    if evidence.step:
        step_counts = {role: evidence.step[role].plus(added[role]) for role in _ROLES}
    history = evidence.history.plus(added["current"])
    for server in now.keys() - evidence.last.keys():
        history = history.plus(now[server]["current"])
    return replace(
        evidence,
        last={**dict(unread[-_UNREAD:]), **now},
        tests=_continue_tests(plan, step, evidence, added),
        step=step_counts,
        history=history,
    )


def _continue_tests(
    plan: RolloutPlan, step: int, evidence: StepEvidence, added: Mapping[str, VersionCounters]
) -> dict[str, SequentialTest]:
    """Return the tests of the step after a look at the counts `added` by role."""
    tests = {text: replace(test) for text, test in evidence.tests.items()}
    if not tests:
        return tests
    history = evidence.history
    current = added["current"]
    if plan.steps[step] == 100:  # The current version gets no requests.
        history = evidence.before_step
        current = VersionCounters()
    for criterion in plan.criteria:
        test = tests[criterion.text]
        if criterion.is_of_shadow:
            # The current version answered all these rows: the candidate's requests are
            # not copied to the shadow.
            test.look(*_count_events(criterion, added["shadow"]))
            continue
        slow_from = _slow_from(criterion, history)
        test.look(
            *_count_events(criterion, added["candidate"], slow_from),
            *_count_events(criterion, current, slow_from),
        )
    return tests


def rejection(plan: RolloutPlan, evidence: StepEvidence) -> str:
    """Return the reason for rejecting the candidate, with figures; empty if the
    evidence does not suffice.
    """
    for criterion in plan.criteria:
        test = evidence.tests.get(criterion.text)
        if test is None or not test.rejects:
            continue
        if criterion.is_of_shadow:
            counted = evidence.step["shadow"].compared
        else:
            counted = evidence.step["candidate"].requests
        if counted >= plan.min_requests:
            strength = math.exp(min(float(test.log_evidence), _MAX_EXPONENT))
            proof = f"evidence {strength:.3g}, {1 / test.level:.0f} is needed"
            return f"{criterion.text}: {_describe_figures(plan, criterion, evidence)}; {proof}"
    return ""


def missing_evidence(plan: RolloutPlan, step: int, evidence: StepEvidence) -> str:
    """Return a text about the counts that the step needs before it may end; empty if
    the counts suffice.
    """
    answered = evidence.step["candidate"].requests if evidence.step else 0
    if answered < plan.min_requests:
        return (
            "waiting for requests: the candidate has answered "
            f"{answered:.0f} of {plan.min_requests}"
        )
    has_shadow = any(criterion.is_of_shadow for criterion in plan.criteria)
    if not has_shadow or plan.steps[step] >= 100:  # At 100 %, no requests are copied.
        return ""
    rows = evidence.step["shadow"].compared
    if rows < plan.min_requests:
        return f"waiting for requests: {rows:.0f} of {plan.min_requests} rows were compared"
    return ""


def figures(plan: RolloutPlan, evidence: StepEvidence) -> Json:
    """Return the counts and test results of the step for the audit trail; empty before
    the first step.
    """
    if not evidence.step:
        return {}
    judged = {}
    for criterion in plan.criteria:
        test = evidence.tests.get(criterion.text)
        if test is not None:
            judged[criterion.text] = {
                "figures": _describe_figures(plan, criterion, evidence),
                "log_evidence": round(float(test.log_evidence), 3),
                "log_evidence_needed": round(math.log(1 / test.level), 3),
            }
    shadow = evidence.step["shadow"]
    counted = {
        role: {"requests": counts.requests, "errors": counts.errors}
        for role, counts in evidence.step.items()
        if role != "shadow"
    }
    if plan.shadow:
        counted["shadow"] = {"same": shadow.same, "different": shadow.different}
    return {**counted, "criteria": judged}


def _new_tests(plan: RolloutPlan, step: int, evidence: StepEvidence) -> dict[str, SequentialTest]:
    """Return the tests of a step.

    At 100 %, the current version receives no requests. The candidate is then compared
    with an upper limit for the current version's share of events in the history. The
    limit and the test each use half of the level.
    """
    tests = {}
    is_alone = plan.steps[step] == 100
    for criterion in plan.criteria:
        level = plan.level_of_a_test
        threshold = criterion.share
        if is_alone and not criterion.is_of_shadow:
            level /= 2
            history = evidence.before_step
            events, trials = _count_events(criterion, history, _slow_from(criterion, history))
            if trials:
                threshold = max(threshold, upper_limit(events, trials, level))
        against_current = not is_alone and not criterion.is_of_shadow
        tests[criterion.text] = SequentialTest(threshold, level, against_current)
    return tests


def _count_events(
    criterion: Criterion, counted: VersionCounters, slow_from: float | None = None
) -> tuple[float, float]:
    """Return the number of requests (or rows) with the criterion's event, and the
    number of all requests (or rows).

    For a latency criterion, the event is a latency above `slow_from` seconds. Without
    `slow_from`, both numbers are 0.
    """
    match criterion.kind:
        case "error_rate":
            return counted.errors, counted.requests
        case "latency":
            if slow_from is None:
                return 0, 0
            total = counted.timed.get(math.inf, 0)
            return total - counted.timed.get(slow_from, 0), total
        case "disagreement":
            return counted.different, counted.compared


def _slow_from(criterion: Criterion, history: VersionCounters) -> float | None:
    """Return the latency in seconds above which a request is slow: the criterion's
    bound rounded up to a bucket.

    Return None if the current version has answered too few requests, or if the bound is
    above the last bucket.
    """
    seconds = criterion.seconds
    if criterion.factor is not None and history.timed.get(math.inf, 0) >= _MIN_TIMED:
        quantile = history.quantile(1 - criterion.share)
        seconds = None if quantile is None else quantile * criterion.factor
    if seconds is None:
        return None
    for bound in sorted(history.timed):
        if seconds <= bound < math.inf:
            return bound
    return None


def _describe_figures(plan: RolloutPlan, criterion: Criterion, evidence: StepEvidence) -> str:
    """Return a clause about the shares of the step that the criterion limits."""
    slow_from = _slow_from(criterion, evidence.history)
    match criterion.kind:
        case "disagreement":
            share = _format_share(*_count_events(criterion, evidence.step["shadow"]))
            return (
                f"version {plan.version} answers {share} rows differently from the current version"
            )
        case "latency":
            if slow_from is None:
                return f"not judged: version {plan.before_version} has too few timed requests"
            event = f"took longer than {slow_from * 1000:g} ms"
        case "error_rate":
            event = "failed"
    new = _format_share(*_count_events(criterion, evidence.step["candidate"], slow_from))
    old = _format_share(*_count_events(criterion, evidence.step["current"], slow_from))
    return (
        f"{new} requests to version {plan.version} {event}, {old} to version {plan.before_version}"
    )


def _format_share(events: float, trials: float) -> str:
    if trials:
        return f"{events / trials:.2%} of {trials:,.0f}"
    return "0 of 0"
