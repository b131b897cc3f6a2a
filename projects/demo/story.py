"""The story that the demo tells, step by step."""

from pathlib import Path

import pandas as pd

from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.settings import load_settings
from projects.demo import steps
from projects.demo.place import Place
from projects.demo.screen import Screen
from projects.demo.servers import mlflow_url, start_mlflow, stop_mlflow
from projects.flight_delay.data import DAY, load_flights, split, summer_days
from projects.flight_delay.deploy import deploy
from projects.flight_delay.traffic import send
from projects.parity import parity_line

SEED = 7
FIRST = {"seed": SEED, "max_iter": 60, "learning_rate": 0.1}
SECOND = {"seed": SEED, "max_iter": 90, "learning_rate": 0.15}
STEPS = 9
_COMPARED_ROWS = 500


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
    stop(place, screen)
    place.empty()
    url = start_mlflow(place)
    place.use(url)
    screen.line(f"{url}   (SQLite and artifacts in {place.home})")

    screen.step("Train on January to March: mlflow run . -e train")
    first = steps.train(screen.line, **FIRST)

    screen.step(f"Parity of version {first.number}: the ONNX form against the scikit-learn pipeline")
    screen.line(parity_line(first.parity, first.metrics))

    screen.step(f"Promote version {first.number} to Production, and deploy the stage")
    steps.promote(first)
    server = deploy(steps.DEPLOYMENT, steps.PRODUCTION, workers=1)["url"]
    screen.line(f"{server}   answers with version {first.number}")

    screen.step("Send ten calm days that training never saw, then ten summer days")
    flights = load_flights()
    calm, summer = split(flights, SEED).calm, summer_days(flights, SEED)
    traffic = pd.concat([calm, summer])
    answers = send(server, traffic, lambda day, count: screen.line(f"{day.date()}  {count:5,} flights"))
    steps.wait_until_logged(Path(load_settings().inference_log), len(traffic))
    screen.line(f"{len(answers.table):,} flights answered and captured, in {answers.versions.total()} requests")

    screen.step("Judge each of the twenty days against the training days")
    _judge("calm", calm, place, screen)
    _judge("summer", summer, place, screen)

    screen.step("Train a second version with more and bolder trees")
    second = steps.train(screen.line, **SECOND)

    screen.step(f"Promote version {second.number}: the same URL answers with it")
    probe = calm.head(1)
    steps.promote(second)
    seconds, asked = steps.wait_until_served(server, probe, second)
    screen.line(f"X-Model-Version: {second.number} after {seconds:.1f} s; {asked} requests meanwhile, none failed")

    screen.step("mlflow.pyfunc.load_model and the server, on the same flights")
    agreement = steps.compare_with_pyfunc(server, summer.head(_COMPARED_ROWS))
    screen.line(f"{agreement.equal} of {agreement.rows} predictions are equal, version {agreement.version}")
    if agreement.equal != agreement.rows:
        raise OnnxserveError("the server and mlflow.pyfunc.load_model disagree, which must not happen")
    return []


def _judge(kind: str, flights: pd.DataFrame, place: Place, screen: Screen) -> None:
    for day in sorted(flights[DAY].unique()):
        screen.line(f"{kind} {pd.Timestamp(day).date()}")
