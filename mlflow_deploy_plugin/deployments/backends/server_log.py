"""The reason that a server's log gives for its end."""

import re
from pathlib import Path

from mlflow_deploy_plugin.server.state import LOG

_TAIL_BYTES = 64 * 1024
_ERRORS = (r"^Error: ", r"\b(ERROR|CRITICAL)\b", r"^\w+(\.\w+)*(Error|Exception)\b")
_STAMP = re.compile(
    r"^((\[[^\]]*\]|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d[\d.,Z+]*|ERROR:?|CRITICAL:?|\d+ mlflow_deploy_plugin[\w.]*:)\s*)+"
)


def final_error(state_dir: Path) -> str:
    """The last line of the log, where it speaks of an error; empty where the server was cut off in the middle."""
    return _best(_tail(state_dir)[-1:], _ERRORS)


def last_error(state_dir: Path) -> str:
    """The line of the log that says best why the server ended; empty where there is none."""
    return _best(_tail(state_dir), (*_ERRORS, r"."))


def _best(lines: list[str], patterns: tuple[str, ...]) -> str:
    for pattern in patterns:
        if found := [line for line in lines if re.search(pattern, line)]:
            return _STAMP.sub("", found[-1]).removeprefix("Error: ")
    return ""


def _tail(state_dir: Path) -> list[str]:
    try:
        with (state_dir / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()]
