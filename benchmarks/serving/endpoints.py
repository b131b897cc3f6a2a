"""The server of several endpoints that `benchmarks/registry.py` starts."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

COLUMNS = 30
PATIENCE_SECONDS = 300
HEADERS = {"Content-Type": "application/json"}


@dataclass
class Server:
    """A running server with its endpoints' names."""

    process: subprocess.Popen[bytes]
    port: int
    start_seconds: float
    names: list[str]

    def workers(self) -> list[psutil.Process]:
        """Return the workers: the grandchildren of the supervisor, which are children
        of gunicorn.
        """
        children = psutil.Process(self.process.pid).children()
        return [worker for child in children for worker in child.children()]


def wait_ready(process: subprocess.Popen[bytes], state_dir: Path) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            state: dict[str, Any] = json.loads((state_dir / "state" / "server.json").read_text())
        except FileNotFoundError:
            state = {}
        if state.get("phase") == "serving":
            return state
        time.sleep(0.02)
    raise SystemExit((state_dir / "log").read_text()[-3000:])
