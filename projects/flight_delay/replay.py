"""Replays months of 2013 against a real endpoint that monitors itself and is retrained automatically.

    mlflow run . -e replay -P months=1-12           # or: python -m projects.flight_delay.replay --months 1-12
    mlflow run . -e replay -P months=1-9 -P inject=celsius:6

Flights are sent in event time, at high speed; what really happened follows a day late by POST /feedback. The controller
judges accuracy every four weeks, and drift in the last of them; an alarm starts a training, whose version goes through
its gate and a rollout. The accuracy by month, with the loop and without it, is logged to MLflow as a table and a plot.
Nothing is injected unless `inject` says so.
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

from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.deployments.lifecycle import open_deployments
from mlflow_deploy_plugin.inference_log import InferenceLog, Window, microseconds, open_log
from mlflow_deploy_plugin.inference_log.windows import window_at
from mlflow_deploy_plugin.spec import duration_seconds
from mlflow_deploy_plugin.store import Retraining, Retrainings
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
        months: one row a month (`outcome.by_month`).
        weeks: the windows that were judged.
        states: of the retrainings, in their order.
        counts: requests sent, answered, lost.
        sentences: what the figures say.
    """

    months: pd.DataFrame
    weeks: list[results.JudgedWindow]
    states: list[str]
    counts: Counts
    sentences: list[str]


def replay(
    setting: ReplaySettings, span: str, injection: Injection | None, batch: int, every_day: int, folder: Path
) -> Replay:
    """Replay the months, and write the results into the folder and to the active run.

    Args:
        batch: flights a request.
        every_day: only each so many-th flight is sent: 1 sends all.

    Raises:
        OnnxserveError: a part of it does not come up, or does not do what it should in time.
    """
    flights = months(load_flights(), *parse_months(span)).iloc[::every_day]
    if injection is not None:
        _say(str(injection))
        flights = injection.apply(flights)
    with open_deployments(_say) as deployments:
        _say("training the first version on January to March")
        first = setup.train_first(setting, folder / "first.log")
        with setup.deployed_endpoint(deployments, setting) as url, setup.running_controller(folder / "controller.log"):
            _say(f"{url} answers with version {first}; {len(flights):,} flights are sent")
            feed = Feed(url, batch)
            weeks = _play(deployments, setting, feed, flights)
        states = [f"version {one.version}: {one.state}" for one in _retrainings(deployments, setting)]
    played = flights.join(feed.table(), how="inner")
    played["still"] = _answers_of(f"models:/{setting.model}/{first}", played)
    table = results.accuracy_by_month(played, injection)
    sentences = [*([str(injection)] if injection else []), *results.conclusion(table, BUILT_IN_MONTHS)]
    results.draw_plot(table, weeks, results.served_version_changes(played), folder / "accuracy_by_month.png", injection)
    table.to_csv(folder / "accuracy_by_month.csv", index=False)
    results.verdicts(weeks, injection).to_csv(folder / "verdicts.csv", index=False)
    return Replay(table, weeks, states, feed.counts, sentences)


def _play(
    deployments: Deployments, setting: ReplaySettings, feed: Feed, flights: pd.DataFrame
) -> list[results.JudgedWindow]:
    """Send day after day. A window is judged once its last day's labels are in, a day after its end."""
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
    found = waiting.wait_for_verdicts(deployments.store, setting, window)
    judged = time.monotonic()
    last = waiting.wait_for_retraining(deployments.store, setting.endpoint)
    line = f"{window.start:%Y-%m-%d}  {len(inside):6,} flights"
    for one in found:
        line += f"  {one.monitor}: {one.verdict or one.state}"
    line += f"  {logged - began:.0f} + {judged - logged:.0f} s"
    if last is not None:
        line += f"  retraining {last.id}: {last.state} {last.version}, {time.monotonic() - judged:.0f} s"
    _say(f"{line}  lost {feed.counts.lost}")
    return [
        results.JudgedWindow(one.monitor, _day(one.start), _day(one.end), one.verdict or one.state, one.reason)
        for one in found
    ]


def _day(time: datetime) -> pd.Timestamp:
    return pd.Timestamp(time)


def _retrainings(deployments: Deployments, setting: ReplaySettings) -> list[Retraining]:
    return Retrainings(deployments.store).find(setting.endpoint)


def _answers_of(model_uri: str, flights: pd.DataFrame) -> np.ndarray:
    """Return a version's predictions for the flights, [N] bool."""
    model = mlflow.pyfunc.load_model(model_uri)
    return np.asarray(model.predict(flights[list(FEATURES)])).astype(bool)


def _log(result: Replay, folder: Path, setting: ReplaySettings, injection: Injection | None) -> None:
    mlflow.set_tag("onnxserve.injected", str(injection) if injection else "nothing is injected")
    if injection is not None:
        mlflow.set_tag("mlflow.runName", f"replay with injected drift, {injection.kind}:{injection.month}")
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--months", default="1-12", help="months of 2013 that are played")
    parser.add_argument("--inject", default="", help="KIND:MONTH: celsius:7 or concept:7; empty: nothing")
    parser.add_argument("--mode", choices=["full", "incremental"], default=default.mode, help="how an alarm trains")
    parser.add_argument("--every", default=default.every, help="of the windows that accuracy is judged in")
    parser.add_argument("--at-least", type=float, default=default.at_least, help="accuracy below it is an alarm")
    parser.add_argument("--max-iter", type=int, default=default.max_iter, help="boosted trees of a version")
    parser.add_argument("--min-requests", type=int, default=default.min_requests, help="of a rollout's step")
    parser.add_argument("--batch", type=int, default=10, help="flights a request")
    parser.add_argument("--sample", type=int, default=1, help="only each so many-th flight")
    parser.add_argument("--endpoint", default="", help="its name; default: one of this run's own")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # its server and controller end with it
    with one_line_errors(), mlflow.start_run() as run, tempfile.TemporaryDirectory() as name:
        injection, folder = parse_injection(options.inject), Path(name)
        injected = "-injected" if injection else ""  # so that every run, version and event says it
        setting = ReplaySettings(
            # a log with the flights of an earlier replay would have all of them twice
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
    _say(f"{counts.requests:,} requests, {counts.lost} lost; {counts.labels:,} labels, {counts.labels_lost} lost")
    _say(f"onnxserve history {setting.endpoint}    tells the story")


if __name__ == "__main__":
    main()
