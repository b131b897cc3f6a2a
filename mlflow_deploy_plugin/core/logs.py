"""Logging for the server and the controller: lines for people, or JSON for a log store
(`ONNXSERVE_LOG_FORMAT=ecs`).

The JSON is one object per line in the Elastic Common Schema
(https://www.elastic.co/docs/reference/ecs).
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from typing import ClassVar

from mlflow_deploy_plugin.core.version import __version__

ProgressCallback = Callable[[str], None]
"""A function that receives one line for each step of a long operation."""
LEVEL = "ONNXSERVE_LOG_LEVEL"
"""The environment variable of `Settings.log_level`, which side processes inherit."""
_ECS_VERSION = "8.11.0"
_MANY = {"worker", "pyfunc", "explainer", "monitor"}
"""The roles that several processes may have; such processes add their id to log lines
in the text format.
"""
_REPEAT_SECONDS = 60.0
_MOST_REMEMBERED = 1000


def configure_logging(log_format: str, process: str) -> None:
    """Send all logs of this process, including gunicorn's, to stderr. `process` is this
    process's role in log lines, and `log_format` is `Settings.log_format`.
    """
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "text":
        who = f"[{process} {os.getpid()}]" if process in _MANY else f"[{process}]"
        handler.setFormatter(_LineFormatter(f"%(asctime)s {who} %(levelname)s %(message)s"))
    else:
        import ecs_logging  # Imported here, because only this format needs the package.

        service = {"name": "onnxserve", "version": __version__, "node": {"role": process}}
        # ecs_logging 1.6 adds the field log.original, which repeats the message and
        # which ECS has removed.
        extra = {"service": service, "ecs": {"version": _ECS_VERSION}}
        exclude = ["ecs.version", "log.original"]
        handler.setFormatter(ecs_logging.StdlibFormatter(extra=extra, exclude_fields=exclude))
    handler.addFilter(_RepeatFilter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("mlflow_deploy_plugin").setLevel(os.environ.get(LEVEL, "INFO"))
    # The caller logs an outage once; urllib3 logs every retry.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    gunicorn = logging.getLogger("gunicorn.error")
    gunicorn.handlers.clear()
    gunicorn.propagate = True


class _RepeatFilter(logging.Filter):
    """A filter that passes the same warning once per minute, so that an outage does not
    fill the log.
    """

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        error = record.exc_info[0] if record.exc_info else None
        key = (record.name, f"{record.msg}{record.args}{error}")
        now = time.monotonic()
        if now - self._written.get(key, -math.inf) < _REPEAT_SECONDS:
            return False
        if len(self._written) >= _MOST_REMEMBERED:
            self._written.clear()
        self._written[key] = now
        return True


class _LineFormatter(logging.Formatter):
    """A formatter that writes one line per record and escapes control characters, so
    that input cannot forge a line.
    """

    _ESCAPES: ClassVar[dict[int, str]] = {
        code: repr(chr(code))[1:-1]
        for code in (
            *range(0x20),
            *range(0x7F, 0xA0),
            0x2028,
            0x2029,
        )
    }

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging defines the name
        return super().formatMessage(record).translate(self._ESCAPES)

    def format(self, record: logging.LogRecord) -> str:
        line, *more = super().format(record).split("\n")
        return "\n".join([line, *(f"    {text.translate(self._ESCAPES)}" for text in more)])
