"""The story that the demo tells, in four acts: wrap, deploy, watch, promote."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.controller.monitors.evaluation import EvaluatedWindow
from mlflow_deploy_plugin.errors import OnnxserveError
from projects.demo import steps
from projects.demo.place import Place
from projects.demo.screen import Screen
from projects.demo.servers import mlflow_url, start_mlflow, stop_mlflow
from projects.flight_delay.data import load_flights, split, summer_days
from projects.flight_delay.deploy import deploy
from projects.flight_delay.traffic import send
from projects.flight_delay.train import MODEL_NAME
from projects.parity import parity_line

SEED = 7
FIRST = {"seed": SEED, "max_iter": 60, "learning_rate": 0.1}
SECOND = {"seed": SEED, "max_iter": 90, "learning_rate": 0.15}
STEPS = 9
_COMPARED_ROWS = 500


@dataclass(frozen=True)
class Watched:
    """Twenty days of traffic.

    Attributes:
        flights: those that were sent, in this order; predictions: [N] what the first version said of each.
        calm, summer: the verdicts, a day each.
    """

    flights: pd.DataFrame
    predictions: np.ndarray
    calm: list[EvaluatedWindow]
    summer: list[EvaluatedWindow]


@dataclass(frozen=True)
class Promoted:
    """The second version at the same URL.

    Attributes:
        seconds: from the change of the stage to its first answer.
        changed: flights of which the first version had said otherwise.
    """

    version: steps.Version
    seconds: float
    agreement: steps.Agreement
    changed: int


def stop(place: Place, screen: Screen) -> bool:
    """Ends what a run of the demo left running; says whether there was anything."""
    place.check()
    place.use(mlflow_url(place))
    deployed = place.onnxserve_home.exists() and steps.undeploy_all(screen.line) > 0
    return stop_mlflow(place) or deployed


def tell(place: Place, screen: Screen) -> list[tuple[str, str]]:
    """Runs every step and gives the rows of the table that says what happened.

    Raises:
        OnnxserveError: a step failed; the message is for the reader.
    """
    screen.step("An MLflow server with its UI")
    if stop(place, screen):
        screen.line("stopped the servers of an earlier run")
    place.empty()
    url = start_mlflow(place)
    place.use(url)
    screen.line(f"{url}   (SQLite and artifacts in {place.home})")

    first = _wrap(screen)
    server = _deploy(first, screen)
    watched = _watch(server, screen)
    promoted = _promote(server, first, watched, screen)
    return [
        ("Model", f"{MODEL_NAME}, validation ROC AUC: {_quality(first)}, {_quality(promoted.version)}"),
        ("", steps.version_link(url, promoted.version)),
        ("Parity", parity_line(first.parity, first.metrics).removeprefix("parity ")),
        ("Calm days called drifted", _drifted(watched.calm)),
        ("", _report(place, "calm", watched.calm, "no drift")),
        ("Summer days called drifted", _drifted(watched.summer)),
        ("", _report(place, "summer", watched.summer, "drift")),
        *_promotion_rows(promoted),
        ("Took", f"{screen.seconds():.0f} s"),
        ("MLflow", url),
        ("Console", f"{url}/onnxserve"),
        ("Server", f"{server}/invocations"),
    ]


def _wrap(screen: Screen) -> steps.Version:
    screen.step("Train on January to March: mlflow run . -e train")
    version = steps.train(screen.line, **FIRST)
    screen.step(f"Parity of version {version.number}: the ONNX form against the scikit-learn pipeline")
    steps.show_parity(version, screen.line)
    return version


def _deploy(version: steps.Version, screen: Screen) -> str:
    screen.step(f"Promote version {version.number} to Production, and deploy the stage")
    steps.promote(version)
    server = str(deploy(steps.DEPLOYMENT, steps.PRODUCTION, workers=1)["url"])
    screen.line(f"{server}   answers with version {version.number}")
    return server


def _watch(server: str, screen: Screen) -> Watched:
    screen.step("Send ten calm days that training never saw, then ten summer days")
    flights = load_flights()
    calm, summer = split(flights, SEED).calm, summer_days(flights, SEED)
    traffic = pd.concat([calm, summer])
    answers = send(server, traffic, lambda day, count: screen.line(f"{day.date()}  {count:5,} flights"))
    screen.line(f"{len(answers.table):,} flights answered in {answers.versions.total()} requests")

    screen.step("Judge each of the twenty days against the training days")
    screen.line("ten calm days")
    calm_results = steps.judge_days(calm, screen.line)
    screen.line("ten summer days")
    summer_results = steps.judge_days(summer, screen.line)
    return Watched(traffic, answers.table["prediction"].to_numpy(), calm_results, summer_results)


def _promote(server: str, first: steps.Version, watched: Watched, screen: Screen) -> Promoted:
    screen.step("Train a second version with more and bolder trees")
    second = steps.train(screen.line, **SECOND)

    screen.step(f"Promote version {second.number}: the same URL answers with it")
    steps.promote(second)
    seconds, asked = steps.wait_until_served(server, watched.flights.head(1), second)
    screen.line(f"X-Model-Version: {second.number} after {seconds:.1f} s; {asked} requests meanwhile, none failed")

    screen.step("mlflow.pyfunc.load_model and the server, on the same flights")
    chosen = slice(None, None, len(watched.flights) // _COMPARED_ROWS)
    agreement = steps.compare_with_pyfunc(server, watched.flights.iloc[chosen])
    screen.line(f"{agreement.equal} of {agreement.rows} predictions are equal, version {agreement.version}")
    if agreement.equal != agreement.rows:
        raise OnnxserveError("the server and mlflow.pyfunc.load_model disagree, which must not happen")
    changed = int((watched.predictions[chosen] != agreement.served).sum())
    screen.line(f"version {first.number} had said otherwise of {changed} of these flights")
    return Promoted(second, seconds, agreement, changed)


def _promotion_rows(promoted: Promoted) -> list[tuple[str, str]]:
    number, agreement = promoted.version.number, promoted.agreement
    return [
        ("Promotion", f"version {number} answered {promoted.seconds:.1f} s after the stage moved, no request failed"),
        ("", f"it says otherwise than the first of {promoted.changed} of {agreement.rows} flights"),
        ("Agreement", f"{agreement.equal} of {agreement.rows} predictions equal those of mlflow.pyfunc.load_model"),
    ]


def _quality(version: steps.Version) -> str:
    return f"{version.metrics['validation_roc_auc']:.3f} (version {version.number})"


def _drifted(results: list[EvaluatedWindow]) -> str:
    return f"{sum(result.result.state == 'drift' for result in results)} of {len(results)}"


def _report(place: Place, kind: str, results: list[EvaluatedWindow], state: str) -> str:
    """Where one report of this kind can be read: a file of its own, and its run in MLflow's UI."""
    page = place.reports / f"{kind}.html"
    result = steps.keep_report(results, state, page)
    return f"{result.run.url}\n{page.as_uri()}" if result else f"no day was judged {state!r}"
