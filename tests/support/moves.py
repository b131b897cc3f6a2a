"""Moves of judged versions through MLflow's server, and their events in the audit
trail.
"""

import json
import os
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import requests
from mlflow import MlflowClient

from tests.support.classifiers import write_classifier
from tests.support.console import API
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import DEFAULT_EXPERIMENT
from tests.support.waiting import wait_until

MODEL = "judged"
POLICY = "gated_aliases: [champion, challenger]\ngated_stages: [Production]"
RESTARTS = ("immediate", 0), ("fast", 2), ("immediate", 8)
"""The modes of `pg_ctl`, and the seconds in which PostgreSQL is down."""
_SECONDS = 60


@dataclass(frozen=True)
class Attempt:
    """A request to move a version to a place, and its result.

    Attributes:
        place: a stage, or @ and an alias.
        status: the HTTP status; 0 without an answer.
        is_moved: True if the version has the place after the answer.
    """

    place: str
    version: str
    status: int
    is_moved: bool


@dataclass
class JudgedModel:
    """A model on a server with the gate, which its versions 1 and 2 have passed.
    `extra` is the path of a further file in its folder.
    """

    server: MlflowServer
    extra: str = ""
    session: requests.Session = field(default_factory=requests.Session)

    def register(self):
        """Create the model and both versions, and run the gate on them."""
        client = MlflowClient(self.server.url, self.server.url)
        client.create_registered_model(MODEL, tags={"onnxserve.gate.policy": POLICY})
        run = client.create_run(DEFAULT_EXPERIMENT).info
        folder = write_classifier(self.server.folder / "classifier")
        if self.extra:
            (folder / self.extra).parent.mkdir(exist_ok=True)
            (folder / self.extra).write_text("print('judged')")
        client.log_artifacts(run.run_id, str(folder), "model")
        for version in ("1", "2"):
            client.create_model_version(MODEL, f"{run.artifact_uri}/model", run.run_id)
            judged = self.run("gate", f"models:/{MODEL}/{version}")
            assert judged.returncode == 0, judged.stderr

    def run(self, *arguments):
        """Run `onnxserve` with the settings of the server."""
        command = [self.server.python, "-m", "mlflow_deploy_plugin.cli", *arguments]
        environment = {
            **os.environ,
            **self.server.variables,
            "MLFLOW_TRACKING_URI": self.server.url,
        }
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def holder(self, place):
        """Return the version that has the place, as soon as MLflow answers."""
        model = wait_until(self._registered, 2 * _SECONDS, "MLflow answers")
        held = {f"@{alias['alias']}": alias["version"] for alias in model.get("aliases", ())}
        stages = {entry["current_stage"]: entry["version"] for entry in model["latest_versions"]}
        return str((held | stages).get(place, ""))

    def _registered(self):
        try:
            answer = self.session.get(
                f"{self.server.url}{API}/registered-models/get",
                params={"name": MODEL},
                timeout=_SECONDS,
            )
        except requests.RequestException:
            return None
        return answer.json()["registered_model"] if answer.ok else None

    def move(self, place, version):
        """Return the HTTP status of the request, 0 without an answer."""
        path = "model-versions/transition-stage"
        body = {"name": MODEL, "version": version, "stage": place}
        body["archive_existing_versions"] = True
        if place.startswith("@"):
            path = "registered-models/alias"
            body = {"name": MODEL, "version": version, "alias": place[1:]}
        url = f"{self.server.url}{API}/{path}"
        try:
            return self.session.post(url, json=body, timeout=_SECONDS).status_code
        except requests.RequestException:
            return 0

    def attempt_moves(self, place, count, attempts):
        """Move the version that does not have the place to it, one request after the
        other.
        """
        for _ in range(count):
            version = "2" if self.holder(place) == "1" else "1"
            status = self.move(place, version)
            is_moved = self.holder(place) == version
            attempts.append(Attempt(place, version, status, is_moved))

    def recorded(self):
        """Return the number of events by place and version."""
        history = self.run("audit", "history", "--model", MODEL, "-o", "json")
        assert history.returncode == 0, history.stderr
        events = [
            event
            for event in json.loads(history.stdout)
            if event["action"] in ("alias", "transition")
        ]
        return Counter((event["detail"]["moved"]["place"], event["version"]) for event in events)


@contextmanager
def judged_model(folder, store="", options=(), checkout=None, extra=""):
    """Run a server that signs its events, with the model.

    Args:
        store: the URL of the store; SQLite by default.
        options: options of `mlflow server`.
        checkout: the folder of another checkout whose package the server runs.
        extra: the path of a further file in the folder of the model.
    """
    variables = {
        "ONNXSERVE_HOME": str(folder / "home"),
        "ONNXSERVE_AUDIT_KEY_FILE": str(folder / "key" / "audit.pem"),
    }
    if store:
        variables["ONNXSERVE_STORE_URI"] = store
    if checkout is not None:
        variables["PYTHONPATH"] = str(checkout)
    server = MlflowServer(folder, app="onnxserve", options=options, variables=variables)
    with server.running():
        model = JudgedModel(server, extra)
        model.register()
        yield model


@dataclass(frozen=True)
class MovesReport:
    """The attempts of two clients, compared with the audit trail.

    Attributes:
        statuses: the number of answers by HTTP status; 0 stands for no answer.
        unmoved: the number of answers 200 that moved nothing.
        moved: the number of other answers that moved a version.
        missing: the number of answers 200 that have no event.
        surplus: the number of events that have no answer 200.
        state: the state of the trail: intact, unsigned or changed.
    """

    statuses: dict[int, int]
    unmoved: int
    moved: int
    missing: int
    surplus: int
    state: str

    @property
    def is_complete(self):
        faults = self.unmoved + self.moved + self.missing + self.surplus
        return faults == 0 and self.state == "intact"


def moves_while_restarting(model, database, restarts=3, count=300):
    """Move an alias and a stage by two clients, `count` times together, while the
    database restarts in equal distances. Late events have a minute to be stored.
    """
    attempts = []

    def has_made(due):
        return len(attempts) >= due

    with ThreadPoolExecutor(2) as pool:
        clients = [
            pool.submit(JudgedModel(model.server).attempt_moves, place, count // 2, attempts)
            for place in ("@champion", "Production")
        ]
        for number in range(restarts):
            due = (number + 1) * count // (restarts + 1)
            wait_until(partial(has_made, due), 900, f"{due} moves")
            database.restart(*RESTARTS[number % len(RESTARTS)])
        for client in clients:
            client.result()
    answered = Counter((made.place, made.version) for made in attempts if made.status == 200)
    deadline = time.monotonic() + _SECONDS
    recorded = model.recorded()
    while answered - recorded and time.monotonic() < deadline:
        recorded = model.recorded()
    verified = model.run("audit", "history", "--verify", "-o", "json")
    return MovesReport(
        statuses=dict(Counter(made.status for made in attempts)),
        unmoved=sum(not made.is_moved for made in attempts if made.status == 200),
        moved=sum(made.is_moved for made in attempts if made.status != 200),
        missing=(answered - recorded).total(),
        surplus=(recorded - answered).total(),
        state=json.loads(verified.stdout)["state"],
    )
