from .backends.targets import parse_target as parse_target
from .endpoints import ObservedEndpoint as ObservedEndpoint
from .lifecycle import Deployments as Deployments
from .server_metrics import MetricsByServer as MetricsByServer
from .server_metrics import ServerMetrics as ServerMetrics
from .server_metrics import VersionCounters as VersionCounters
from .server_metrics import total_metrics as total_metrics

__all__: list[str]
