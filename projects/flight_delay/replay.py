"""Replay months of 2013 on a real endpoint that is monitored and retrained
automatically.

    mlflow run . -e replay -P months=1-12
    # or: python -m projects.flight_delay.replay --months 1-12
    mlflow run . -e replay -P months=1-9 -P inject=celsius:6

Flights are sent in the order of event time at high speed. Their labels follow one day
later by POST /feedback. The controller judges accuracy every four weeks, and drift in
the last week. An alarm starts a retraining, and its version passes a gate and a
rollout. The accuracy per month, with and without retraining, is logged to MLflow as a
table and a plot. Drift is injected only if `inject` is set.
"""

import argparse
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from mlflow_deploy_plugin.core.spec.types import duration_seconds
from mlflow_deploy_plugin.core.store.retrainings import Retraining, Retrainings
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from mlflow_deploy_plugin.serve.inference_log.windows import Window, microseconds, window_at
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments, open_deployments
from projects.command import one_line_errors
from projects.flight_delay.data import DAY, FEATURES, load_flights, months
from projects.flight_delay.loop import results, setup, waiting
from projects.flight_delay.loop.feed import Counts, Feed
from projects.flight_delay.loop.injected_drift import Injection, parse_injection
from projects.flight_delay.loop.setup import ReplaySettings
from projects.flight_delay.train import BUILT_IN_MONTHS
from projects.flight_delay.training_data import parse_months


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes:
        months: one row per month (`results.accuracy_by_month`).
        weeks: the judged windows.
        states: the states of the retrainings, in order.
        counts: the numbers of requests that were sent, answered and lost.
        sentences: the conclusion from the figures.
    """

    months: pd.DataFrame
    weeks: list[results.JudgedWindow]
    states: list[str]
    counts: Counts
    sentences: list[str]


def replay(
    setting: ReplaySettings,
    span: str,
    injection: Injection | None,
    batch: int,
    every_day: int,
    folder: Path,
) -> Replay:
    """Replay the months, and write the results into the folder and to the active run.

    Args:
        batch: the number of flights per request.
        every_day: send only every Nth flight; 1 sends all flights.

    Raises:
        OnnxserveError: a component does not start or does not finish in time.
    """
    flights = months(load_flights(), *parse_months(span)).iloc[::every_day]
    if injection is not None:
        _say(str(injection))
        flights = injection.apply(flights)
    with open_deployments(_say) as deployments:
        _say("training the first version on January to March")
        first = setup.train_first(setting, folder / "first.log")
        with (
            setup.deployed_endpoint(deployments, setting) as url,
            setup.running_controller(folder / "controller.log"),
        ):
            _say(f"{url} serves version {first}; sending {len(flights):,} flights")
            feed = Feed(url, batch)
            weeks = _play(deployments, setting, feed, flights)
        states = [
            f"version {retraining.version}: {retraining.state}"
            for retraining in _retrainings(deployments, setting)
        ]
    played = flights.join(feed.table(), how="inner")
    played["still"] = _answers_of(f"models:/{setting.model}/{first}", played)
    table = results.accuracy_by_month(played, injection)
    sentences = [
        *([str(injection)] if injection else []),
        *results.conclusion(table, BUILT_IN_MONTHS),
    ]
    results.draw_plot(
        table,
        weeks,
        results.served_version_changes(played),
        folder / "accuracy_by_month.png",
        injection,
    )
    table.to_csv(folder / "accuracy_by_month.csv", index=False)
    results.verdicts(weeks, injection).to_csv(folder / "verdicts.csv", index=False)
    return Replay(table, weeks, states, feed.counts, sentences)


def _play(
    deployments: Deployments,
    setting: ReplaySettings,
    feed: Feed,
    flights: pd.DataFrame,
) -> list[results.JudgedWindow]:
    """Send the flights day by day. A window is judged one day after its end, when its
    last labels are received.
    """
    log = open_log(deployments.settings.inference_log)
    weeks: list[results.JudgedWindow] = []
    waiting = None
    for _, of_day in flights.groupby(DAY, sort=True):
        window = window_at(microseconds(of_day[DAY].iloc[0].to_pydatetime()), setting.every)
        feed.day(of_day)
        if waiting is not None and waiting.start != window.start:
            weeks.extend(_judge(deployments, setting, log, waiting, feed, flights))
        waiting = window
    feed.rest()
    if waiting is not None and waiting.end <= flights[DAY].max() + timedelta(days=1):
        weeks.extend(_judge(deployments, setting, log, waiting, feed, flights))
    return weeks


def _judge(
    deployments: Deployments,
    setting: ReplaySettings,
    log: InferenceLog,
    window: Window,
    feed: Feed,
    flights: pd.DataFrame,
) -> list[results.JudgedWindow]:
    inside = flights[(flights[DAY] >= window.start) & (flights[DAY] < window.end)]
    began = time.monotonic()
    waiting.wait_until_logged(log, setting.endpoint, window, len(inside), len(inside))
    logged = time.monotonic()
    windows = waiting.wait_for_verdicts(deployments.store, setting, window)
    judged = time.monotonic()
    last = waiting.wait_for_retraining(deployments.store, setting.endpoint)
    line = f"{window.start:%Y-%m-%d}  {len(inside):6,} flights"
    for judged_window in windows:
        line += f"  {judged_window.monitor}: {judged_window.verdict or judged_window.state}"
    line += f"  {logged - began:.0f} + {judged - logged:.0f} s"
    if last is not None:
        line += (
            f"  retraining {last.id}: {last.state} {last.version}, "
            f"{time.monotonic() - judged:.0f} s"
        )
    _say(f"{line}  lost {feed.counts.lost}")
    return [
        results.JudgedWindow(
            item.monitor,
            _day(item.start),
            _day(item.end),
            item.verdict or item.state,
            item.reason,
        )
        for item in windows
    ]


def _day(time: datetime) -> pd.Timestamp:
    return pd.Timestamp(time)


def _retrainings(deployments: Deployments, setting: ReplaySettings) -> list[Retraining]:
    return Retrainings(deployments.store).find(setting.endpoint)


def _answers_of(model_uri: str, flights: pd.DataFrame) -> np.ndarray:
    """Return a version's predictions for the flights, [N] bool."""
    model = mlflow.pyfunc.load_model(model_uri)
    return np.asarray(model.predict(flights[list(FEATURES)])).astype(bool)


def _log(
    result: Replay,
    folder: Path,
    setting: ReplaySettings,
    injection: Injection | None,
) -> None:
    mlflow.set_tag("onnxserve.injected", str(injection) if injection else "nothing is injected")
    if injection is not None:
        mlflow.set_tag(
            "mlflow.runName",
            f"replay with injected drift, {injection.kind}:{injection.month}",
        )
    for row in result.months.to_dict("records"):
        for name in ("accuracy_with_loop", "accuracy_without"):
            mlflow.log_metric(name, row[name], step=row["month"])
    counts = result.counts
    sent = {
        "requests": counts.requests,
        "lost": counts.lost,
        "labels": counts.labels,
        "labels_lost": counts.labels_lost,
    }
    mlflow.log_metrics(sent)
    for file in sorted(folder.iterdir()):
        mlflow.log_artifact(str(file), "replay")


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    default = ReplaySettings()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--months", default="1-12", help="months of 2013 to replay")
    parser.add_argument(
        "--inject",
        default="",
        help="drift to inject as KIND:MONTH, e.g. celsius:7 or concept:7",
    )
    parser.add_argument(
        "--mode",
        choices=["full", "incremental"],
        default=default.mode,
        help="training mode after an alarm",
    )
    parser.add_argument("--every", default=default.every, help="length of the windows for accuracy")
    parser.add_argument(
        "--at-least",
        type=float,
        default=default.at_least,
        help="lowest accuracy without an alarm",
    )
    parser.add_argument(
        "--max-iter",
        type=int,
        default=default.max_iter,
        help="number of boosted trees of a version",
    )
    parser.add_argument(
        "--min-requests",
        type=int,
        default=default.min_requests,
        help="requests per step of a rollout",
    )
    parser.add_argument("--batch", type=int, default=10, help="flights per request")
    parser.add_argument("--sample", type=int, default=1, help="send only every Nth flight")
    parser.add_argument(
        "--endpoint",
        default="",
        help="name of the endpoint; default: a new name for each run",
    )
    options = parser.parse_args()
    # SystemExit also stops the server and the controller.
    signal.signal(
        signal.SIGTERM,
        lambda number, frame: sys.exit(128 + number),
    )
    with one_line_errors(), mlflow.start_run() as run, tempfile.TemporaryDirectory() as name:
        injection = parse_injection(options.inject)
        folder = Path(name)
        # All runs, versions and events must show the injection.
        injected = "-injected" if injection else ""
        setting = ReplaySettings(
            # If an endpoint is reused, its log contains each flight twice.
            endpoint=options.endpoint or f"{default.endpoint}{injected}-{run.info.run_id[:6]}",
            model=default.model + injected,
            every=options.every,
            at_least=options.at_least,
            mode=options.mode,
            max_iter=options.max_iter,
            min_requests=options.min_requests,
        )
        duration_seconds(setting.every)
        result = replay(setting, options.months, injection, options.batch, options.sample, folder)
        _log(result, folder, setting, injection)
    _say(result.months.to_string(index=False, float_format="%.4f"))
    for line in (*result.states, *result.sentences):
        _say(line)
    counts = result.counts
    _say(
        f"{counts.requests:,} requests, {counts.lost} lost; {counts.labels:,} labels, "
        f"{counts.labels_lost} lost",
    )
    _say(f"onnxserve audit history {setting.endpoint}    shows all events")


if __name__ == "__main__":
    main()
