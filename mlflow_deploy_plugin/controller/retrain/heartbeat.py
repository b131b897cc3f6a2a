"""`mlflow run` with a heartbeat: as long as the training runs, its MLflow run says so.

MLflow shows a run whose machine has gone as running for ever. A controller on another machine, which cannot see the
process, knows by the heartbeat whether to wait for it; and as it ends the run in MLflow, the training ends itself.

    python -m mlflow_deploy_plugin.controller.retrain.heartbeat RUN_ID PROJECT -e train …
"""

import logging
import sys
import threading

from mlflow_deploy_plugin.controller.retrain import child, tracked
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.store.database import utc_now

BEAT_SECONDS = 15.0

_log = logging.getLogger(__name__)


def beat(run_id: str, stopped: threading.Event, seconds: float = BEAT_SECONDS) -> None:
    """Says again and again that the training runs, until it has ended; ends it where its run was ended in MLflow."""
    while not stopped.is_set():
        try:
            tracked.beat(run_id, utc_now())
            if tracked.seen(run_id).status == "KILLED":
                child.end(run_id)  # `mlflow run` ends with what it has started
        except OnnxserveError as error:  # it is told again; meanwhile nobody else can see the run either
            _log.warning("no heartbeat: %s", error.message)
        stopped.wait(seconds)


def _main(run_id: str, *arguments: str) -> None:
    from mlflow.cli import cli

    stopped = threading.Event()
    threading.Thread(target=beat, args=(run_id, stopped), name="heartbeat", daemon=True).start()
    try:
        cli(["run", *arguments, "--run-id", run_id])
    finally:
        stopped.set()


if __name__ == "__main__":
    _main(*sys.argv[1:])
