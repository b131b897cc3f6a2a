"""Write what this version of onnxserve stores: a model, a store, specs, a policy, state
files, and a log.

    python -m tests.stored.write 0.1.0

Run this script once per release, with the version as the name of a new folder, and
commit the folder. Never run it into an existing folder: the folders show that a newer
version reads the files of every older version. The files come from a real server, real
judgements, a rollout, a retraining and a promotion, which takes about two minutes.

If the release has new fields of specs or policies, add them to `documents.py` first.
Older folders keep their files.
"""

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import mlflow
import numpy as np
import pandas as pd
import requests
from mlflow import MlflowClient
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import onnxserve
from mlflow_deploy_plugin.core.registry.model_files import version_digest
from mlflow_deploy_plugin.core.registry.policy import choose_policy, parse_policy
from mlflow_deploy_plugin.core.registry.transitions import StageOrAlias
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import load_specs
from mlflow_deploy_plugin.core.statedir.files import CONTROL, FOLLOWED, WANTED
from mlflow_deploy_plugin.core.store.alerts import Alerts, Silences
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.keys import ApiKeys
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.retrainings import Retrainings
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.promote.gate.approvals import (
    Person,
    approve,
    request_promotion,
    subject_of,
)
from mlflow_deploy_plugin.promote.gate.promotion import promote
from mlflow_deploy_plugin.promote.rollouts.commands import (
    RolloutRequest,
    command_rollout,
    start_rollout,
)
from mlflow_deploy_plugin.promote.rollouts.controller import RolloutActions, RolloutController
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.unapproved import UnapprovedAnswer
from mlflow_deploy_plugin.watch.alerts.record import end_alert, record_failure
from mlflow_deploy_plugin.watch.monitors.evaluation import judge_and_log
from mlflow_deploy_plugin.watch.monitors.manual_runs import (
    find_monitor,
    run_due,
    run_window,
    wait_until_shipped,
)
from mlflow_deploy_plugin.watch.retraining.plan import RetrainingContext
from mlflow_deploy_plugin.watch.retraining.runner import try_step
from tests.stored.contents import (
    ENDPOINT,
    MODEL,
    as_json,
    load_dump,
    log_contents,
    model_contents,
    reference_contents,
    state_contents,
    store_contents,
)
from tests.stored.documents import POLICY, PROVIDERS, SPEC, unset_fields
from tests.support.clocks import Clock
from tests.support.waiting import free_port, wait_until

STORED = Path(__file__).parent
BEGIN = datetime(2026, 11, 2, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
SERVED_FOLDER = "/srv/onnxserve"
"""The folder that replaces the temporary folder in stored paths."""
SECONDS = 120.0
EXAMPLES = {
    "distance": [120.0, 900.5, None, 2400.0, 15.25],
    "hour": [6, 18, 23, 12, 0],
    "carrier": ["AA", "UA", "DL", "nobody", "AA"],
}
MONITORS = {
    "monitors.daily.kind": "drift",
    "monitors.daily.min_rows": "100",
    "monitors.daily.independent_rows": "true",
    "monitors.daily.retrain.project": "project",
    "monitors.daily.retrain.env_manager": "local",
    "monitors.accuracy.kind": "performance",
    "monitors.accuracy.require": "accuracy>=0.6",
    "monitors.accuracy.min_rows": "100",
    "monitors.level.kind": "service_level",
    "monitors.level.require": "error_rate<=1%",
}
CHECKS = "skip: [evaluation, robustness, budget]\n"
APPROVALS = f"{CHECKS}approvals: {{count: 2, evaluation: optional}}\n"
MLPROJECT = """\
name: flights
entry_points:
  train:
    parameters:
      mode: {type: string, default: full}
      data: {type: string, default: ""}
      base_model: {type: string, default: ""}
      registered_model: {type: string, default: ""}
    command: python train.py {registered_model}
"""
TRAIN = """\
import os
import sys
from pathlib import Path

from mlflow import MlflowClient

folder = Path("../models/3").resolve()
MlflowClient().create_model_version(sys.argv[1], folder.as_uri(), os.environ["MLFLOW_RUN_ID"])
"""


def flights(count, seed, shift=0.0):
    """Return rows and their labels.
    A shift of 2000 is a strong drift of the distance.
    """
    random = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "distance": np.round(random.normal(900 + shift, 300, count), 1),
            "hour": random.integers(0, 24, count),
            "carrier": random.choice(["AA", "DL", "UA"], count),
        }
    )
    score = (rows.hour - 12) + 4 * (rows.carrier == "UA") + random.normal(0, 2, count)
    return rows, np.where(score > 0, "late", "on time")


def pipeline(strength):
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    texts = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer(
        [("numbers", numbers, ["distance", "hour"]), ("texts", texts, ["carrier"])]
    )
    return make_pipeline(columns, LogisticRegression(C=strength)).fit(*flights(500, seed=0))


def save(folder, strength, rows):
    example, _ = flights(rows, seed=1)
    example.loc[0, "distance"] = np.nan
    requirements = ["onnxruntime"]
    onnxserve.save_model(
        pipeline(strength), folder, input_example=example, pip_requirements=requirements
    )


@contextlib.contextmanager
def workspace():
    """Yield a temporary folder with an empty MLflow store and an empty ONNXSERVE_HOME,
    in which ada@laptop works.
    """
    before = Path.cwd()
    with (
        tempfile.TemporaryDirectory(prefix="stored-") as name,
        mock.patch("socket.gethostname", return_value="laptop"),
    ):
        folder = Path(name).resolve()
        variables = {
            "LOGNAME": "ada",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "ONNXSERVE_HOME": f"{folder}/home",
            "ONNXSERVE_POLL_SECONDS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        with mock.patch.dict(os.environ, variables):
            mlflow.set_tracking_uri(variables["MLFLOW_TRACKING_URI"])
            os.chdir(folder)
            try:
                yield folder
            finally:
                os.chdir(before)


def register_models(folder):
    """Register versions 1 and 2, and write the project that registers version 3."""
    client = MlflowClient()
    client.create_registered_model(MODEL)
    client.set_registered_model_tag(MODEL, "onnxserve.gate.policy", CHECKS)
    for version, strength in (("1", 0.1), ("2", 1.0), ("3", 2.0)):
        save(folder / "models" / version, strength, rows=600)
        if version != "3":
            client.create_model_version(MODEL, (folder / "models" / version).as_uri())
    project = folder / "project"
    project.mkdir()
    (project / "MLproject").write_text(MLPROJECT)
    (project / "train.py").write_text(TRAIN)
    return client


def capture_days(url):
    """Send two days of requests, of which the second has a drift, and the labels of all
    requests.
    """
    client = onnxserve.Client(url, ENDPOINT)
    for hour in range(48):
        rows, labels = flights(10, seed=100 + hour, shift=2000.0 if hour >= 24 else 0.0)
        prediction = client.predict(
            rows, event_time=BEGIN + hour * HOUR, request_id=f"request-{hour}"
        )
        client.feedback(prediction, labels.tolist())


def judge_days(deployments, clock):
    """Judge the days by all monitors, with an alert and a retraining.

    Afterwards a person judges the second day again, accepts its alarm, pauses a monitor
    and silences another one.
    """
    store = deployments.store
    monitors = Monitors(store)
    for monitor in ("daily", "accuracy", "level"):
        list(
            run_due(deployments, find_monitor(deployments, ENDPOINT, monitor), deployments.progress)
        )
    clock.now += HOUR
    second = Window(BEGIN + DAY, BEGIN + 2 * DAY)
    run_window(deployments, find_monitor(deployments, ENDPOINT, "daily"), second, judge_and_log)
    baseline = {"distance": second.start.isoformat()}
    monitors.accept(ENDPOINT, "daily", baseline, "there are new routes", (second.start, second.end))
    monitors.pause(ENDPOINT, "level", why="the gateway measures this")
    monitors.add(ENDPOINT, "level", second.end, second.end + DAY)
    failed = monitors.add(ENDPOINT, "accuracy", second.end, second.end + DAY)
    monitors.close(failed, "the labels cannot be read")
    record_failure(store, deployments.settings, ENDPOINT, "accuracy", "the labels cannot be read")
    end_alert(store, Alerts(store).firing(ENDPOINT)[-1], "the labels can be read")
    Silences(store).add(ENDPOINT, "accuracy", 7 * DAY, why="the labels are late")


def retrain(deployments):
    """Take all steps of the retraining that the drift has started. It proposes version
    3.
    """
    context = RetrainingContext(deployments, "controller@laptop")
    retrainings = Retrainings(deployments.store)

    def has_ended():
        (last,) = retrainings.find()
        if last.is_live:
            try_step(context, last)
        return not last.is_live

    wait_until(has_ended, SECONDS, "the end of the retraining")


def roll_out(deployments, url, request, has_come):
    """Start a rollout while requests arrive, and run it until `has_come` is true."""
    rollout = start_rollout(deployments, ENDPOINT, request)
    store = deployments.store
    actions = RolloutActions(deployments, store.user, deployments.progress)
    controller = RolloutController(store, actions, "controller@laptop", deployments.place(ENDPOINT))
    ended = threading.Event()
    thread = threading.Thread(target=controller.run, args=(ended,))
    thread.start()
    client = onnxserve.Client(url, ENDPOINT)
    rows, _ = flights(1, seed=7)

    def is_over():
        client.predict(rows, event_time=BEGIN + 3 * DAY)
        current = store.rollout(rollout.id)
        return current is not None and has_come(current)

    try:
        wait_until(is_over, SECONDS, "the rollout")
    finally:
        ended.set()
        thread.join()


def roll_out_twice(deployments, url):
    """Roll out version 2, and then version 1 up to a pause in the first step, with
    evidence of all kinds.
    """
    first = RolloutRequest(
        "2", steps="50,100", every="1s", abort_on="error_rate>20%", min_requests=5, why="it is new"
    )
    roll_out(deployments, url, first, lambda rollout: not rollout.is_live)
    criteria = "error_rate>20%,p99>50x,disagreement>90%"
    second = RolloutRequest("1", steps="50,100", every="1h", abort_on=criteria, min_requests=1000)
    roll_out(
        deployments,
        url,
        second,
        lambda rollout: rollout.figures.get("shadow", {}).get("same", 0) > 0,
    )
    command_rollout(deployments, ENDPOINT, "pause", "it is Friday")


def approve_versions(store, client, clock):
    """Promote version 3 with two approvals, and request the promotion of version 4,
    which one person approves.
    """
    folder = client.get_model_version(MODEL, "2").source
    client.create_model_version(MODEL, folder)
    client.set_registered_model_tag(MODEL, "onnxserve.gate.policy", APPROVALS)
    people = [Person(name, frozenset({"risk"}), True) for name in ("eva", "leo")]
    for version, approvers in (("3", people), ("4", people[:1])):
        entry = client.get_model_version(MODEL, version)
        detail = {"created": entry.creation_timestamp, "authors": ["ben"]}
        store.record("register", actor="ben", model=MODEL, version=version, detail=detail)
        promote(MODEL, version, "@champion", store=store, is_request=True)
        policy = choose_policy(MODEL).policy
        place = StageOrAlias(alias="champion")
        subject = subject_of(entry, place, version_digest(f"models:/{MODEL}/{version}"), policy)
        request, _ = request_promotion(
            store, policy, subject, Person("ben", frozenset(), True), "it is better"
        )
        for person in approvers:
            clock.now += HOUR
            approve(store, policy, subject, person, request.report_digest)
    promote(MODEL, "3", "@champion", store=store)
    promote(MODEL, "2", "Staging", store=store)
    _record_moves_of_server(store)


def _record_moves_of_server(store):
    """Record moves as MLflow's server does, which also records the digests of the
    files, and count the changes.
    """
    for version, place, action in (
        ("2", "@champion", "alias"),
        ("3", "@champion", "alias"),
        ("1", "Archived", "transition"),
    ):
        detail = move_detail(place, "", version_digest(f"models:/{MODEL}/{version}"))
        store.record(action, actor="eva", model=MODEL, version=version, after=place, detail=detail)
    store.count_change(MODEL)


def make_keys(store):
    keys = ApiKeys(store)
    keys.create("robot", ["infer", "read"], [ENDPOINT], limits=["1000/hour", "10/second"])
    keys.create("dashboard", ["read"], lifetime=90 * DAY)
    keys.create("lost", ["admin"])
    keys.revoke("lost", why="it was in a log")


def add_unapproved(store):
    """Add an endpoint on Kubernetes whose version 2 answers without the approvals that
    the model requires.
    """
    since = store.now()
    answer = UnapprovedAnswer(
        model_uri=f"models:/{MODEL}/2",
        model=MODEL,
        version="2",
        places=("@champion",),
        share=10.0,
        since=since.isoformat(),
        until=(since + HOUR).isoformat(),
    )
    store.add_endpoint(
        "onnxserve:/kubernetes/models", load_specs(SPEC)[0], unapproved=[asdict(answer)]
    )


def load_more(url):
    """Load two endpoints that are not in the spec, and unload one of them, which
    control.json remembers.
    """
    load = {"parameters": {"model_uri": f"models:/{MODEL}/1"}}
    for name, action, body in (
        ("extra", "load", load),
        ("spare", "load", load),
        ("spare", "unload", {}),
    ):
        response = requests.post(
            f"{url}/v2/repository/models/{name}/{action}", json=body, timeout=SECONDS
        )
        response.raise_for_status()


def write_store_and_server(folder, work):
    """Write the store's dump, the state files and an hour of the log. Return the last
    time of the store's clock.
    """
    clock = Clock(BEGIN)
    settings = load_settings()
    store = open_store(settings.store_url, clock)
    deployments = Deployments(store, settings, print)
    client = register_models(work)
    promote(MODEL, "1", "@champion", store=store)
    config = {**MONITORS, "server.port": str(free_port()), "server.model_control_mode": "explicit"}
    deployments.create("champion", f"models:/{MODEL}@champion", config, ENDPOINT)
    try:
        shadow = {"variants.challenger.shadow": "true"}
        deployments.add(ENDPOINT, "challenger", f"models:/{MODEL}/2", shadow, why="a comparison")
        make_keys(store)
        observed = deployments.get_endpoint(ENDPOINT)
        url = observed.observation.url
        assert url is not None
        capture_days(url)
        assert wait_until_shipped(settings.state_dir(ENDPOINT), SECONDS)
        clock.now = BEGIN + 2 * DAY + HOUR
        judge_days(deployments, clock)
        retrain(deployments)
        roll_out_twice(deployments, url)
        clock.now += HOUR
        approve_versions(store, client, clock)
        load_more(url)
        add_unapproved(store)
        copy_server_files(folder, work)
        store.close()
        write_dump(work, folder)
    finally:
        deployments.delete_endpoint(ENDPOINT)
    return clock.now


def copy_server_files(folder, work):
    state = load_settings().state_dir(ENDPOINT)
    (folder / "state").mkdir()
    for name in (WANTED, FOLLOWED, CONTROL):
        (folder / "state" / name).write_text(
            (state / name).read_text().replace(str(work), SERVED_FOLDER) + "\n"
        )
    log = Path(load_settings().inference_log)
    hour = next(log.glob(f"endpoint={ENDPOINT}/date=*/hour=*"))
    shutil.copytree(hour, folder / "log" / hour.relative_to(log))
    shutil.copytree(log / "_labels", folder / "log" / "_labels")


def write_dump(work, folder):
    """Write the store as SQL, without the white space that SQLAlchemy writes at the
    ends of lines of the schema.
    """
    database = load_settings().store_url.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        text = "\n".join(connection.iterdump())
    lines = text.replace(str(work), SERVED_FOLDER).splitlines()
    stripped = (line.rstrip() if line.startswith(("\t", "CREATE")) else line for line in lines)
    (folder / "store.sql").write_text("\n".join(stripped) + "\n")


def write_documents(folder):
    """Write the specs and the policy, if they set every field."""
    specs = [*load_specs(SPEC), *load_specs(PROVIDERS)]
    if unset := unset_fields(*specs, parse_policy(POLICY, "POLICY")):
        sys.exit(f"documents.py does not set {', '.join(sorted(unset))}")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "spec-providers.yaml").write_text(PROVIDERS)
    (folder / "policy.yaml").write_text(POLICY)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name",
        help=f"the version, which is the name of the new folder; this version is {__version__}",
    )
    folder = STORED / parser.parse_args().name
    if folder.exists():
        sys.exit(f"{folder} exists already, and its files must not change")
    folder.mkdir()
    write_documents(folder)
    with workspace() as work:
        save(folder / "model", strength=1.0, rows=200)
        now = write_store_and_server(folder, work)
        expected = {
            "version": __version__,
            "now": now,
            "examples": EXAMPLES,
            "policy_digest": parse_policy(POLICY, "POLICY").digest,
            "model": model_contents(folder / "model", EXAMPLES),
            "reference": reference_contents(folder / "model", work / "state"),
            "store": store_contents(load_dump(folder / "store.sql", work / "loaded.db"), now),
            "state": state_contents(folder / "state"),
            "log": log_contents(folder / "log"),
        }
    (folder / "expected.json").write_text(json.dumps(as_json(expected), indent=1) + "\n")


if __name__ == "__main__":
    main()
