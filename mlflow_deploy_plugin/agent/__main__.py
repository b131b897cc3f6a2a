"""`python -m mlflow_deploy_plugin.agent STATE_DIR [--no-follow | --ship]`: started and ended by the supervisor.

SIGTERM ends it: the supervisor sends it once gunicorn has drained, so that everything captured is shipped. Exit status
1 with `fatal` in agent.json: there is nothing to be served. Any other failure is a crash, after which it is restarted.
With `--ship` it ships what an agent that was killed has left, and ends.
"""

import argparse
import fcntl
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mlflow_deploy_plugin.agent.fetch import MlflowRegistry, ModelCache
from mlflow_deploy_plugin.agent.follow import Follower
from mlflow_deploy_plugin.agent.progress import WatermarkWriter
from mlflow_deploy_plugin.agent.resolver import PollPolicy, VersionResolver
from mlflow_deploy_plugin.agent.ship import Shipper
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.logs import configure_logging
from mlflow_deploy_plugin.registry.connection import set_service_timeouts
from mlflow_deploy_plugin.server.capture.frames import segments
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.statedir import AGENT, SPOOL, AgentState, write_state

_log = logging.getLogger("mlflow_deploy_plugin.agent")

_ROUND_SECONDS = 0.25
"""Between two looks at the files; how often the registry is asked is `settings.poll_seconds`."""
_COMMAND_SECONDS = 0.05
"""Between two looks for a command: somebody waits for its answer."""
_SHIP_SECONDS = 2.0
_POLL_THREADS, _FETCH_THREADS = 4, 2
_NICE = 10
_LOCK, _LOCK_SECONDS = "agent.lock", 3.0


class _FollowThread(threading.Thread):
    """Runs the rounds beside shipping: a registry that is slow to fail must delay neither shipping nor the end."""

    def __init__(self, follower: Follower, stop: threading.Event) -> None:
        super().__init__(name="follow", daemon=True)
        self._follower = follower
        self._stop_agent = stop
        self.failed = False

    def run(self) -> None:
        try:
            while not self._stop_agent.is_set():
                if self._follower.round().fatal:
                    self.failed = True
                    break
                self._pause()
        except Exception:  # noqa: BLE001 - the boundary of this thread: it logs, and the process ends
            _log.exception("the agent ends, and is started anew by the supervisor")
            self.failed = True
        finally:
            self._stop_agent.set()

    def _pause(self) -> None:
        until = time.monotonic() + _ROUND_SECONDS
        while not self._stop_agent.wait(_COMMAND_SECONDS) and time.monotonic() < until:
            if self._follower.has_work():
                return


def main() -> int:
    parser = argparse.ArgumentParser(prog="mlflow_deploy_plugin.agent")
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("--no-follow", action="store_true")
    parser.add_argument("--ship", action="store_true")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        configure_logging(load_settings(), "agent")
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # an outage is told once, by us, not at every poll
        with _agent_lock(options.state_dir) as is_alone:
            if is_alone and options.ship:
                return _ship_rest(options.state_dir)
            return _run(options.state_dir, not options.no_follow, stop) if is_alone else 1
    except OnnxserveError as error:
        write_state(options.state_dir / AGENT, AgentState(pid=os.getpid(), error=error.message, fatal=True))
        return 1


@contextmanager
def _agent_lock(state_dir: Path) -> Iterator[bool]:
    """Whether this is the only agent of the state folder; the kernel lets go of it however the process ends.

    Two would overwrite each other's wanted state. An agent whose supervisor was killed may live for a moment still.
    """
    with (state_dir / _LOCK).open("w") as lock:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    _log.error("another agent follows for %s already; this one ends", state_dir)
                    yield False
                    return
                time.sleep(_ROUND_SECONDS)
        yield True


def _run(state_dir: Path, follow: bool, stop: threading.Event) -> int:
    settings = load_settings()
    set_service_timeouts()
    warnings.simplefilter("ignore", FutureWarning)  # of stages; for all threads, which `catch_warnings` is not made for
    shipper = Shipper(state_dir / SPOOL, settings.inference_log)
    pursuit = VersionResolver(
        MlflowRegistry(ModelCache(settings.cache_path, state_dir)),
        ThreadPoolExecutor(_POLL_THREADS, "look"),
        ThreadPoolExecutor(_FETCH_THREADS, "fetch"),
        PollPolicy(settings.poll_seconds, follow, time.monotonic),
    )
    follower = Follower(state_dir, pursuit, time.time, lambda: shipper.state)
    following = _FollowThread(follower, stop)
    following.start()
    # Of a core that it shares with workers, shipping is to have what they leave. On Linux this is about this thread and
    # those that it starts, not `following`: somebody waits for a version that is promoted, or rolled back.
    os.nice(_NICE)
    watermark = WatermarkWriter(state_dir, shipper.location, shipper.progress)
    while not stop.wait(_SHIP_SECONDS):
        shipper.round()
        watermark.round()
    _end(state_dir, shipper, watermark)
    return 1 if following.failed else 0


def _ship_rest(state_dir: Path) -> int:
    shipper = Shipper(state_dir / SPOOL, load_settings().inference_log)
    _end(state_dir, shipper, WatermarkWriter(state_dir, shipper.location, shipper.progress))
    return 0


def _end(state_dir: Path, shipper: Shipper, watermark: WatermarkWriter) -> None:
    """Ships all that there is, and says whether that was all."""
    shipper.ship()
    watermark.end(is_shipped=not segments(state_dir / SPOOL))


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # a look at a registry that does not answer may still be waiting in its thread
