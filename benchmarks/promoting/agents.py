"""Many agents of `onnxserve serve` in a few processes, and real servers, that report
each version they answer with.

A server takes 100 MB, so most agents are followers: the agent's own code (`Follower`,
`VersionResolver`, `FeedFollower`) with a state folder, a model cache and connections to
MLflow, in two threads. A follower answers with a version when its wanted.json names the
version. A real server is asked for predictions in a loop.
"""

import http.client
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.support.serving import Served, servers_below
from tests.support.waiting import free_port

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

PROCESSES = 4
_START_SECONDS = 0.02
_ASK_SECONDS = 0.01
_BODY = json.dumps({"inputs": [[1.0] * 3]})


@dataclass(frozen=True)
class Arrival:
    """An agent answers with a version of a model since `moment` (monotonic, equal in
    all processes).
    """

    agent: int
    model: str
    version: str
    moment: float


@dataclass
class Agents:
    """Running agents. `models` has the model of each agent, and `servers` of the agents
    are real servers.
    """

    models: list[str]
    servers: int
    latest: dict[int, Arrival] = field(default_factory=dict)
    has_arrived: threading.Condition = field(default_factory=threading.Condition)

    def take(self, arrival: Arrival) -> None:
        with self.has_arrived:
            self.latest[arrival.agent] = arrival
            self.has_arrived.notify_all()

    def lacking(self, versions: dict[str, str]) -> list[int]:
        """Return the agents that do not answer with these versions of their models."""
        return [
            agent
            for agent, model in enumerate(self.models)
            if model in versions
            and (agent not in self.latest or self.latest[agent].version != versions[model])
        ]

    def wait_for(self, versions: dict[str, str], seconds: float) -> list[int]:
        """Wait until all agents answer with these versions. Return the agents that do
        not after `seconds`.
        """
        with self.has_arrived:
            self.has_arrived.wait_for(lambda: not self.lacking(versions), seconds)
            return self.lacking(versions)


@contextmanager
def running_agents(
    folder: Path,
    models: list[str],
    servers: int,
    poll_seconds: float,
    has_feed: bool,
    cache: Path,
) -> Iterator[Agents]:
    """Run an agent per entry of `models`, the first `servers` of them as real servers.
    `cache` has all versions.
    """
    agents = Agents(models, servers)
    stop = threading.Event()
    os.environ["ONNXSERVE_POLL_SECONDS"] = str(poll_seconds)
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[Arrival | None] = context.SimpleQueue()
    followers = list(enumerate(models))[servers:]
    arguments = [
        (folder, followers[start::PROCESSES], queue, cache, poll_seconds, has_feed)
        for start in range(PROCESSES)
    ]
    processes = [context.Process(target=follow_all, args=some, daemon=True) for some in arguments]

    def receive() -> None:
        while (arrival := queue.get()) is not None:
            agents.take(arrival)

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    for process in processes:
        process.start()
    try:
        with servers_below(folder) as start:
            served = [
                start(
                    f"models:/{model}@champion",
                    "-w",
                    "1",
                    "-p",
                    str(free_port()),
                    state=f"server-{agent}",
                )
                for agent, model in enumerate(models[:servers])
            ]
            asking = [
                threading.Thread(
                    target=ask,
                    args=(agent, models[agent], one.wait_ready(), agents, stop),
                )
                for agent, one in enumerate(served)
            ]
            for thread in asking:
                thread.start()
            try:
                yield agents
            finally:
                stop.set()
                for thread in asking:
                    thread.join()
    finally:
        for process in processes:
            process.kill()
            process.join()
        queue.put(None)
        receiver.join()


def ask(agent: int, model: str, served: Served, agents: Agents, stop: threading.Event) -> None:
    """Ask a real server for predictions until `stop`, and report a version when it is
    first seen.
    """
    address = urlsplit(served.url).netloc
    connection = http.client.HTTPConnection(address, timeout=30)
    version = ""
    while not stop.wait(_ASK_SECONDS):
        connection.request("POST", "/invocations", _BODY, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200 and (now := answer.headers["X-Model-Version"]) != version:
            version = now
            agents.take(Arrival(agent, model, version, time.monotonic()))
    connection.close()


def follow_all(
    folder: Path,
    followers: Sequence[tuple[int, str]],
    queue: "SimpleQueue[Arrival | None]",
    cache: Path,
    poll_seconds: float,
    has_feed: bool,
) -> None:
    """Run followers in this process until it is killed."""
    from mlflow_deploy_plugin.core.processes.child import die_with_parent
    from mlflow_deploy_plugin.core.registry.connection import (
        hidden_pandas,
        ignore_warnings,
        own_process,
        set_service_timeouts,
    )

    die_with_parent(signal.SIGKILL)
    logging.disable(logging.WARNING)  # Each follower reports each disturbance.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with hidden_pandas():
        own_process(imports_mlflow=False)
        set_service_timeouts()
        ignore_warnings()
        for agent, model in followers:
            state_dir = folder / f"follower-{agent}"
            shutil.copytree(cache, state_dir / "cache", copy_function=os.link)
            (state_dir / "spec.yaml").write_text(
                f"name: e\nvariants: {{v: {{model: 'models:/{model}@champion'}}}}\n",
            )
            arguments = (state_dir, agent, model, queue, poll_seconds, has_feed)
            threading.Thread(target=follow, args=arguments, daemon=True).start()
            time.sleep(_START_SECONDS)
        threading.Event().wait()


def follow(
    state_dir: Path,
    agent: int,
    model: str,
    queue: "SimpleQueue[Any]",
    poll_seconds: float,
    has_feed: bool,
) -> None:
    """Run an agent like `serve/agent/__main__.py`, without the spool. Report a version
    after its wanted.json is written.
    """
    from mlflow_deploy_plugin.serve.agent.feed import FeedFollower
    from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
    from mlflow_deploy_plugin.serve.agent.follow import Follower
    from mlflow_deploy_plugin.serve.agent.resolver import PollPolicy, VersionResolver

    stop = threading.Event()
    resolver = VersionResolver(
        MlflowRegistry(ModelCache(state_dir / "cache", state_dir)),
        ThreadPoolExecutor(1, "look"),
        ThreadPoolExecutor(2, "fetch"),
        PollPolicy(poll_seconds, True, time.monotonic),
    )
    feed = FeedFollower(stop)
    follower = Follower(state_dir, resolver, time.time, feed=feed)
    if has_feed:
        feed.start()
    version = ""
    while True:
        follower.round()
        (followed,) = resolver.models.values()
        if followed.version is not None and followed.version.version != version:
            version = followed.version.version
            queue.put(Arrival(agent, model, version, time.monotonic()))
        follower.wait(stop)
