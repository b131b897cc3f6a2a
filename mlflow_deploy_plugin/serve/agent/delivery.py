"""The part of the agent that delivers captured rows: to the inference log, with its
watermark, and to the sinks. The agent imports this module after the first versions are
served, because Arrow takes longer to import than a server takes to start.
"""

from pathlib import Path

from mlflow_deploy_plugin.core.statedir.files import SPOOL
from mlflow_deploy_plugin.core.statedir.models import ShippingState
from mlflow_deploy_plugin.serve.agent.progress import WatermarkWriter
from mlflow_deploy_plugin.serve.agent.ship import Shipper
from mlflow_deploy_plugin.serve.agent.sinks import Sinks
from mlflow_deploy_plugin.serve.spool.frames import segments


class Delivery:
    """Delivers the rows in the spool of a server. `max_bytes` is as in `Sinks`. Raises
    InvalidConfig for a URI that cannot be written.
    """

    def __init__(self, state_dir: Path, log_uri: str, max_bytes: float) -> None:
        self._spool = state_dir / SPOOL
        self._sinks = Sinks(state_dir, max_bytes)
        self._shipper = Shipper(self._spool, log_uri, hold=self._sinks.hold)
        shipper = self._shipper
        self._watermark = WatermarkWriter(state_dir, shipper.location, shipper.progress)

    @property
    def state(self) -> ShippingState:
        return self._shipper.state.model_copy(update={"sinks": dict(self._sinks.states)})

    def round(self) -> None:
        self._shipper.round()
        self._watermark.round()

    def end(self) -> None:
        """Deliver the last rows."""
        self._shipper.ship()
        self._watermark.end(is_shipped=not segments(self._spool))
        self._sinks.end()
