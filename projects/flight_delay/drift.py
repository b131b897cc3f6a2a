"""Judge the requests of a deployment in a window of event time against the model's
training days.

    mlflow run . -e drift -P window=2013-07-04/1d
    # or: onnxserve monitor run flights --window 2013-07-04/1d

The verdict, the report and the figures are logged to the run of `mlflow run`, or
otherwise to a new run in the experiment onnxserve/DEPLOYMENT.
"""

import argparse

from mlflow_deploy_plugin.serve.inference_log.windows import Window, parse_window
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from mlflow_deploy_plugin.watch.monitors.evaluation import judge_and_log
from mlflow_deploy_plugin.watch.monitors.manual_runs import find_monitor, run_window
from mlflow_deploy_plugin.watch.result import MonitorResult
from projects.command import one_line_errors


def judge_window(deployment: str, window: Window | None) -> MonitorResult:
    """Run the deployment's monitor on the window, as `onnxserve monitor run` does."""
    with open_deployments(print) as deployments:
        return run_window(
            deployments,
            find_monitor(deployments, deployment, None),
            window,
            judge_and_log,
        )[1]


def describe(result: MonitorResult) -> str:
    """Return the verdict in one line: the state, the score and its threshold, and the
    most drifted column.
    """
    statistic, threshold = (result.figures.get(name) for name in ("statistic", "threshold"))
    if statistic is None or threshold is None:
        return f"{result.state}: {result.reason}"
    return (
        f"{result.state:8}  score {statistic:6.1f} SD, threshold {threshold:.1f} SD, "
        f"{result.rows:,} rows, most in {result.findings[0].subject}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--deployment",
        default="flights",
        help="deployment whose captured traffic is judged",
    )
    parser.add_argument(
        "--window",
        default="",
        help="START/END or START/1d in UTC; default: the latest complete window",
    )
    options = parser.parse_args()
    with one_line_errors():
        window = parse_window(options.window) if options.window else None
        result = judge_window(options.deployment, window)
    print(f"{options.deployment}, {result.window}: {describe(result)}")
    print(f"run {result.run.run_id} of the experiment {result.run.experiment}  {result.run.url}")


if __name__ == "__main__":
    main()
