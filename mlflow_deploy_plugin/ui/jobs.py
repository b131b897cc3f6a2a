"""Jobs of the console: each action runs in a separate process, which writes its result
to a file.

The process uses MLflow over HTTP with the credentials of the user who pressed the
button, so that MLflow checks the user's permissions.
"""

import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from mlflow_deploy_plugin.core.errors import TooManyRequests
from mlflow_deploy_plugin.core.processes.child import Child, exit_reason
from mlflow_deploy_plugin.core.statedir.files import is_alive, read_state, write_state
from mlflow_deploy_plugin.core.statedir.models import State
from mlflow_deploy_plugin.core.store.people import person_key
from mlflow_deploy_plugin.core.store.tables import Json

_MODULE = "mlflow_deploy_plugin.ui.actions"
_MAX_RUNNING = 8
_MAX_RUNNING_OF_ONE = 4
"""The maximum numbers of running jobs, in total and per user, so that no user can block
the rollbacks of others.
"""
GATE_ACTIONS = ("gate", "promote", "request")
"""The actions that run the gate, at least without a fresh verdict."""
_KEPT_SECONDS = 24 * 3600
_MAX_SECONDS = 3600.0
"""The timeout of a job. A gate takes minutes, and a job that hangs must not block other
jobs.
"""
_KILLED_SECONDS = 60
_SERVER_VARIABLES = (
    "_MLFLOW_",
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_READ_REPLICA_",
    "MLFLOW_REGISTRY_STORE_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_WORKSPACE_STORE_URI",
    "MLFLOW_AUTH_",
    "MLFLOW_CRYPTO_",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "CACHE_REDIS_URL",
    "CONFIG_",
    "OIDC_",
    "SECRET_KEY",
    "SESSION_TOKEN_ENCRYPTION_KEY",
)
"""Prefixes of environment variables of the server, such as secrets, which a job must
not inherit.
"""


class Job(State):
    """A job that a button has started.

    Attributes:
        description: the action in words, e.g. "roll flights back".
        arguments: the action and its arguments, which `actions.py` reads.
        message: the result or the reason for a failure, in one line.
        servers: URLs of this MLflow server, best URL first.
        has_account: True if the caller has an account. Other accounts may then have
            fewer permissions.
    """

    id: str = Field(default_factory=lambda: secrets.token_hex(8))
    description: str
    actor: str
    arguments: Json
    servers: tuple[str, ...] = ()
    has_account: bool = False
    state: Literal["running", "done", "failed"] = "running"
    message: str = ""
    pid: int = 0
    started_at: float = Field(default_factory=time.time)

    def ended(self, state: Literal["done", "failed"], message: str) -> "Job":
        return self.model_copy(update={"state": state, "message": message})


@dataclass(frozen=True)
class Jobs:
    """The jobs whose files are in a folder. A job that takes longer than `longest`
    seconds is killed.
    """

    folder: Path
    longest: float = _MAX_SECONDS

    def start(self, job: Job, secret: Mapping[str, str]) -> Job:
        """Start a job and return immediately. Delete the files of jobs that started
        more than a day ago.

        If a job with the same arguments already runs, return it. `secret` contains the
        caller's credentials as environment variables, which are not written to a file.
        Raises TooManyRequests if too many jobs run.
        """
        actors: list[str] = []
        for running in self._running_jobs():
            if running.arguments == job.arguments:
                return running
            actors.append(person_key(running.actor))
        own_count = actors.count(person_key(job.actor))
        running_text = ""
        if own_count >= _MAX_RUNNING_OF_ONE:
            running_text = f"{own_count} of your actions"
        elif len(actors) >= _MAX_RUNNING:
            running_text = f"{len(actors)} actions"
        if running_text:
            raise TooManyRequests(f"{running_text} are running: wait until an action ends")
        path = self.folder / f"{job.id}.json"
        write_state(path, job)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_SERVER_VARIABLES)
        }
        with path.with_suffix(".log").open("wb") as log:
            process = Child(
                [sys.executable, "-W", "ignore", "-m", _MODULE, str(path)],
                stdout=log,
                stderr=log,
                environment={**environment, **secret},
                own_session=True,
                kills_group=False,
            )
        threading.Thread(
            target=self._wait_for_end,
            args=(path, process),
            daemon=True,
        ).start()
        return job.model_copy(update={"pid": process.pid})

    def _running_jobs(self) -> Iterator[Job]:
        """Yield the running jobs, and delete the files of jobs that started more than a
        day ago.
        """
        for path in self.folder.glob("*.json"):
            job = self.get(path.stem)
            if job is None or time.time() - job.started_at >= _KEPT_SECONDS:
                path.unlink(missing_ok=True)
                path.with_suffix(".log").unlink(missing_ok=True)
            elif job.state == "running":
                yield job

    def judged_versions(self) -> set[tuple[str, str]]:
        """Return the model and the version of each running job that may run the
        gate.
        """
        arguments = [job.arguments for job in self._running_jobs()]
        return {
            (entry["model"], entry["version"])
            for entry in arguments
            if entry.get("action") in GATE_ACTIONS
        }

    def get(self, id: str) -> Job | None:
        """Return the job, which has failed if its process is gone or should be; None if
        there is no readable job with this id.
        """
        if len(id) != 16 or not id.isalnum():
            return None
        job = read_state(self.folder / f"{id}.json", Job)
        if job is None or job.state != "running":
            return job
        # After this time, the server that would kill the process is gone.
        if time.time() - job.started_at > self.longest + _KILLED_SECONDS:
            return job.ended("failed", "timeout of the action")
        if job.pid and not is_alive(job.pid):
            # The job may have ended after the first read.
            job = read_state(self.folder / f"{id}.json", Job)
            if job is not None and job.state == "running":
                return job.ended("failed", "the process ended without a result")
        return job

    def _wait_for_end(self, path: Path, process: Child) -> None:
        """Kill the process after `longest` seconds. If it has stored no outcome, store
        a failure with the last line of its log.
        """
        status = process.wait(self.longest)
        reason = ""
        if status is None:
            process.kill()
            status = process.wait()
            reason = f"the action was stopped after a timeout of {self.longest:g} s"
        job = read_state(path, Job)
        log = path.with_suffix(".log")
        if job is not None and job.state == "running":
            lines = log.read_text(errors="replace").strip().splitlines()
            lines = lines or [f"the process {exit_reason(status or 0)}"]
            reason = reason or lines[-1]
            write_state(path, job.ended("failed", reason[:500]))
        if job is not None and job.state == "done":
            log.unlink(missing_ok=True)
