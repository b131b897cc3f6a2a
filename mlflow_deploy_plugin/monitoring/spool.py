"""Wait until a server's captured rows are in the inference log: a window is judged with all of its rows."""

import time
from collections.abc import Callable
from pathlib import Path

from mlflow_deploy_plugin.server import segments, shipped_bytes
from mlflow_deploy_plugin.statedir import AGENT, SPOOL, AgentState, is_alive, read_state

_PAUSE = 0.1


def wait_until_shipped(
    state_dir: Path,
    patience: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Return True if all that is in the spool now is in the log, after waiting at most `patience` seconds for the
    agent.

    Without a living agent nobody ships, and there is nothing to wait for.
    """
    deadline = clock() + patience
    sizes = {segment: segment.stat().st_size for segment in segments(state_dir / SPOOL)}
    while any(_shipped(segment) < size for segment, size in sizes.items()):
        if clock() >= deadline or not _agent_lives(state_dir):
            return False
        pause(_PAUSE)
    return True


def _shipped(segment: Path) -> float:
    """Return the bytes of the segment that are in the log: all, if the agent has deleted it."""
    return shipped_bytes(segment) if segment.exists() else float("inf")


def _agent_lives(state_dir: Path) -> bool:
    agent = read_state(state_dir / AGENT, AgentState)
    return agent is not None and is_alive(agent.pid)
