"""Waiting for a condition instead of for a time, processes that have ended, and ports that nobody uses."""

import socket
import time
from collections.abc import Callable
from typing import Any

import psutil
import requests


def wait_until(condition: Callable[[], Any], seconds: float = 30.0, what: str = "the condition") -> Any:
    """Return the first true value of `condition`; fail with `what` after `seconds`.

    A look that takes long is followed by a longer pause: what is waited for needs the core itself.
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
    """Return a port of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Return True if a GET of `url` is answered with a status below 400."""
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
