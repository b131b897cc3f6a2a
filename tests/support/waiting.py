"""Waiting for a condition instead of for a time, processes that have ended, and ports that nobody uses."""

import contextlib
import itertools
import os
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil
import requests

EXPLAINER_SECONDS = 250
"""The process that explains imports shap at a low priority: beside others' work that took 150 s."""

# No other worker's, and below those of the system (32768). The system gives a port to the next who asks for any while
# its server still starts: of 20,000 ports, 8 were given again within the next five.
_FIRST_PORT = 20_000 + 750 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16)
_OWN_PORTS = itertools.cycle(random.SystemRandom().sample(range(_FIRST_PORT, _FIRST_PORT + 750), 750))


def wait_until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "the condition") -> Any:
    """Return the first true value of `condition`; fail with `what` after `seconds`.

    A look that takes long is followed by a longer pause: what is waited for needs the core itself. The usual time only
    ends a test that hangs: beside other work a controller took 22 s to start.
    """
    begun = time.monotonic()
    deadline = begun + seconds
    while not (value := condition()):
        now = time.monotonic()
        assert now < deadline, f"after {seconds} s still not: {what}"
        time.sleep(min(max(0.02, 2 * (now - begun)), 0.2))
        begun = time.monotonic()
    return value


def is_gone(pid: int) -> bool:
    """Return True if the process has ended, even if nobody has reaped it."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of this machine that is free, and that no other test of the run is given."""
    for port in itertools.islice(_OWN_PORTS, 750):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise AssertionError(f"of the ports {_FIRST_PORT} to {_FIRST_PORT + 749} none is free on {host}")


def answers(url: str) -> bool:
    """Return True if a GET of `url` is answered with a status below 400."""
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
