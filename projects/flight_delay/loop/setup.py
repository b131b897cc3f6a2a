"""The setup of the replay: the first version, an endpoint with its monitors, and a
controller.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.processes.child import Child, signal_process
from mlflow_deploy_plugin.core.registry.connection import child_environment
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from projects.demo.workspace import CHECKOUT

ALIAS = "champion"
DRIFT = "drift"
ACCURACY = "accuracy"
_END_SECONDS = 20.0


@dataclass(frozen=True)
class ReplaySettings:
    """The settings of the replay.

    Attributes:
        endpoint: the name of an endpoint without captured rows.
        model: the registered model, which may be new.
        every: the length of the windows for accuracy, a multiple of `drift_every`.
        drift_every: the length of the windows for drift.
        at_least: the lowest accuracy of a window without an alarm.
        mode: full or incremental.
        max_iter: the number of boosted trees of a version.
        min_requests: the minimum number of requests to a candidate per step of its
            rollout.
        cooldown: the time between two trainings, which is short because the replay
            takes seconds for a week.
    """

    endpoint: str = "flights-replay"
    model: str = "flight-delay-replay"
    every: str = "28d"
    drift_every: str = "7d"
    at_least: float = 0.75
    mode: str = "full"
    max_iter: int = 60
    min_requests: int = 20
    cooldown: str = "1s"

    @property
    def uri(self) -> str:
        return f"models:/{self.model}@{ALIAS}"

    def config(self) -> dict[str, Any]:
        """Return the fields of the endpoint, without its model."""
        drift = f"monitors.{DRIFT}"
        accuracy = f"monitors.{ACCURACY}"
        retrain = {
            "project": str(CHECKOUT),
            "entry_point": "train",
            "mode": self.mode,
            "parameters.max_iter": self.max_iter,
            "env_manager": "local",
            "cooldown": self.cooldown,
            "max_runs": 100,
            "timeout": "20m",
            "then": "rollout",
            "steps": "10,50,100",
            "step_every": "1s",
            "min_requests": self.min_requests,
        }
        return {
            "server.workers": 1,
            f"{drift}.kind": "drift",
            f"{drift}.every": self.drift_every,
            f"{accuracy}.kind": "performance",
            f"{accuracy}.every": self.every,
            f"{accuracy}.require": f"accuracy>={self.at_least}",
            f"{accuracy}.labels_within": "1d",
            **{f"{accuracy}.retrain.{name}": value for name, value in retrain.items()},
        }


def train_first(setting: ReplaySettings, log: Path) -> str:
    """Train the first version on January to March in a separate process, and set the
    alias.

    Raises:
        OnnxserveError: the training failed; the message contains the last line of its
            output.
    """
    command = [
        sys.executable,
        "-m",
        "projects.flight_delay.train",
        "--registered-model",
        setting.model,
    ]
    command += ["--max-iter", str(setting.max_iter)]
    with log.open("ab") as output:
        done = subprocess.run(
            command,
            check=False,
            cwd=CHECKOUT,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    if done.returncode != 0:
        raise OnnxserveError(
            f"the first version could not be trained: {log.read_text().splitlines()[-1]}",
        )
    client = MlflowClient()
    versions = client.search_model_versions(f"name = '{setting.model}'")
    version = str(max(int(entry.version) for entry in versions))
    client.set_registered_model_alias(setting.model, ALIAS, version)
    return version


@contextmanager
def deployed_endpoint(deployments: Deployments, setting: ReplaySettings) -> Iterator[str]:
    """Deploy the endpoint with its monitors, and yield its URL. At the end, delete the
    endpoint but not its history.
    """
    deployment = deployments.create(setting.endpoint, setting.uri, setting.config())
    try:
        yield str(deployment.observation.url)
    finally:
        deployments.delete_endpoint(setting.endpoint, "the replay is over")


@contextmanager
def running_controller(log: Path) -> Iterator[None]:
    """Run `onnxserve controller` within the `with` block."""
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "controller",
        "--lease-seconds",
        "5",
    ]
    with log.open("ab") as output:
        controller = Child(
            command,
            environment=child_environment(),
            stdout=output,
            stderr=output,
            own_session=True,
            kills_group=False,
        )
    try:
        yield
    finally:
        signal_process(controller.pid, signal.SIGTERM)
        controller.kill_after(_END_SECONDS)
        controller.wait()
