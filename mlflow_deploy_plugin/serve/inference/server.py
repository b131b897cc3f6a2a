"""The server of a worker, which consists of the parts that answer its requests."""

from dataclasses import dataclass, field

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve.cloud import Cloud
from mlflow_deploy_plugin.serve.inference.auth import Authenticator
from mlflow_deploy_plugin.serve.inference.dataplane import DataPlane
from mlflow_deploy_plugin.serve.inference.limits import RequestLimits
from mlflow_deploy_plugin.serve.inference.shadow import Shadows
from mlflow_deploy_plugin.serve.models.explainer_process import ExplainerClient
from mlflow_deploy_plugin.serve.models.model_control import ModelControl
from mlflow_deploy_plugin.serve.models.repository import Repository
from mlflow_deploy_plugin.serve.models.side_process import SideProcess
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.serve.observability.recent_requests import RecentRequests
from mlflow_deploy_plugin.serve.observability.tracing import Observer
from mlflow_deploy_plugin.serve.protocols.protocol import Protocol
from mlflow_deploy_plugin.serve.protocols.v2 import OWN, V2Names
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter


@dataclass(frozen=True)
class Server:
    """The parts that answer requests in this process. Every transport receives this
    object. `names` are the names in the answers of V2.
    """

    dataplane: DataPlane
    repository: Repository
    metrics: Metrics
    capture: CaptureWriter
    shadows: Shadows
    max_body_bytes: int
    model_control: ModelControl
    spec: ServerSpec
    explainer: ExplainerClient
    auth: Authenticator
    recent: RecentRequests
    observer: Observer = field(default_factory=Observer)
    limits: RequestLimits = field(default_factory=RequestLimits)
    cloud: Cloud = field(default_factory=Cloud)
    names: V2Names = OWN

    def answering(self, protocol: Protocol) -> Protocol:
        """Return the protocol that answers in place of this one; usually itself."""
        return self.names.protocols.get(protocol.name, protocol)

    def close(self) -> None:
        """Stop following the wanted state, release the spool's segment, and remove the
        worker's state file.
        """
        self.repository.stop()
        self.recent.close()
        self.shadows.close()
        self.capture.close()
        self.explainer.close()
        SideProcess.wait_for_ends()
        if self.observer.tracer:
            self.observer.tracer.close()
