"""How the processes of a server write their log: lines for people, or JSON for a log store.

`ONNXSERVE_LOG_FORMAT=ecs` writes one JSON object a line in the Elastic Common Schema
(https://www.elastic.co/docs/reference/ecs), which Filebeat, Fluent Bit and Logstash take as it is.
"""

import logging
import os
import sys

from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.version import __version__


def configure_logging(settings: Settings, process: str) -> None:
    """Sends everything this process logs to stderr, once; `process` is worker, agent or serve.

    What gunicorn says of itself takes the same way.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(settings, process))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("mlflow_deploy_plugin").setLevel(logging.INFO)
    gunicorn = logging.getLogger("gunicorn.error")
    gunicorn.handlers.clear()
    gunicorn.propagate = True


def _formatter(settings: Settings, process: str) -> logging.Formatter:
    if settings.log_format == "text":
        who = f"[{process} {os.getpid()}]" if process == "worker" else f"[{process}]"
        return logging.Formatter(f"%(asctime)s {who} %(levelname)s %(message)s")
    import ecs_logging  # only where it is asked for

    service = {"name": "onnxserve", "version": __version__, "node": {"role": process}}
    formatter: logging.Formatter = ecs_logging.StdlibFormatter(extra={"service": service})
    return formatter
