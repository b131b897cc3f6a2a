"""The target of endpoints whose model another server serves: their state is that of the
source of their rows.
"""

from datetime import UTC, datetime, timedelta
from typing import NoReturn

from mlflow_deploy_plugin.core.errors import NotReady
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import length_of
from mlflow_deploy_plugin.serve.inference_log.source_state import (
    delete_source_state,
    describe_problems,
    read_source_state,
)
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation, Progress

_DAY = timedelta(days=1)


class ObservedBackend:
    """Stores endpoints without a server. The controller reads their sources."""

    def __init__(self, settings: Settings) -> None:
        self._log = locate_log(settings.inference_log)

    def apply(self, spec: EndpointSpec, progress: Progress) -> str:
        return ""

    def observe(self, spec: EndpointSpec) -> Observation:
        state = read_source_state(self._log, spec.name)
        lines = describe_problems(state)
        longest = max([_DAY, *(2 * length_of(each.every) for each in spec.monitors.values())])
        if state.newest is not None and datetime.now(UTC) - state.newest > longest:
            lines.append(f"no rows since {state.newest:%Y-%m-%d %H:%M} UTC")
        return Observation("failed" if state.error else "observed", "; ".join(lines))

    def remove(self, name: str) -> None:
        delete_source_state(self._log, name)

    def is_running(self, name: str) -> bool:
        return False

    def poll_registry(self, name: str) -> None:
        """Do nothing: each reading resolves the model."""

    def stop(self, *_: object) -> NoReturn:
        raise NotReady("another server serves the model: onnxserve only observes its rows")

    place = reached = logs = server_pages = stop
