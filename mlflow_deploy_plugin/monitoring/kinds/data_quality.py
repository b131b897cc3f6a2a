"""Data quality: values that are missing, of another type, unseen or out of range, and columns that come or go.

Against the reference each is judged as drift is, by what the reference's own windows do. Requirements (`require`) are
judged exactly: they speak of the rows of this window, all of which were counted, and not of what they are a sample of.
"""

from collections.abc import Callable, Iterator, Mapping

from mlflow_deploy_plugin.monitoring.drift.column_findings import describe_worst
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import ColumnSketch, Profile
from mlflow_deploy_plugin.monitoring.kinds.drift import WindowComparison, compare_window
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.monitoring.result import Check, Finding, MonitorResult, State
from mlflow_deploy_plugin.spec import Requirement

CHECKS: tuple[Check, ...] = ("missing", "unseen", "type", "presence", "range")
_MOST_COLUMNS = 20


def judge(request: WindowRequest) -> MonitorResult:
    """Judge the quality of all columns, or of those of the spec.

    Raises:
        RegistryUnavailable: MLflow does not answer.
    """
    compared = compare_window(request)
    if isinstance(compared, MonitorResult):
        return compared
    verdict = compared.verdict(request.spec.columns)
    required = [finding for one in request.spec.requirements for finding in _required(compared, one)]
    checked = [one for one in verdict.findings if one.check in CHECKS]
    checked += _silent(verdict.findings, {one.subject for one in checked})
    state, reason = _conclude(required, checked, verdict.state, verdict.reason)
    alarms = [one for one in (*required, *checked) if one.is_alarm]
    others = [one for one in (*required, *checked) if not one.is_alarm]
    return compared.result(state, reason, verdict, (*alarms, *others))


def _silent(findings: tuple[Finding, ...], told: set[str]) -> Iterator[Finding]:
    """Yield a finding for each column that only its distribution was judged of: nothing is wrong, or why it is not
    known.
    """
    for one in findings:
        if one.subject in told or one.check != "distribution" or one.segment:
            continue
        reason = one.reason if one.state == "not judged" else "nothing missing, unseen or out of range"
        yield Finding(one.subject, "missing", "not judged" if one.state == "not judged" else "no drift", reason)


def _conclude(required: list[Finding], checked: list[Finding], verdict: State, reason: str) -> tuple[State, str]:
    for state in ("violated", "drift"):
        alarms = [one for one in (*required, *checked) if one.state == state]
        if alarms:
            return state, describe_worst([one.subject for one in alarms], alarms[0].reason)
    if required and all(one.state == "kept" for one in required):
        return "kept", f"{required[0].subject}: {required[0].reason}"
    if verdict == "not judged" or any(one.state == "not judged" for one in required):
        return "not judged", next((one.reason for one in required if one.state == "not judged"), reason)
    return "no drift", "values are missing, unseen or out of range no more than in the reference's own windows"


def _required(compared: WindowComparison, requirement: Requirement) -> Iterator[Finding]:
    """Yield a finding for each column that breaks the requirement, or for the one that comes nearest to it."""
    profile, spec = compared.profile, compared.request.spec
    if profile.rows < spec.min_rows:
        reason = f"the window has {profile.rows:,} rows; min_rows is {spec.min_rows:,}"
        yield _finding(requirement, requirement.argument, "not judged", reason, None)
        return
    if requirement.name != "missing" and compared.reference is None:
        yield _finding(requirement, requirement.argument, "not judged", compared.missing_reason, None)
        return
    names = (
        [requirement.argument]
        if requirement.argument
        else [name for name in compared.names if not spec.columns or name in spec.columns]
    )
    unknown = requirement.argument and requirement.argument not in compared.names
    if unknown or not names:
        reason = f"neither the window nor the reference has the column; there are {', '.join(compared.names[:20])}"
        yield _finding(requirement, requirement.argument, "not judged", reason, None)
        return
    shares = {name: SHARES[requirement.name](profile, profile.columns.get(name)) for name in names}
    order = sorted(names, key=lambda name: (-shares[name], name))
    broken = [name for name in order if not requirement.holds(shares[name])]
    for name in broken[:_MOST_COLUMNS]:
        more = f", as of {len(broken) - 1} more columns" if len(broken) > _MOST_COLUMNS and name == broken[0] else ""
        reason = f"{shares[name]:.2%} of {profile.rows:,} rows, required is {requirement.text}{more}"
        change = _change(compared, requirement, name, shares[name])
        yield _finding(requirement, name, "violated", reason, shares[name], change)
    if not broken:
        worst = order[0]
        reason = f"at most {shares[worst]:.2%} of {profile.rows:,} rows ({worst}), required is {requirement.text}"
        change = _change(compared, requirement, worst, shares[worst])
        yield _finding(requirement, worst, "kept", reason, shares[worst], change)


def _finding(
    requirement: Requirement, column: str, state: State, reason: str, value: float | None, change: str = ""
) -> Finding:
    subject = f"{requirement.name}({column})" if column else requirement.name
    return Finding(subject, "criterion", state, reason, value, requirement.value, change=change)


def _change(compared: WindowComparison, requirement: Requirement, name: str, share: float) -> str:
    """Return what the share of a column was in the reference, and is; empty: there is no reference, or it lacks it."""
    others = compared.reference.pieces.others if compared.reference is not None else None
    if others is None or not others.rows or name not in others.columns:
        return ""
    before = SHARES[requirement.name](others, others.columns[name])
    first, last = f"{before:.1%}", f"{share:.1%}"
    where = "unchanged" if first == last else "more" if share > before else "fewer"
    return f"{first} (the reference) → {last}, {where}"


def _missing(profile: Profile, column: ColumnSketch | None) -> float:
    """Return the share of missing values. A row without the column lacks its value."""
    present = (column.rows - column.missing) if column else 0
    return 1 - present / profile.rows


def _unseen(profile: Profile, column: ColumnSketch | None) -> float:
    return column.unseen / profile.rows if column else 0.0


def _out_of_range(profile: Profile, column: ColumnSketch | None) -> float:
    return (column.below + column.above) / profile.rows if column else 0.0


SHARES: Mapping[str, Callable[[Profile, ColumnSketch | None], float]] = {
    "missing": _missing,
    "unseen": _unseen,
    "out_of_range": _out_of_range,
}
