"""A real MLflow server that starts as quickly as possible."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.waiting import answers, free_port, listens, wait_until

COMMAND = Path(__file__).with_name("mlflow_command.py")


@dataclass
class MlflowServer:
    """An MLflow server on `folder`, which may already contain mlflow.db. It can be
    killed and restarted.

    `app` is the value of `--app-name`; `options` are additional options. `variables`
    are added to the environment, and `python` is the interpreter of another environment
    in which MLflow is installed.
    """

    folder: Path
    host: str = "127.0.0.1"
    app: str | None = None
    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable
    port: int = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self):
        self.port = free_port(self.host)

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    @property
    def log(self):
        return self.folder / f"{self.port}.log"

    def start(self):
        command = [
            self.python,
            str(COMMAND),
            "server",
            "--host",
            self.host,
            "--port",
            str(self.port),
        ]
        command += ["--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        command += ["--app-name", self.app] if self.app is not None else []
        command += self.options
        environment = {
            **os.environ,
            # MLflow reads this variable when it is imported.
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"{self.host}:{self.port}",
            # The job executor is not used here, and it starts slowly.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **self.variables,
        }
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.process = process
        # The imports of the server take seconds, in which no GET is worth its cost.
        wait_until(
            lambda: listens(self.host, self.port) or process.poll() is not None,
            240,
            "MLflow's server listens",
        )
        wait_until(
            lambda: answers(f"{self.url}/health") or process.poll() is not None,
            240,
            "MLflow's server answers",
        )
        assert process.poll() is None, self.log.read_text()[-4000:]

    def kill(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
