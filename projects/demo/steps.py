"""The steps of the demo, each a function of MLflow, the deployment client and the
flights.

The steps use only public interfaces: `mlflow run` and the Python API of MLflow,
`get_deploy_client("onnxserve")`, HTTP, and a drift monitor.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import requests
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client

from mlflow_deploy_plugin.core.errors import NotReady, OnnxserveError
from mlflow_deploy_plugin.core.model_code import model_code_is_allowed
from mlflow_deploy_plugin.core.registry.window_runs import PAGE as REPORT
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.result import MonitorResult
from mlflow_deploy_plugin.wrap.flavor.save import PyfuncModel, load_model
from projects.demo.workspace import CHECKOUT
from projects.flight_delay.data import DAY, FEATURES
from projects.flight_delay.drift import describe, judge_window
from projects.flight_delay.traffic import request_body
from projects.flight_delay.train import MODEL_NAME
from projects.model_runs import parity_line

EXPERIMENT = "flight-delay"
DEPLOYMENT = "flights"
ALIAS = "champion"
MODEL = f"models:/{MODEL_NAME}@{ALIAS}"
FOLLOWED_SECONDS = 60.0
_POLL_SECONDS = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Version:
    """A registered version of the model.

    Attributes:
        parity: proven, warned or no-original.
        metrics: the metrics of the run that trained it.
    """

    number: str
    run_id: str
    parity: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Agreement:
    """The agreement of a model in this process and the server on the same flights.

    Attributes:
        loader: the function that loaded the model.
        equal: the number of flights with equal predictions.
        served: [rows] the predictions of the server.
        version: the version that predicted.
    """

    loader: str
    rows: int
    equal: int
    served: np.ndarray
    version: str


def train(say: Say, **parameters: float) -> Version:
    """Run `mlflow run . -e train`, and print its progress lines.

    Raises:
        OnnxserveError: the training failed; the message contains the end of its output.
    """
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "run",
        str(CHECKOUT),
        "-e",
        "train",
        "--env-manager",
        "local",
    ]
    command += ["--experiment-name", EXPERIMENT]
    for name, value in parameters.items():
        command += ["-P", f"{name}={value}"]
    lines = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                if _is_progress(line):
                    say(lines[-1])
        except BaseException:  # After Ctrl-C, the training would continue as a grandchild.
            os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode != 0:
        raise OnnxserveError("training failed:\n" + "\n".join(lines[-20:]))
    return newest_version()


def _is_progress(line: str) -> bool:
    """Return True for an output line of train.py, and False for log lines and warnings
    of libraries.
    """
    return line.startswith(
        ("training", "train ", "validation", "converting", "parity", "registered"),
    )


def newest_version() -> Version:
    client = MlflowClient()
    newest = max(
        client.search_model_versions(f"name = '{MODEL_NAME}'"),
        key=lambda version: int(version.version),
    )
    return Version(
        number=str(newest.version),
        run_id=newest.run_id,
        parity=newest.tags.get("onnxserve.parity", "no-original"),
        metrics=client.get_run(newest.run_id).data.metrics,
    )


def show_parity(version: Version, say: Say) -> None:
    """Show the parity proof of the version: its rows, tolerances, and the worst row."""
    say(parity_line(version.parity, version.metrics))
    proof = mlflow.artifacts.load_dict(f"models:/{MODEL_NAME}/{version.number}/parity.json")
    say("rows: " + ", ".join(f"{count:,} {source}" for source, count in proof["sources"].items()))
    for output in proof["outputs"]:
        say(f"tolerance of {output['name']}: {output['tolerance']}")
    worst = proof["worst_rows"][0]
    say(f"worst row: original {worst['original']}, ONNX {worst['onnx']}")


def promote(version: Version) -> None:
    """Give the version the alias, like the model page of MLflow's UI."""
    MlflowClient().set_registered_model_alias(MODEL_NAME, ALIAS, version.number)


def undeploy_all(say: Say) -> int:
    """Delete every deployment of this ONNXSERVE_HOME, and return the number of
    deployments.
    """
    client = get_deploy_client("onnxserve")
    deployments = client.list_deployments()
    for deployment in deployments:
        say(f"stopping the server of {deployment['name']}")
        client.delete_deployment(deployment["name"])
    return len(deployments)


def add_monitor() -> None:
    """Add a monitor to the deployment, like `onnxserve monitor add flights daily …`.
    The console shows its windows.
    """
    config = {"monitors.daily.kind": "drift", "monitors.daily.every": "1d"}
    get_deploy_client("onnxserve").update_endpoint(DEPLOYMENT, config)


def judge_days(flights: pd.DataFrame, say: Say) -> list[MonitorResult]:
    """Run the monitor on each day of the flights, with a verdict and an MLflow run per
    day.
    """
    results = []
    for day in sorted(flights[DAY].unique()):
        start = pd.Timestamp(day).to_pydatetime()
        result = judge_window(DEPLOYMENT, Window(start, start + timedelta(days=1)))
        say(f"{start.date()}  {describe(result)}")
        results.append(result)
    return results


def keep_report(results: list[MonitorResult], state: str, target: Path) -> MonitorResult | None:
    """Copy the Evidently report of the first day with this verdict to the file
    `target`.
    """
    for result in results:
        if result.state == state:
            mlflow.artifacts.download_artifacts(
                run_id=result.run.run_id,
                artifact_path=REPORT,
                dst_path=str(target.parent),
            )
            (target.parent / REPORT).replace(target)
            return result
    return None


def served_version(url: str, flight: pd.DataFrame) -> str:
    """Send a flight to the server, and return the version that predicted."""
    answer = requests.post(
        f"{url}/invocations",
        data=request_body(flight),
        headers={"Content-Type": "application/json"},
        timeout=10,
    )
    if answer.status_code != 200:
        raise NotReady(f"{url} answered {answer.status_code}: {answer.text[:300]}")
    return answer.headers["X-Model-Version"]


def wait_until_served(url: str, flight: pd.DataFrame, version: Version) -> tuple[float, int]:
    """Send requests until this version is served. Return the seconds and the number of
    requests until then.

    Raises:
        NotReady: a request failed, which must not happen, or the version is not served
            in time.
    """
    start = time.monotonic()
    requests_answered = 1
    while served_version(url, flight) != version.number:
        requests_answered += 1
        if time.monotonic() - start > FOLLOWED_SECONDS:
            raise NotReady(
                f"{url} does not serve version {version.number} after {FOLLOWED_SECONDS:.0f} s",
            )
        time.sleep(_POLL_SECONDS)
    return time.monotonic() - start, requests_answered


def compare_with_server(url: str, flights: pd.DataFrame) -> Agreement:
    """Predict the same flights in this process and with the server. If model code is
    switched off, `mlflow.pyfunc.load_model` refuses each model, and onnxserve loads it.
    """
    answer = requests.post(
        f"{url}/invocations",
        data=request_body(flights),
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    answer.raise_for_status()
    served = np.asarray(answer.json()["predictions"])
    if model_code_is_allowed():
        loader = "mlflow.pyfunc.load_model"
        model = mlflow.pyfunc.load_model(MODEL)
    else:
        loader = "mlflow_deploy_plugin.load_model"
        model = PyfuncModel(load_model(MODEL))
    loaded = np.asarray(model.predict(flights[list(FEATURES)]))
    return Agreement(
        loader,
        len(flights),
        int((served == loaded).sum()),
        served,
        answer.headers["X-Model-Version"],
    )


def version_link(url: str, version: Version) -> str:
    return f"{url}/#/models/{MODEL_NAME}/versions/{version.number}"
