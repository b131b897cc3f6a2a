"""The workflow of a model repository, step by step: real trainings, a real MLflow
server, an endpoint under traffic.
"""

import runpy
import shutil
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import requests
import yaml
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client

from tests.support.guides import ROOT
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at
from tests.support.workflows import Workflow

EXAMPLE = ROOT / "projects/model_repository"
WORKFLOW = ROOT / ".github/workflows/model.yaml"
MODEL = "tumours"
pytestmark = pytest.mark.long
JOBS = ("version", "image", "canary", "promote")


@dataclass
class Repository:
    """A clone of the example, whose workflow is run with the inputs of its caller."""

    folder: Path
    home: Path
    is_installed: bool = False

    def push(self, parameters="", **inputs):
        """Run every job and return the steps of each."""
        caller = yaml.safe_load((self.folder / ".github/workflows/model.yaml").read_text())["jobs"][
            "model"
        ]
        quick = {
            "steps": "50,100",
            "every": "1s",
            "min-requests": "20",
            "abort-on": "error_rate>1%,disagreement>20%",
        }
        here = {
            "mlflow-tracking-uri": MlflowClient().tracking_uri,
            "parameters": parameters,
            "image": "",
        }
        call_inputs = {**caller["with"], **here, **quick, **inputs}
        workflow = Workflow(
            WORKFLOW, self.folder, call_inputs, environment={"ONNXSERVE_HOME": str(self.home)}
        )
        installed = self.is_installed  # pip takes up to 40 s to find everything installed
        self.is_installed = True
        return {job: workflow.run(job, ["Install"] if installed else []) for job in JOBS}


@pytest.fixture
def repository(mlflow_server, tmp_path, new_home):
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "repository"))
    with tracking_at(mlflow_server.url):
        try:
            yield Repository(folder, tmp_path / "home")
        finally:
            MlflowClient().delete_registered_model(MODEL)


def test_push_is_gated_and_rolled_out(
    repository,
):
    first = repository.push(endpoint="")  # there is no version yet for a canary

    assert [(step.name, step.status) for step in chain.from_iterable(first.values())] == [
        ("Install", 0),
        ("Test", 0),
        ("Train", 0),
        ("Gate", 0),
        ("Install", 0),
        ("Promote", 0),
    ]
    assert champion() == "1"
    assert mentions((repository.folder / "summary.md").read_text(), MODEL, "version 1: passed")

    client = get_deploy_client("onnxserve")
    url = client.create_deployment(MODEL, f"models:/{MODEL}@champion")["url"]
    try:
        with traffic(url, held_out()) as answers:
            good = repository.push("strength=0.8")
            worse = repository.push("strength=0.000001")
        assert [(step.name, step.status) for step in good["canary"]] == [("Canary", 0)]
        assert set(answers) <= {("1", 200), ("2", 200)}

        assert [(step.name, step.status) for step in worse["version"]][-2:] == [
            ("Train", 0),
            ("Gate", 1),
        ]
        assert worse["version"][-1].error.startswith(
            f"{MODEL} version 3 stays where it is: evaluation"
        )
        assert worse["canary"] == []
        assert champion() == "2"

        with traffic(url, doubtful_rows()):
            bad = repository.push("strength=0.05")
        assert [(step.name, step.status) for step in bad["version"]][-1] == ("Gate", 0)
        (canary,) = bad["canary"]
        assert canary.status == 1
        assert canary.error.startswith(
            f"{MODEL} version 4 is not promoted: {MODEL}: version 2 → 4: rolled back"
        )
        assert champion() == "2"
    finally:
        client.delete_deployment(MODEL)


def champion():
    return str(MlflowClient().get_model_version_by_alias(MODEL, "champion").version)


def held_out():
    return pd.read_csv(EXAMPLE / "held_out.csv").drop(columns="benign")


def doubtful_rows():
    """Return held-out rows for which strengths of 0.8 and 0.05 give different
    predictions.
    """
    fit = runpy.run_path(str(EXAMPLE / "train.py"))["fit"]
    rows = held_out()
    return rows[fit(0.8).predict(rows) != fit(0.05).predict(rows)]


@contextmanager
def traffic(url, rows):
    """Send the rows repeatedly, and count the responses by version and status."""
    ended = threading.Event()
    answers = Counter[tuple[str, int]]()

    def ask():
        session = requests.Session()
        while True:
            for row in rows.to_dict("records"):
                if ended.wait(0.01):
                    return
                answer = session.post(
                    f"{url}/invocations", json={"dataframe_records": [row]}, timeout=30
                )
                answers[answer.headers.get("X-Model-Version", ""), answer.status_code] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        thread.join()
