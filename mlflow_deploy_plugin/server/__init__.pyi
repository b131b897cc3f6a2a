from .cloud import read_cloud as read_cloud
from .device import require_device as require_device
from .http.embedded import AsgiApp as AsgiApp
from .http.embedded import EmbeddedModel as EmbeddedModel
from .http.embedded import WsgiApp as WsgiApp
from .supervisor import supervise as supervise

__all__: list[str]
