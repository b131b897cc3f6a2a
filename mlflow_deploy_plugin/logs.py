"""How the processes of a server write their log: lines for people, or JSON for a log store.

`ONNXSERVE_LOG_FORMAT=ecs` writes one JSON object a line in the Elastic Common Schema
(https://www.elastic.co/docs/reference/ecs), which Filebeat, Fluent Bit and Logstash take as it is.
"""

import logging
import os
import sys
from typing import ClassVar

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
        return _Lines(f"%(asctime)s {who} %(levelname)s %(message)s")
    import ecs_logging  # only where it is asked for

    service = {"name": "onnxserve", "version": __version__, "node": {"role": process}}
    formatter: logging.Formatter = ecs_logging.StdlibFormatter(extra={"service": service})
    return formatter


class _Lines(logging.Formatter):
    """Each record begins a line, and nothing else does: what a message or an exception quotes could pass for one."""

    _ESCAPES: ClassVar[dict[int, str]] = {
        code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
    }

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        return super().formatMessage(record).translate(self._ESCAPES)

    def format(self, record: logging.LogRecord) -> str:
        """A traceback follows its message, indented."""
        line, *more = super().format(record).split("\n")
        return "\n".join([line, *(f"    {text.translate(self._ESCAPES)}" for text in more)])
