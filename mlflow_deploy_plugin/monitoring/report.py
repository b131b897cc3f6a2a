"""A drift verdict in words, for the command line."""

from mlflow_deploy_plugin.monitoring.verdict import Verdict


def summary(verdict: Verdict) -> str:
    """The verdict in a sentence or two."""
    if verdict.threshold is None:
        return f"Not judged: {verdict.reason}."
    measured = (
        f", measured on the reference's own windows {verdict.measured_false_alarm_rate:.1%}"
        if verdict.measured_false_alarm_rate is not None
        else ""
    )
    return (
        f"{verdict.rows:,} rows, compared with {verdict.blocks} windows of the same length of the reference at "
        f"{verdict.compared_rows:,} rows each. The largest score is {verdict.statistic:.2f} standard deviations, the "
        f"threshold {verdict.threshold:.2f}; p = {verdict.p_value:.3f}. "
        f"Share of false alarms: stated {verdict.false_alarm_rate:.1%}{measured}."
    )
