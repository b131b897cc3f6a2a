"""The reason that a server's log gives for its end."""

import re
from pathlib import Path

from mlflow_deploy_plugin.server.state import LOG

_TAIL_BYTES = 64 * 1024
_TELLING = (r"^Error: ", r"\b(ERROR|CRITICAL)\b", r"^\w+(\.\w+)*(Error|Exception)\b", r".")
_STAMP = re.compile(r"^((\[[^\]]*\]|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d[\d.,Z+]*|ERROR:?|CRITICAL:?)\s*)+")


def log_size(state_dir: Path) -> int:
    try:
        return (state_dir / LOG).stat().st_size
    except FileNotFoundError:
        return 0


def last_error(state_dir: Path, start: int = 0) -> str:
    """The line of the log, from byte `start` on, that says best why the server ended; empty where there is none."""
    try:
        with (state_dir / LOG).open("rb") as log:
            log.seek(max(start, log.seek(0, 2) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    spoken = [line.strip() for line in lines if line.strip()]
    for pattern in _TELLING:
        if found := [line for line in spoken if re.search(pattern, line)]:
            return _STAMP.sub("", found[-1]).removeprefix("Error: ")
    return ""
