"""The log's upkeep, once an hour and endpoint: in a process of its own, for it reads and writes whole hours."""

import logging
import threading
import time
from datetime import datetime

from mlflow_deploy_plugin.controller.beside import safely
from mlflow_deploy_plugin.controller.lease import LeaseKeeper
from mlflow_deploy_plugin.controller.monitors.worker import Ended, JudgingProcess
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.inference_log.maintenance import Maintained, maintain
from mlflow_deploy_plugin.inference_log.reader import open_log
from mlflow_deploy_plugin.settings import Settings

_log = logging.getLogger(__name__)

_EVERY_SECONDS = 3600.0
_LONGEST_SECONDS = 1800.0


class Upkeep:
    """Keeps the logs of the store's endpoints in order."""

    def __init__(self, deployments: Deployments, every_seconds: float = _EVERY_SECONDS) -> None:
        self._deployments = deployments
        self._every_seconds = every_seconds

    def run(self, keeper: LeaseKeeper, over: threading.Event) -> None:
        """Works until the lease is lost or `over` is set, an hour after it began for the first time."""
        process = JudgingProcess()

        def end() -> None:
            over.wait()
            process.end()

        threading.Thread(target=end, daemon=True).start()
        began = time.monotonic()
        while keeper.is_held and not over.is_set():
            if time.monotonic() - began >= self._every_seconds:
                safely(lambda: self._maintain_all(process, over))
                began = time.monotonic()
            process.rest()
            over.wait(min(5.0, self._every_seconds))
        process.end()

    def _maintain_all(self, process: JudgingProcess, over: threading.Event) -> None:
        now, settings = self._deployments.store.now(), self._deployments.settings
        for endpoint in self._deployments.store.endpoints():
            if over.is_set():
                return
            try:
                process.call(maintain_log, settings, endpoint.name, now, seconds=_LONGEST_SECONDS)
            except Ended:
                return
            except OnnxserveError as error:
                _log.warning("%s: the log's upkeep has failed, again in an hour: %s", endpoint.name, error.message)


def maintain_log(settings: Settings, endpoint: str, now: datetime) -> Maintained:
    """Compacts the hours that are over. Nothing is deleted for its age: that a person asks for (`log expire`)."""
    return maintain(open_log(settings.inference_log), endpoint, now, keep=None)
