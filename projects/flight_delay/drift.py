"""Judges what a deployment was asked in a window of event time against the model's training days.

    mlflow run . -e drift -P window=2013-07-04/1d        # or: onnxserve drift run flights --window 2013-07-04/1d

The verdict, the report and the figures are an MLflow run: that of `mlflow run`, else one of its own in the experiment
onnxserve/DEPLOYMENT.
"""

import argparse

from mlflow_deploy_plugin.monitoring.drift import DriftResult, run_drift
from mlflow_deploy_plugin.monitoring.windows import parse_window
from projects.command import plain_errors


def describe(result: DriftResult) -> str:
    """The verdict in a line: what was found, how far beyond the threshold, and in which column most."""
    verdict = result.verdict
    if verdict.statistic is None or verdict.threshold is None:
        return f"{verdict.state}: {verdict.reason}"
    return (
        f"{verdict.state:8}  score {verdict.statistic:6.1f}, threshold {verdict.threshold:.1f}, "
        f"{verdict.rows:,} rows, most in {verdict.features[0].name}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--deployment", default="flights", help="whose captured traffic is judged")
    parser.add_argument("--window", default="", help="START/END or START/1d in UTC; empty: the latest whole one")
    options = parser.parse_args()
    with plain_errors():
        window = parse_window(options.window) if options.window else None
        result = run_drift(options.deployment, window)
    print(f"{options.deployment}, {result.judgement.window}: {describe(result)}")
    print(f"run {result.run.run_id} of the experiment {result.run.experiment}  {result.run.url}")


if __name__ == "__main__":
    main()
