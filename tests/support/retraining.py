"""An endpoint with a poor model, labelled rows in its inference log, and a project that
trains a better model.
"""

import atexit
import shutil
import tempfile
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.database import open_store, utc_now
from mlflow_deploy_plugin.core.store.retrainings import Retrainings
from mlflow_deploy_plugin.core.store.tables import RetrainingFigures
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.result import MonitorResult
from mlflow_deploy_plugin.watch.retraining import process
from mlflow_deploy_plugin.watch.retraining.plan import RetrainingContext
from mlflow_deploy_plugin.watch.retraining.runner import try_step
from mlflow_deploy_plugin.watch.retraining.trigger import retrain_on_alarm
from tests.support.classifiers import COLUMNS, TRUTH, labelled, write_classifier
from tests.support.inference_log import ENDPOINT, MODEL, LogWriter
from tests.support.waiting import wait_until

DAY = Window(datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 2, tzinfo=UTC))
SERVED = (1.0, 2.0)
"""The weights of version 1; `gated.TRUTH` has the correct weights."""

_MLPROJECT = """\
name: toy
entry_points:
  train:
    parameters:
      mode: {type: string, default: full}
      data: {type: string, default: ""}
      base_model: {type: string, default: ""}
      registered_model: {type: string, default: ""}
      does: {type: string, default: better}
    command: python train.py {mode} {data} {base_model} {registered_model} {does}
"""
_TRAIN = """\
import os, shutil, sys, time
from pathlib import Path
mode, data, base_model, registered_model, does = sys.argv[1:]
print("learns", Path(data).name, "as", mode, flush=True)
if does == "fail":
    print("Error: the data make no sense", flush=True)
    sys.exit(3)
late = time.monotonic() + 300  \
# a test run that is killed ends nothing: this and its heartbeat would stay for ever
while does == "hang" or (does == "wait" and not Path("go").exists()):
    if time.monotonic() > late:
        sys.exit("nobody has waited for this training")
    time.sleep(0.05)
if does != "nothing":
    from mlflow import MlflowClient
    folder = Path("models") / ("worse" if does == "worse" else "better")
    MlflowClient().create_model_version(registered_model, folder.absolute().as_uri(), \
os.environ["MLFLOW_RUN_ID"])
"""


@dataclass
class RetrainingWorld:
    """The store, the registry and the inference log of one test, without a server."""

    folder: Path
    deployments: Deployments
    said: list[str]
    ahead: timedelta = timedelta()
    """The time by which the store's clock is ahead."""

    @property
    def retrainings(self):
        return Retrainings(self.deployments.store)

    @property
    def project(self):
        return self.folder / "project"

    @property
    def context(self):
        return RetrainingContext(self.deployments, "controller@here")

    def spec(self, **fields):
        retrain = {"project": str(self.project), "env_manager": "local", **fields}
        return MonitorSpec.model_validate(
            {"kind": "performance", "require": ["accuracy>=0.9"], "retrain": retrain}
        )

    def monitor(self, name="accuracy", **fields):
        """Give the endpoint a monitor with this `retrain`."""
        retrain = {"project": str(self.project), "env_manager": "local", **fields}
        config = {f"monitors.{name}.retrain.{field}": value for field, value in retrain.items()}
        config |= {
            f"monitors.{name}.kind": "performance",
            f"monitors.{name}.require": "accuracy>=0.9",
        }
        self._change(config)

    def serve_model(self, name):
        """Let the endpoint serve another registered model."""
        client = MlflowClient()
        client.create_registered_model(name)
        client.create_model_version(name, (self.project / "models" / "better").as_uri())
        self._change({f"variants.{ENDPOINT}.model": f"models:/{name}/1"})

    def divide_traffic(self):
        """Roll out a version that is not the candidate."""
        stored = self.deployments.store.endpoint(ENDPOINT)
        assert stored is not None
        spec = add_variant(stored.spec, "candidate", f"models:/{MODEL}/1")
        config = {"variants.candidate.weight": 10, f"variants.{ENDPOINT}.weight": 90}
        self.deployments.store.replace_spec(apply_config(spec, config))
        uri = f"models:/{MODEL}/1"
        wish = {"to_uri": uri, "model": MODEL, "version": "1", "actor": "ada"}
        wish |= {"before_uri": uri, "before_version": "1", "endpoint": ENDPOINT, "main": ENDPOINT}
        wish |= {"candidate": "candidate", "kind": "pinned"}
        wish |= dict.fromkeys(("shadow", "selector", "abort_on", "why"), "")
        plan = wish | {"steps": [10, 100], "every": 60.0, "min_requests": 1}
        self.deployments.store.add_rollout(ENDPOINT, plan, "baking")

    def _change(self, config):
        stored = self.deployments.store.endpoint(ENDPOINT)
        assert stored is not None
        self.deployments.store.replace_spec(apply_config(stored.spec, config))

    def result(self, state="violated", window=DAY):
        run = LoggedRun("run-of-the-report", f"onnxserve/{ENDPOINT}", "http://mlflow/report")
        fields = {"state": state, "reason": "accuracy is 0.5", "rows": 1000}
        return MonitorResult(
            ENDPOINT, "accuracy", "performance", MODEL, "1", "", window, 1, **fields, run=run
        )

    def latest(self):
        return self.retrainings.find()[-1]

    def retrain_on_result(self, spec=None, **result):
        """Return the retraining that a result starts, for `spec()` by default."""
        return retrain_on_alarm(self.deployments, self.result(**result), spec or self.spec())

    def at(self, state, version="", then="propose", **figures):
        """Return a retraining in this state, without running a project."""
        assert self.retrain_on_result(self.spec(then=then)) is not None
        run_id = ""
        if state != "waiting":
            experiment = MlflowClient().create_experiment("trainings")
            run_id = MlflowClient().create_run(experiment).info.run_id
        all_figures = RetrainingFigures(
            **{"attempt": 1, "host": process.host(), "started_at": utc_now(), **figures}
        )
        written = self.retrainings.update(
            replace(self.latest(), state=state, version=version, run_id=run_id, figures=all_figures)
        )
        assert written is not None
        return written

    def register(self, run_id=None):
        """Register the better model as the next version."""
        folder = self.project / "models" / "better"
        return str(MlflowClient().create_model_version(MODEL, folder.as_uri(), run_id).version)

    def take(self):
        """Advance the last retraining by one step."""
        try_step(self.context, self.latest())
        return self.latest()

    def until(self, *states, seconds=240.0):
        """Advance the retraining until it is in one of these states."""
        wait_until(
            lambda: self.take().state in states, seconds, f"the retraining is {' or '.join(states)}"
        )
        return self.latest()

    def capture(
        self,
        rows=600,
        start=DAY.start,
        seed=1,
        share_labelled=1.0,
        change=lambda rows: rows,
    ):
        """Write the rows of a day, with one request every four hours, the answers of
        version 1 and the labels.
        """
        writer = LogWriter(Path(self.deployments.settings.inference_log))
        plain = labelled(rows, seed=seed)
        changed = change(plain)
        for place, part in enumerate(np.array_split(np.arange(rows), 6)):
            times = [
                start + timedelta(hours=4 * place, seconds=float(second))
                for second in range(len(part))
            ]
            columns = {name: changed[name][part] for name in COLUMNS}
            score = plain["a"][part] * SERVED[0] + plain["b"][part] * SERVED[1]
            answer = (score > 0).astype(np.int64)
            segment = writer.write({"_event_time": times, **columns, "prediction": answer})
            self._label(segment, times, changed["label"][part][: int(len(part) * share_labelled)])

    def _label(self, segment, times, labels):
        root = Path(self.deployments.settings.inference_log)
        file = next((root / f"endpoint={ENDPOINT}").rglob(f"{segment}-*.parquet"))
        prediction_id = pq.read_table(file, columns=["_prediction_id"]).column(0)[0].as_py()
        received = times[0] + timedelta(days=1)
        entries = [
            Label(prediction_id, row, None, int(label), int(received.timestamp() * 1e6))
            for row, label in enumerate(labels)
        ]
        LogWriter(root).label(*entries, day=f"{received:%F}", name=segment)


@cache
def _models():
    """Make the models once per process. The caller copies them."""
    folder = Path(tempfile.mkdtemp(prefix="retraining-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    reference = {name: labelled(400, seed=1)[name] for name in COLUMNS}
    for name, weights in (("better", TRUTH), ("worse", (-1.0, 2.0)), ("served", SERVED)):
        write_classifier(folder / name, weights, reference=reference)
    return folder


@contextmanager
def retraining_world(folder):
    """MLflow must use a store for the folder's models, and ONNXSERVE_HOME must be below
    the folder.
    """
    settings = load_settings()
    store = open_store(settings.store_url, lambda: utc_now() + world.ahead)
    messages = []
    world = RetrainingWorld(folder, Deployments(store, settings, messages.append), messages)
    world.project.mkdir()
    (world.project / "MLproject").write_text(_MLPROJECT)
    (world.project / "train.py").write_text(textwrap.dedent(_TRAIN))
    shutil.copytree(_models(), world.project / "models")
    client = MlflowClient()
    client.create_registered_model(MODEL)
    client.create_model_version(MODEL, (world.project / "models" / "served").as_uri())
    client.set_registered_model_alias(MODEL, "champion", "1")
    store.add_endpoint("onnxserve", new_endpoint(ENDPOINT, f"models:/{MODEL}@champion"))
    try:
        yield world
    finally:
        store.close()


def written(path):
    return pq.read_table(path)
