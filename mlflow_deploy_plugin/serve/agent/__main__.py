"""`python -m mlflow_deploy_plugin.serve.agent STATE_DIR [--no-follow | --ship]`: the
agent, run by the supervisor.

The supervisor sends SIGTERM after gunicorn has drained, so that all captured rows are
shipped. Exit status 1 with `fatal` in agent.json means that no version can be served.
After any other failure, the supervisor restarts the agent. `--ship` ships the rows that
a killed agent has left, and exits. `--parent PID` ends the agent after its parent.
"""

import argparse
import gc
import logging
import math
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.model_code import switch_model_code_off
from mlflow_deploy_plugin.core.processes.child import die_with_parent, end_on_signals
from mlflow_deploy_plugin.core.registry.connection import (
    hidden_pandas,
    ignore_warnings,
    own_process,
    set_service_timeouts,
)
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.statedir.commands import MAX_WAITING
from mlflow_deploy_plugin.core.statedir.files import (
    AGENT,
    METRICS,
    SPEC,
    locked,
    write_state,
)
from mlflow_deploy_plugin.core.statedir.history import HistoryWriter
from mlflow_deploy_plugin.core.statedir.metric_files import remove_metrics
from mlflow_deploy_plugin.core.statedir.models import AgentState, ShippingState
from mlflow_deploy_plugin.serve.agent.control import Recorder, audit_recorder, record_nothing
from mlflow_deploy_plugin.serve.agent.feed import FeedFollower
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from mlflow_deploy_plugin.serve.agent.follow import Follower
from mlflow_deploy_plugin.serve.agent.forms import Forms
from mlflow_deploy_plugin.serve.agent.keys import api_key_fetcher, issuer_key_fetcher
from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy, PyfuncPolicy, VersionResolver

if TYPE_CHECKING:
    from mlflow_deploy_plugin.serve.agent.delivery import Delivery

_log = logging.getLogger("mlflow_deploy_plugin.serve.agent")

_SHIP_SECONDS = 2.0
_MOST_KEY_SECONDS = 2.0
"""The maximum time until a server knows a new or a revoked API key."""
_POLL_THREADS = 8
_FETCH_THREADS = MAX_WAITING
_NICE = 10
_LOCK = "agent.lock"
_LOCK_SECONDS = 3.0
_PARENT_END_SECONDS = 2.0
_COLLECTION = gc.get_threshold()
_COLLECTION_OF_IMPORT = 100_000
"""The GC thresholds after the first round, and during the import of MLflow, which would
trigger many collections.
"""


def _follow(follower: Follower, stop: threading.Event, failed: threading.Event) -> None:
    """Follow the registry until `stop`. If no version can be served or following fails,
    set `failed` and `stop`.
    """
    try:
        while not stop.is_set():
            is_fatal = follower.round().fatal
            gc.set_threshold(*_COLLECTION)
            if is_fatal:
                failed.set()
                break
            follower.wait(stop)
    except Exception as error:  # noqa: BLE001 - any error in this thread is logged and ends the process
        _log_end(error)
        failed.set()
    finally:
        stop.set()


def main() -> int:
    """Run the agent with the options of the command line, and return its exit
    status.
    """
    parser = argparse.ArgumentParser(prog="mlflow_deploy_plugin.serve.agent")
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("--no-follow", action="store_true")
    parser.add_argument("--ship", action="store_true")
    parser.add_argument("--parent", type=int, metavar="PID")
    options = parser.parse_args()
    if options.parent is not None:
        die_with_parent(signal.SIGTERM, options.parent)
    gc.set_threshold(_COLLECTION_OF_IMPORT)
    stop = threading.Event()
    end_on_signals(stop)
    try:
        configure_logging(load_settings().log_format, "agent")
        # Two agents would overwrite each other's files. Wait, because a killed server's
        # agent may still be exiting.
        with ExitStack() as held:
            held.enter_context(hidden_pandas())
            try:
                held.enter_context(locked(options.state_dir / _LOCK, _LOCK_SECONDS))
            except BlockingIOError:
                _log.error(
                    "another agent is already running for %s; this agent exits",
                    options.state_dir,
                )
                return 1
            status = _run(options.state_dir, not options.no_follow, options.ship, stop)
            # If the server's process was killed, or ended without its atexit functions,
            # remove the server's metrics.
            has_metrics = (options.state_dir / METRICS).is_symlink()
            if has_metrics and options.parent:
                # The kernel sends the signal before all threads of the parent have
                # ended.
                until = time.monotonic() + _PARENT_END_SECONDS
                while os.getppid() == options.parent and time.monotonic() < until:
                    time.sleep(0.01)
                if os.getppid() != options.parent:
                    remove_metrics(options.state_dir)
            return status
    except OnnxserveError as error:
        try:
            state = AgentState(pid=os.getpid(), error=error.message, fatal=True)
            write_state(options.state_dir / AGENT, state)
        except OSError:  # The disk may be full.
            _log.error("%s", error.message)
        return 1
    except Exception as error:  # noqa: BLE001 - any error must end the process, which must not wait for its threads
        _log_end(error)
        return 1


def _log_end(error: Exception) -> None:
    """Log the error that ends the agent. The traceback is omitted if the disk is full
    or fails.
    """
    line = "the agent exits and will be restarted by the supervisor: %s"
    _log.error(line, error, exc_info=None if isinstance(error, OSError) else error)


def _run(
    state_dir: Path,
    follow: bool,
    only_ship: bool,
    stop: threading.Event,
) -> int:
    """Follow the registry and ship rows until `stop` is set, then ship the last rows.
    Return the exit status.

    Args:
        follow: False to poll each reference only once.
        only_ship: True to ship the rows that an earlier agent has left, and nothing
            else.
    """
    settings = load_settings()
    log_uri = settings.inference_log
    max_bytes = math.inf
    delivery: Delivery | None = None

    def deliver() -> "Delivery":
        # The import of Arrow takes longer than a server should take to start.
        from mlflow_deploy_plugin.serve.agent.delivery import Delivery

        return delivery or Delivery(state_dir, log_uri, max_bytes)

    failed = threading.Event()
    if not only_ship:
        server = load_stored_specs((state_dir / SPEC).read_text())[0].server
        max_bytes = server.max_spool_bytes
        if not log_uri.startswith("/"):  # An invalid address must end the start.
            delivery = deliver()
        own_process(imports_mlflow=False)
        switch_model_code_off()
        set_service_timeouts()
        ignore_warnings()  # `catch_warnings` would not apply to all threads.
        cache = ModelCache(settings.cache_path, state_dir)
        forms = Forms(state_dir, cache, ThreadPoolExecutor(1, "convert"))
        resolver = VersionResolver(
            MlflowRegistry(cache),
            ThreadPoolExecutor(_POLL_THREADS, "look"),
            ThreadPoolExecutor(_FETCH_THREADS, "fetch"),
            PollPolicy(settings.poll_seconds, follow, time.monotonic),
            PyfuncPolicy(allow_pickle=settings.allow_pickle),
            best_form=forms.best,
            refuse_form=forms.refuse,
            wait_for_form=forms.wait,
        )
        key_fetchers = []
        if server.api_keys:
            key_fetchers.append(
                api_key_fetcher(
                    state_dir,
                    settings.keys_file or settings.store_url,
                    min(settings.poll_seconds, _MOST_KEY_SECONDS),
                    stop,
                )
            )
        if server.jwt_issuer:
            key_fetchers.append(issuer_key_fetcher(state_dir, server.jwt_issuer, stop))
        # If callers authenticate, their commands are written to the audit trail. A
        # server with a keys file has no audit trail.
        recorder: Recorder = record_nothing
        if server.authenticates and settings.keys_file is None:
            login = "key" if server.takes_keys else "certificate"
            recorder = audit_recorder(settings.store_url, login)
        follower = Follower(
            state_dir,
            resolver,
            time.time,
            lambda: ShippingState() if delivery is None else delivery.state,
            key_fetchers,
            recorder,
            FeedFollower(stop),
        )
        # Following has its own thread, because a slow registry must not delay shipping
        # or the exit.
        threading.Thread(
            target=_follow,
            args=(follower, stop, failed),
            name="follow",
            daemon=True,
        ).start()
        for fetcher in follower.key_fetchers:
            fetcher.start()
        if follow:
            follower.feed.start()
        # Shipping has a lower priority than the workers. On Linux, nice applies only to
        # this thread and to threads that it starts later. A promotion waits for
        # `_follow`, whose thread was started before and is not slowed down.
        os.nice(_NICE)
        history = HistoryWriter(state_dir)
        while not stop.wait(_SHIP_SECONDS):
            delivery = deliver()
            history.round()
            delivery.round()
    deliver().end()
    return 1 if failed.is_set() else 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # Do not wait for threads that poll a registry that does not answer.
