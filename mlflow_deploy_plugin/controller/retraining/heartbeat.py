"""`mlflow run` with a heartbeat: as long as the training runs, its MLflow run says so.

MLflow shows a run whose machine has gone as running for ever. A controller on another machine, which cannot see the
process, knows by the heartbeat whether to wait for it; and as it ends the run in MLflow, the training ends itself.

    python -m mlflow_deploy_plugin.controller.retraining.heartbeat RUN_ID PROJECT -e train …
"""

import contextlib
import logging
import os
import subprocess
import sys

from mlflow_deploy_plugin.controller.retraining import process, tracking
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.registry.connection import set_service_timeouts
from mlflow_deploy_plugin.store.database import utc_now

BEAT_SECONDS = 15.0

_log = logging.getLogger(__name__)


def beat_until_ended(run_id: str, training: "subprocess.Popen[bytes]", seconds: float = BEAT_SECONDS) -> int:
    """Says again and again that the training runs, until it has ended; ends it where its run was ended in MLflow.

    Returns:
        Its exit status; negative: it was killed.
    """
    while training.poll() is None:
        try:
            tracking.write_heartbeat(run_id, utc_now())
            if tracking.get_run(run_id).status == "KILLED":
                process.end(run_id)
        except OnnxserveError as error:  # it is told again; meanwhile nobody else can see the run either
            _log.warning("no heartbeat: %s", error.message)
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.wait(seconds)
    return training.wait()


def _main(run_id: str, *arguments: str) -> None:
    training = subprocess.Popen([sys.executable, "-m", "mlflow", "run", *arguments, "--run-id", run_id])
    # this process alone: MLflow's own patience may hold a heartbeat back for minutes after a server is up again
    set_service_timeouts()
    status = beat_until_ended(run_id, training)
    if status < 0:  # as it was: who is killed from outside is begun once more
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    _main(*sys.argv[1:])
