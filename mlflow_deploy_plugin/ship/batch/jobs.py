"""`python -m mlflow_deploy_plugin.ship.batch.jobs STATE_DIR`: run the batch jobs of a
server's callers, one after another, until none is left.

The supervisor starts this process while there is work. An interrupted job continues
from the manifest of its batch. A callback is sent like a webhook of MLflow: signed, and
only to public addresses. It may be repeated.
"""

import logging
import os
import re
import resource
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from mlflow_deploy_plugin.core import mlflow_private
from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.processes.durable_work import WorkRunner
from mlflow_deploy_plugin.core.registry.answers import bounded_answers
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel
from mlflow_deploy_plugin.core.settings import active_workspace, load_settings
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import JobsSpec
from mlflow_deploy_plugin.core.spec.types import duration_seconds, memory_bytes
from mlflow_deploy_plugin.core.statedir.files import SPEC, assert_state, locked
from mlflow_deploy_plugin.serve.inference.jobs import (
    STATE,
    Job,
    JobState,
    delete_old_jobs,
    is_public,
    read_jobs,
)
from mlflow_deploy_plugin.serve.models.loading import check_digest
from mlflow_deploy_plugin.ship.batch.part import BatchPlan
from mlflow_deploy_plugin.ship.batch.run import BatchProgress, run_batch

_log = logging.getLogger("mlflow_deploy_plugin.ship.batch.jobs")

_NICE = 10
_LOOK_SECONDS = 1.0
_CALLBACKS_AT_ONCE = 4
_PAUSE_SECONDS = 30.0
_MOST_ATTEMPTS = 5
_FOLDER = re.compile(r"(?<![\w:/])/(\S*/)?|--(?=\w)")
"""The folders in a message, which callers must not see, and the dashes of options."""


class _Cancelled(Exception):
    """The caller has cancelled the job."""


def run_jobs(state_dir: Path, spec: JobsSpec) -> None:
    """Run the jobs and send their callbacks until none is due."""
    calling = WorkRunner("callback", _CALLBACKS_AT_ONCE, _PAUSE_SECONDS)
    while True:
        delete_old_jobs(state_dir, spec)
        due = [job for job in read_jobs(state_dir) if job.is_due]
        if not due:
            return
        for job in due:
            if job.is_ended:
                calling.start(job.folder, partial(_call_back, job))
            else:
                assert_state(job.folder / STATE, _run(job, spec))
                break
        else:
            time.sleep(_LOOK_SECONDS)


def _run(job: Job, spec: JobsSpec) -> JobState:
    """Run a job, and return its last state."""
    request = job.request
    variant = request.variant
    state = job.state.model_copy(update={"attempts": job.state.attempts + 1})
    ends_at = time.monotonic() + duration_seconds(spec.timeout)

    def report(progress: BatchProgress) -> None:
        nonlocal state
        before = progress.finished_before
        state = JobState(
            state="running",
            rows=max(state.rows, progress.rows),
            rejected=max(state.rejected, progress.rejected),
            parts=progress.parts + before,
            parts_done=progress.parts_done + before,
            attempts=state.attempts,
        )
        assert_state(job.folder / STATE, state)
        if job.cancel_mark.exists():
            raise _Cancelled
        if state.rows + state.rejected > spec.max_rows:
            raise InvalidRequest(f"it has more than server.jobs.max_rows, {spec.max_rows}, rows")
        if time.monotonic() > ends_at:
            raise InvalidRequest(f"it ran longer than server.jobs.timeout, {spec.timeout}")

    try:
        if job.cancel_mark.exists():
            raise _Cancelled
        if state.attempts > _MOST_ATTEMPTS:
            raise OnnxserveError(
                f"its process was started {_MOST_ATTEMPTS} times and always ended before the job, "
                "possibly because memory ran out: send fewer rows per job"
            )
        assert_state(job.folder / STATE, state)
        check_digest(variant)
        plan = BatchPlan(
            model_uri=variant.model_uri,
            input=request.input if request.output else str(job.folder / request.input),
            output=request.output or str(job.folder / "output"),
            keep=request.keep,
            output_format=request.format,
            on_error=request.on_error,
            workers=spec.workers,
        )
        served = ResolvedModel(
            variant.model_uri, variant.model, variant.version, str(variant.folder)
        )
        result = run_batch(plan, report, served)
        report(result.progress)
        return state.model_copy(update={"state": "succeeded"})
    except SystemExit:  # The server ends, which is not the job's fault.
        assert_state(job.folder / STATE, job.state)
        raise
    except _Cancelled:
        return state.model_copy(update={"state": "cancelled"})
    except OnnxserveError as error:
        reason = _FOLDER.sub("", error.message)
    except Exception:  # noqa: BLE001 - any error ends only this job
        _log.exception("job %s failed", job.folder.name)
        reason = "an unexpected error, which is in the log of the server"
    return state.model_copy(update={"state": "failed", "error": reason})


def _call_back(job: Job) -> float:
    """Send the callback of a job. Return the seconds until the next attempt."""
    hook = SimpleNamespace(
        url=job.request.callback,
        secret=load_settings().callback_secret,
        workspace=active_workspace(),
    )
    event = SimpleNamespace(
        entity=SimpleNamespace(value="job"), action=SimpleNamespace(value="ended")
    )
    left = job.state.calls_left - 1
    try:
        with mlflow_private._create_webhook_session() as session, bounded_answers():
            session.max_redirects = 0
            answer = mlflow_private._send_webhook_request(hook, job.document, event, session)
            answer.raise_for_status()
            left = 0
    except Exception as error:  # noqa: BLE001 - MLflow and requests raise errors of many classes
        _log.warning(
            "the callback of job %s failed (%s); %d attempts are left",
            job.folder.name,
            type(error).__name__,
            left,
        )
    assert_state(job.folder / STATE, job.state.model_copy(update={"calls_left": left}))
    return _PAUSE_SECONDS


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    configure_logging(load_settings().log_format, "jobs")
    os.nice(_NICE)
    # MLflow's own check accepts addresses of multicast, and local ones of IPv6.
    checked = mlflow_private._is_public_ip
    mlflow_private.replace("_is_public_ip", lambda ip: checked(ip) and is_public(ip))
    # MLflow would wait as long as the callback's receiver demands.
    os.environ["MLFLOW_WEBHOOK_REQUEST_MAX_RETRIES"] = "0"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    spec = load_stored_specs((folder / SPEC).read_text())[0].server.jobs
    # The processes that predict inherit the limits.
    memory = memory_bytes(spec.max_memory)
    for kind, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, spec.max_file_bytes),
    ):
        with suppress(ValueError):  # The server's own limit is lower.
            resource.setrlimit(kind, (most, most))
    with locked(folder / "jobs.lock"):  # The process of a killed server may still end.
        run_jobs(folder, spec)
