"""Which monitor a person means: one of an endpoint, or one that is made of the defaults."""

from dataclasses import dataclass, replace
from pathlib import Path

from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log.reader import open_log
from mlflow_deploy_plugin.spec import CaptureSpec, EndpointSpec, MonitorSpec, empty_endpoint, load_specs
from mlflow_deploy_plugin.statedir import SPEC
from mlflow_deploy_plugin.store import unknown_endpoint

DEFAULT_MONITOR = "drift"


@dataclass(frozen=True)
class SelectedMonitor:
    """A monitor of an endpoint; one that the endpoint's spec does not have is made of the defaults.

    Attributes:
        capture: what the log withholds of the endpoint's columns.
        tried: bounds that stand in `spec` for once, as `min_rows=50`; what is found with them is not the monitor's.
    """

    endpoint: str
    name: str
    spec: MonitorSpec
    capture: CaptureSpec
    tried: str = ""

    def trying(self, **bounds: float | None) -> "SelectedMonitor":
        """The monitor with these fields of its spec; None: as it is."""
        given = {name: value for name, value in bounds.items() if value is not None}
        tried = ", ".join(f"{name}={value}" for name, value in given.items())
        return replace(self, spec=self.spec.model_copy(update=given), tried=tried)


def find_monitor(deployments: Deployments, endpoint: str, name: str | None) -> SelectedMonitor:
    """The monitor of this name; default: the endpoint's only one, or where it has none a daily one of drift.

    Raises:
        NotFound: there is no such endpoint or monitor.
        InvalidConfig: the endpoint has several, and none is named.
    """
    spec = _spec(deployments, endpoint)
    if name is None:
        if len(spec.monitors) > 1:
            raise InvalidConfig(
                f"endpoint {endpoint!r} has several monitors: say which, --monitor {' | '.join(sorted(spec.monitors))}"
            )
        name = next(iter(spec.monitors), DEFAULT_MONITOR)
    return SelectedMonitor(endpoint, name, spec.monitor(name) if spec.monitors else MonitorSpec(), spec.capture)


def _spec(deployments: Deployments, endpoint: str) -> EndpointSpec:
    """As it stands in the store, or as a server of this machine has left it; of what was only captured an empty one."""
    stored = deployments.store.endpoint(endpoint)
    if stored is not None:
        return stored.spec
    left = _left_by_a_server(deployments.settings.deployments_path / endpoint / SPEC, endpoint)
    if left is not None:
        return left
    captured = open_log(deployments.settings.inference_log).endpoints()
    if endpoint not in captured:
        raise unknown_endpoint(endpoint, {*captured, *(stored.name for stored in deployments.store.endpoints())})
    return empty_endpoint(endpoint)


def _left_by_a_server(file: Path, endpoint: str) -> EndpointSpec | None:
    try:
        specs = load_specs(file.read_text())
    except OSError:
        return None
    return next((spec for spec in specs if spec.name == endpoint), None)
