"""Waiting for a condition instead of for a time, processes that have ended, and unused
ports.
"""

import contextlib
import itertools
import os
import random
import socket
import time

import psutil
import requests

EXPLAINER_SECONDS = 250
"""The process that explains starts at a low priority, which takes long on a busy
machine.
"""

# The ports are different for each pytest worker, and below the system's range (32768).
# The system may assign a port to another process while its server still starts: of
# 20,000 ports, 8 were assigned again within the next five assignments.
_FIRST_PORT = 20_000 + 750 * (
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
)
_OWN_PORTS = itertools.cycle(
    random.SystemRandom().sample(range(_FIRST_PORT, _FIRST_PORT + 750), 750)
)


def wait_until(condition, seconds=60.0, what="the condition"):
    """Return the first true value of `condition`. After `seconds`, fail with `what`.

    After a slow check, the pause is longer, because the awaited process needs the core.
    The default timeout only ends a test that hangs: on a busy machine, a controller
    took 22 s to start.
    """
    begun = time.monotonic()
    deadline = begun + seconds
    while not (value := condition()):
        now = time.monotonic()
        assert now < deadline, f"after {seconds} s still not: {what}"
        time.sleep(min(max(0.05, 2 * (now - begun)), 0.2))
        begun = time.monotonic()
    return value


def is_gone(pid):
    """Return True if the process has ended, even if it has not been reaped."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def free_port(host="127.0.0.1"):
    """Return a free port of this machine that is not given to any other test of the
    run.
    """
    for port in itertools.islice(_OWN_PORTS, 750):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise AssertionError(
        f"of the ports {_FIRST_PORT} to {_FIRST_PORT + 749} none is free on {host}"
    )


def answers(url):
    """Return True if a GET of `url` is answered with a status below 400."""
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
