"""An endpoint with a poor model, labelled rows in its inference log, and a project that
trains a better model.
"""

import atexit
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.database import open_store, utc_now
from mlflow_deploy_plugin.core.store.retrainings import Retraining, Retrainings
from mlflow_deploy_plugin.core.store.tables import RetrainingFigures
from mlflow_deploy_plugin.serve.inference_log.labels import LABELS, Label, labels_table
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.result import MonitorResult, State
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
    def retrainings(self) -> Retrainings:
        return Retrainings(self.deployments.store)

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def context(self) -> RetrainingContext:
        return RetrainingContext(self.deployments, "controller@here")

    def spec(self, **fields: Any) -> MonitorSpec:
        retrain = {"project": str(self.project), "env_manager": "local", **fields}
        return MonitorSpec.model_validate(
            {"kind": "performance", "require": ["accuracy>=0.9"], "retrain": retrain}
        )

    def monitor(self, name: str = "accuracy", **fields: Any) -> None:
        """Give the endpoint a monitor with this `retrain`."""
        retrain = {"project": str(self.project), "env_manager": "local", **fields}
        config = {f"monitors.{name}.retrain.{field}": value for field, value in retrain.items()}
        config |= {
            f"monitors.{name}.kind": "performance",
            f"monitors.{name}.require": "accuracy>=0.9",
        }
        self._change(config)

    def serve_model(self, name: str) -> None:
        """Let the endpoint serve another registered model."""
        client = MlflowClient()
        client.create_registered_model(name)
        client.create_model_version(name, (self.project / "models" / "better").as_uri())
        self._change({f"variants.{ENDPOINT}.model": f"models:/{name}/1"})

    def divide_traffic(self) -> None:
        """Roll out a version that is not the candidate."""
        stored = self.deployments.store.endpoint(ENDPOINT)
        assert stored is not None
        spec = add_variant(stored.spec, "candidate", f"models:/{MODEL}/1")
        config = {"variants.candidate.weight": 10, f"variants.{ENDPOINT}.weight": 90}
        self.deployments.store.replace_spec(apply_config(spec, config))
        uri = f"models:/{MODEL}/1"
        wish = {
            "to_uri": uri,
            "model": MODEL,
            "version": "1",
            "before_uri": uri,
            "before_version": "1",
        }
        wish |= {
            "endpoint": ENDPOINT,
            "main": ENDPOINT,
            "candidate": "candidate",
            "shadow": "",
            "kind": "pinned",
        }
        wish |= {"selector": "", "abort_on": "", "actor": "ada", "why": ""}
        plan = wish | {"steps": [10, 100], "every": 60.0, "min_requests": 1}
        self.deployments.store.add_rollout(ENDPOINT, plan, "baking")

    def _change(self, config: dict[str, Any]) -> None:
        stored = self.deployments.store.endpoint(ENDPOINT)
        assert stored is not None
        self.deployments.store.replace_spec(apply_config(stored.spec, config))

    def result(
        self, state: State = "violated", version: str = "1", window: Window = DAY
    ) -> MonitorResult:
        fields: dict[str, Any] = {
            "state": state,
            "reason": "accuracy is 0.5",
            "rows": 1000,
            "run": self.run(),
        }
        return MonitorResult(
            ENDPOINT, "accuracy", "performance", MODEL, version, "", window, 1, **fields
        )

    def run(self) -> LoggedRun:
        return LoggedRun("run-of-the-report", f"onnxserve/{ENDPOINT}", "http://mlflow/report")

    def latest(self) -> Retraining:
        return self.retrainings.find()[-1]

    def retrain_on_result(
        self, spec: MonitorSpec | None = None, **result: Any
    ) -> Retraining | None:
        """Return the retraining that a result starts, for `spec()` by default."""
        return retrain_on_alarm(self.deployments, self.result(**result), spec or self.spec())

    def at(
        self, state: str, version: str = "", then: str = "propose", **figures: Any
    ) -> Retraining:
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

    def register(self, run_id: str | None = None, model: str = "better") -> str:
        """Register one of the project's models as the next version."""
        folder = self.project / "models" / model
        return str(MlflowClient().create_model_version(MODEL, folder.as_uri(), run_id).version)

    def take(self) -> Retraining:
        """Advance the last retraining by one step."""
        try_step(self.context, self.latest())
        return self.latest()

    def until(self, *states: str, seconds: float = 240.0) -> Retraining:
        """Advance the retraining until it is in one of these states."""
        wait_until(
            lambda: self.take().state in states, seconds, f"the retraining is {' or '.join(states)}"
        )
        return self.latest()

    def capture(
        self,
        rows: int = 600,
        start: datetime = DAY.start,
        seed: int = 1,
        share_labelled: float = 1.0,
        change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda rows: rows,
    ) -> None:
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
            answer = (plain["a"][part] * SERVED[0] + plain["b"][part] * SERVED[1] > 0).astype(
                np.int64
            )
            segment = writer.write({"_event_time": times, **columns, "prediction": answer})
            self._label(segment, times, changed["label"][part][: int(len(part) * share_labelled)])

    def _label(self, segment: str, times: list[datetime], labels: np.ndarray) -> None:
        root = Path(self.deployments.settings.inference_log)
        file = next((root / f"endpoint={ENDPOINT}").rglob(f"{segment}-*.parquet"))
        prediction_id = pq.read_table(file, columns=["_prediction_id"]).column(0)[0].as_py()
        received = int((times[0] + timedelta(days=1)).timestamp() * 1e6)
        entries = [
            Label(prediction_id, row, None, int(label), received)
            for row, label in enumerate(labels)
        ]
        folder = (
            root / LABELS / f"endpoint={ENDPOINT}" / f"date={times[0] + timedelta(days=1):%Y-%m-%d}"
        )
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(labels_table(entries), folder / f"{segment}.parquet")


@cache
def _models() -> Path:
    """Make the models once per process. The caller copies them."""
    folder = Path(tempfile.mkdtemp(prefix="retraining-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    reference = {name: labelled(400, seed=1)[name] for name in COLUMNS}
    for name, weights in (("better", TRUTH), ("worse", (-1.0, 2.0)), ("served", SERVED)):
        write_classifier(folder / name, weights, reference=reference)
    write_classifier(folder / "other columns", TRUTH, columns=("a", "c"))
    return folder


@contextmanager
def retraining_world(folder: Path) -> Iterator[RetrainingWorld]:
    """MLflow must use a store for the folder's models, and ONNXSERVE_HOME must be below
    the folder.
    """
    settings = load_settings()
    store = open_store(settings.store_url, lambda: utc_now() + world.ahead)
    messages: list[str] = []
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


def written(path: Path) -> pa.Table:
    return pq.read_table(path)
