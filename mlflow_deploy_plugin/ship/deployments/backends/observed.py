"""The target of endpoints whose model another server serves: their state is that of the
source of their rows.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from mlflow_deploy_plugin.core.errors import NotReady, Refused
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import length_of
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation, Progress

_DAY = timedelta(days=1)


class ObservedBackend:
    """Stores endpoints without a server. The controller reads their sources."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def apply(self, spec: EndpointSpec, progress: Progress) -> str:
        return ""

    def observe(self, spec: EndpointSpec) -> Observation:
        # Commands that print no endpoint do not need pyarrow.
        from mlflow_deploy_plugin.serve.inference_log.source_state import (
            describe_problems,
            read_source_state,
        )
        from mlflow_deploy_plugin.serve.inference_log.storage import locate_log

        state = read_source_state(locate_log(self._settings.inference_log), spec.name)
        lines = describe_problems(state)
        longest = max([_DAY, *(2 * length_of(each.every) for each in spec.monitors.values())])
        if state.newest is not None and datetime.now(UTC) - state.newest > longest:
            lines.append(f"no rows since {state.newest:%Y-%m-%d %H:%M} UTC")
        if state.read_at is None:
            lines.append("its source has not been read yet: is `onnxserve controller` running?")
        return Observation(
            "failed" if state.error else "observed",
            "; ".join(filter(None, [state.error, *lines])),
        )

    def remove(self, name: str) -> None:
        from mlflow_deploy_plugin.serve.inference_log.source_state import delete_source_state
        from mlflow_deploy_plugin.serve.inference_log.storage import locate_log

        delete_source_state(locate_log(self._settings.inference_log), name)

    def is_running(self, name: str) -> bool:
        return False

    def poll_registry(self, name: str) -> None:
        """Do nothing: each reading resolves the model."""

    def server_pages(
        self, spec: EndpointSpec, path: str, timeout_seconds: float
    ) -> Mapping[str, bytes | Refused]:
        return {}

    def stop(self, *_: object) -> NoReturn:
        raise NotReady("another server serves the model: onnxserve only observes its rows")

    place = reached = logs = stop
