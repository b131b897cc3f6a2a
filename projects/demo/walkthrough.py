"""The steps of the demo in order (wrap, deploy, watch and promote),
and their output.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.watch.result import MonitorResult
from projects.demo import steps
from projects.demo.mlflow_server import mlflow_url, start_mlflow, stop_mlflow
from projects.demo.workspace import Workspace
from projects.flight_delay.data import load_flights, split, summer_days
from projects.flight_delay.deploy import deploy
from projects.flight_delay.traffic import send
from projects.flight_delay.train import MODEL_NAME
from projects.model_runs import parity_line


class StepPrinter:
    """A printer of numbered steps with the seconds since the start, progress lines and
    a table, without buffering.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._steps = steps
        self._step = 0

    def step(self, title: str) -> None:
        self._step += 1
        print(f"\n[{self._step}/{self._steps}] {self.seconds():3.0f} s  {title}", flush=True)

    def line(self, text: str) -> None:
        for part in text.splitlines() or [""]:
            print(f"          {part}", flush=True)

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print two columns. The lines of a second value are indented to its column."""
        width = max(len(name) for name, _ in rows)
        rule = "─" * (
            width + 3 + max(len(line) for _, value in rows for line in value.splitlines())
        )
        print(f"\n{rule}", flush=True)
        for name, value in rows:
            for label, line in zip(
                (name, *[""] * value.count("\n")),
                value.splitlines(),
                strict=True,
            ):
                print(f"{label:{width}}   {line}")
        print(rule, flush=True)

    def seconds(self) -> float:
        return self._clock() - self._start


SEED = 7
FIRST = {"seed": SEED, "max_iter": 60, "learning_rate": 0.1}
SECOND = {"seed": SEED, "max_iter": 90, "learning_rate": 0.15}
STEPS = 9
_COMPARED_ROWS = 500


@dataclass(frozen=True)
class Watched:
    """Twenty days of traffic.

    Attributes:
        flights: the flights in the order of sending.
        predictions: [N] the predictions of the first version.
        calm, summer: the verdicts per day.
    """

    flights: pd.DataFrame
    predictions: np.ndarray
    calm: list[MonitorResult]
    summer: list[MonitorResult]


@dataclass(frozen=True)
class Promoted:
    """The second version at the same URL.

    Attributes:
        seconds: the time from the change of the stage to the first prediction.
        changed: the number of flights whose prediction differs from the first version.
    """

    version: steps.Version
    seconds: float
    agreement: steps.Agreement
    changed: int


def stop(workspace: Workspace, printer: StepPrinter) -> bool:
    """Stop the servers of an earlier run of the demo. Return True if a server was
    running.
    """
    workspace.check()
    workspace.use(mlflow_url(workspace))
    deployed = workspace.onnxserve_home.exists() and steps.undeploy_all(printer.line) > 0
    return stop_mlflow(workspace) or deployed


def run_walkthrough(workspace: Workspace, printer: StepPrinter) -> list[tuple[str, str]]:
    """Run every step, and return the rows of the final table.

    Raises:
        OnnxserveError: a step failed; the message is for the user.
    """
    printer.step("An MLflow server with its UI")
    if stop(workspace, printer):
        printer.line("stopped the servers of an earlier run")
    workspace.empty()
    url = start_mlflow(workspace)
    workspace.use(url)
    printer.line(f"{url}   (SQLite and artifacts in {workspace.home})")

    first = _wrap(printer)
    server = _deploy(first, printer)
    watched = _watch(server, printer)
    promoted = _promote(server, first, watched, printer)
    return [
        (
            "Model",
            f"{MODEL_NAME}, validation ROC AUC: {_quality(first)}, {_quality(promoted.version)}",
        ),
        ("", steps.version_link(url, promoted.version)),
        ("Parity", parity_line(first.parity, first.metrics).removeprefix("parity ")),
        ("Calm days judged as drift", _drifted(watched.calm)),
        ("", _report(workspace, "calm", watched.calm, "no drift")),
        ("Summer days judged as drift", _drifted(watched.summer)),
        ("", _report(workspace, "summer", watched.summer, "drift")),
        *_promotion_rows(promoted),
        ("Took", f"{printer.seconds():.0f} s"),
        ("MLflow", url),
        ("Console", f"{url}/onnxserve"),
        ("Server", f"{server}/invocations"),
    ]


def _wrap(printer: StepPrinter) -> steps.Version:
    printer.step("Train on January to March: mlflow run . -e train")
    version = steps.train(printer.line, **FIRST)
    printer.step(
        f"Parity of version {version.number}: the ONNX form against the scikit-learn pipeline",
    )
    steps.show_parity(version, printer.line)
    return version


def _deploy(version: steps.Version, printer: StepPrinter) -> str:
    printer.step(f"Give version {version.number} the alias {steps.ALIAS}, and deploy the alias")
    steps.promote(version)
    server = str(deploy(steps.DEPLOYMENT, steps.MODEL, workers=1)["url"])
    printer.line(f"{server}   serves version {version.number}")
    return server


def _watch(server: str, printer: StepPrinter) -> Watched:
    printer.step("Send ten calm days that are not in the training data, then ten summer days")
    flights = load_flights()
    calm = split(flights, SEED).calm
    summer = summer_days(flights, SEED)
    traffic = pd.concat([calm, summer])
    answers = send(
        server,
        traffic,
        lambda day, count: printer.line(f"{day.date()}  {count:5,} flights"),
    )
    printer.line(f"{len(answers.table):,} flights answered in {answers.versions.total()} requests")

    printer.step("Judge each of the twenty days against the training days")
    steps.add_monitor()
    printer.line("ten calm days")
    calm_results = steps.judge_days(calm, printer.line)
    printer.line("ten summer days")
    summer_results = steps.judge_days(summer, printer.line)
    return Watched(traffic, answers.table["prediction"].to_numpy(), calm_results, summer_results)


def _promote(server: str, first: steps.Version, watched: Watched, printer: StepPrinter) -> Promoted:
    printer.step("Train a second version with more trees and a higher learning rate")
    second = steps.train(printer.line, **SECOND)

    printer.step(f"Promote version {second.number} and serve it at the same URL")
    steps.promote(second)
    seconds, requests = steps.wait_until_served(server, watched.flights.head(1), second)
    printer.line(
        f"X-Model-Version: {second.number} after {seconds:.1f} s; {requests} requests meanwhile, "
        "none failed",
    )

    printer.step("The model in this process and on the server, on the same flights")
    chosen = slice(None, None, len(watched.flights) // _COMPARED_ROWS)
    agreement = steps.compare_with_server(server, watched.flights.iloc[chosen])
    printer.line(
        f"{agreement.equal} of {agreement.rows} predictions are equal, version {agreement.version}",
    )
    if agreement.equal != agreement.rows:
        raise OnnxserveError(
            f"the server and {agreement.loader} disagree, which must not happen",
        )
    changed = int((watched.predictions[chosen] != agreement.served).sum())
    printer.line(f"version {first.number} predicted {changed} of these flights differently")
    return Promoted(second, seconds, agreement, changed)


def _promotion_rows(promoted: Promoted) -> list[tuple[str, str]]:
    number = promoted.version.number
    agreement = promoted.agreement
    return [
        (
            "Promotion",
            (
                f"version {number} was served {promoted.seconds:.1f} s after the alias moved, no "
                "request failed"
            ),
        ),
        (
            "",
            (
                f"it predicts {promoted.changed} of {agreement.rows} flights differently from the "
                "first version"
            ),
        ),
        (
            "Agreement",
            (f"{agreement.equal} of {agreement.rows} predictions are equal to {agreement.loader}"),
        ),
    ]


def _quality(version: steps.Version) -> str:
    return f"{version.metrics['validation_roc_auc']:.3f} (version {version.number})"


def _drifted(results: list[MonitorResult]) -> str:
    return f"{sum(result.state == 'drift' for result in results)} of {len(results)}"


def _report(workspace: Workspace, kind: str, results: list[MonitorResult], state: str) -> str:
    """Return the URLs of a report of this kind: its run in MLflow's UI, and a file."""
    page = workspace.reports / f"{kind}.html"
    result = steps.keep_report(results, state, page)
    if result:
        return f"{result.run.url}\n{page.as_uri()}"
    return f"no day was judged {state!r}"
