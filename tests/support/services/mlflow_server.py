"""A real MLflow server that starts as quickly as possible."""

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.waiting import answers, free_port, is_gone, wait_until

COMMAND = Path(__file__).with_name("mlflow_command.py")

# Servers are forked from one process that has imported MLflow's commands, because the
# import costs four seconds of CPU. It has not imported mlflow.server, which reads the
# environment. Several workers of uvicorn are its children, which a forked daemon may
# not have.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["mlflow.cli", __name__])


def run_command(arguments, environment, log):
    """Run an MLflow command in this forked process, in its own session."""
    os.setsid()
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    if "PYTHONPATH" in environment:
        sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    sys.argv = ["mlflow", *arguments]
    runpy.run_path(str(COMMAND), run_name="__main__")


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
    variables: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    port: int = field(init=False)
    process: psutil.Process | None = None

    def __post_init__(self):
        self.port = free_port(self.host)

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    @property
    def log(self):
        return self.folder / f"{self.port}.log"

    def start(self):
        command = ["server", "--host", self.host, "--port", str(self.port)]
        command += ["--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        command += ["--app-name", self.app] if self.app is not None else []
        command += self.options
        environment = {
            **os.environ,
            # MLflow reads this variable when it is imported.
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"{self.host}:{self.port},localhost",
            # The job executor is not used here, and it starts slowly.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **self.variables,
        }
        if self.python == sys.executable and "--workers" not in self.options:
            forked = _FORKS.Process(
                target=run_command, args=(command, environment, self.log), daemon=True
            )
            forked.start()
            pid = forked.pid
        else:
            with self.log.open("ab") as output:
                pid = subprocess.Popen(
                    [self.python, str(COMMAND), *command],
                    env=environment,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                ).pid
        self.process = psutil.Process(pid)
        wait_until(
            lambda: answers(f"{self.url}/health") or is_gone(pid),
            240,
            "MLflow's server answers",
        )
        assert not is_gone(pid), self.log.read_text()[-4000:]

    @contextlib.contextmanager
    def running(self):
        """Start the server, and kill it at the end."""
        try:
            self.start()
            yield self
        finally:
            self.kill()

    def kill(self):
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
