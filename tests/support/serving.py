"""`onnxserve serve` as a process, with all its child processes."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from mlflow_deploy_plugin.core.statedir.metric_files import remove_metrics
from tests.support.waiting import wait_until


@dataclass
class Served:
    """`onnxserve serve` in a separate session."""

    process: subprocess.Popen[bytes]
    state_dir: Path
    log: Path

    @property
    def url(self):
        return self._announced()[0].rpartition(" at ")[2]

    def _announced(self):
        return [
            line for line in self.log.read_text().splitlines() if line.startswith("onnxserve: ")
        ]

    def wait_ready(self, seconds=60):
        wait_until(lambda: self._announced() or self.process.poll() is not None, seconds, "ready")
        assert self.process.poll() is None, self.log.read_text()
        return self

    def predict(self, *row, **headers):
        """Return the response for one row. Names of headers have underscores instead of
        hyphens: `X_Event_Time`.
        """
        http_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(
            f"{self.url}/invocations", json={"inputs": [row]}, headers=http_headers, timeout=30
        )

    def version(self):
        return self.predict(0).headers["X-Model-Version"]

    def members(self):
        """Return every process of the session: supervisor, agent, gunicorn, workers."""
        return [
            process for process in psutil.process_iter() if _session(process) == self.process.pid
        ]

    def end(self, number=signal.SIGTERM):
        """End the session if it has not ended, wait until all its processes are gone,
        and return its exit status.
        """
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout=40)
        wait_until(lambda: not self.members(), 40, "no process is left")
        return code


def _session(process):
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return 0
        return os.getsid(process.pid)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return 0


@contextmanager
def servers_below(folder):
    """Yield a function that starts `onnxserve serve ARGUMENTS --state-dir
    FOLDER/state`. At the end, all servers are ended.
    """
    started: list[Served] = []

    def start(*arguments, state="state"):
        log = folder / f"{len(started)}.log"
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve", *arguments]
        command += ["--state-dir", str(folder / state)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, cwd=folder
            )
        started.append(Served(process, folder / state, log))
        return started[-1]

    try:
        yield start
    finally:
        for served in started:
            served.end()
            remove_metrics(served.state_dir)  # A killed server leaves its metrics in shared memory.
