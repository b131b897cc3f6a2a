"""Two clients that race for an alias without a gate: one creates versions with the tags
of a verdict, and the other one moves the alias to them.

    python -m tests.ui.race_verdict_tags --seconds 120
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import requests

from mlflow_deploy_plugin.core.mlmodel import hash_folder
from tests.support.console import API
from tests.support.services.mlflow_server import MlflowServer

_MODEL = "raced"
_POLICY = "gated_aliases: [champion]\njudges: [ci-bot]"
_OTHER_TAGS = 120
"""The tags in front of those of the verdict, which made their removal slow."""


@dataclass
class Race:
    """The race on the server at `url`, whose artifacts are in `artifacts`."""

    url: str
    artifacts: Path
    tries: int = 0
    requests: int = 0
    moves: int = 0

    def send(self, path, **body):
        return requests.post(f"{self.url}{API}/{path}", json=body, timeout=60)

    def run(self, seconds):
        """Race for this number of seconds, and return this race with its counts."""
        policy = {"key": "onnxserve.gate.policy", "value": _POLICY}
        self.send("registered-models/create", name=_MODEL, tags=[policy]).raise_for_status()
        run = self.send("runs/create", experiment_id="0").json()["run"]["info"]
        folder = self.artifacts / "0" / run["run_id"] / "artifacts" / "model"
        folder.mkdir(parents=True)
        (folder / "MLmodel").write_text("model_id: never judged")
        verdict = {"onnxserve.gate": "passed", "onnxserve.gate.reason": "all checks passed"}
        verdict["onnxserve.gate.digest"] = hash_folder(folder)
        tags = {f"onnxserve.gate.z{number}": "" for number in range(_OTHER_TAGS)} | verdict
        version = {
            "name": _MODEL,
            "source": f"{run['artifact_uri']}/model",
            "run_id": run["run_id"],
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tries += 1
            is_over = threading.Event()
            mover = threading.Thread(target=self._move, args=(str(self.tries), is_over))
            mover.start()
            created = self.send("model-versions/create", **version)
            is_over.set()
            mover.join()
            created.raise_for_status()
        return self

    def _move(self, version, is_over):
        """Move the alias to the version until the other client has its answer."""
        alias = {"name": _MODEL, "alias": "champion", "version": version}
        while True:
            is_last = is_over.is_set()
            self.requests += 1
            if self.send("registered-models/alias", **alias).status_code == 200:
                self.moves += 1
                return
            if is_last:
                return


def race(folder, seconds):
    """Start a server in the folder, and return the race on it."""
    variables = {"ONNXSERVE_HOME": str(folder / "home")}
    server = MlflowServer(folder, app="onnxserve", variables=variables)
    with server.running():
        return Race(server.url, folder / "artifacts").run(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    home = Path(tempfile.mkdtemp())
    result = race(home, parser.parse_args().seconds)
    shutil.rmtree(home)
    counts = f"{result.tries} versions, {result.requests} requests to move, {result.moves} moves\n"
    sys.stdout.write(counts)
    sys.exit(result.moves > 0)
