"""Measure promotions without polling: 200 agents that follow the change feed of an MLflow server.

    .venv/bin/python benchmarks/promotion.py               # about 20 minutes on two cores
    .venv/bin/python benchmarks/promotion.py --quick       # 20 agents and 100 changes, five minutes

A real `mlflow server --app-name onnxserve` with four workers runs behind a TCP proxy that counts the HTTP requests.
Two agents are real `onnxserve serve` servers, which are asked for predictions every 10 ms. The others are followers: the
agent's own code in threads of four processes (`benchmarks/promoting/agents.py`). All processes share the cores, which
200 agents of a company would not.

polling   the same agents without the feed, with an interval of 2 s: requests per second, and the times of clicks
alias     all agents follow the same alias: requests per second while nothing changes, and the times of clicks
changes   the agents follow 20 models, whose aliases move while MLflow is killed (SIGKILL) and restarted, connections
          are cut, the proxy hangs, or bytes are delayed; agents that lack the last version are counted

A click is a call of MLflow's API that moves an alias, as MLflow's UI sends it, without the proxy. It lasts until an
agent answers with the new version. The interval of polls is 30 s for `alias`. For `changes` it is 600 s, so that no poll
can hide a missed change. The exit status is 1 if a target is missed.
"""

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import requests

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1", GIT_PYTHON_REFRESH="quiet", OMP_NUM_THREADS="1")
os.environ.update(MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false", MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.promoting.agents import Agents, running_agents
from benchmarks.promoting.proxy import Proxy
from tests.support.services.mlflow_server import MlflowServer

MODELS = 20
SERVERS = 2
MLFLOW_WORKERS = 4
MOST_REQUESTS, MOST_SECONDS = 4.0, 1.0
CONVERGENCE_SECONDS = 60.0
"""The time after which an agent without the last version counts as missed. Polls are ten times as rare."""
START_SECONDS = 300.0
BURST = 25
"""Changes per disturbance."""


@dataclass
class Registry:
    """MLflow, its proxy, and the version of each model's alias. `cache` is a model cache with all versions."""

    mlflow: MlflowServer
    proxy: Proxy
    cache: Path
    versions: dict[str, str] = field(default_factory=dict)
    session: requests.Session = field(default_factory=requests.Session)

    def move(self, model: str) -> float:
        """Move the alias to the other version, directly at MLflow, until MLflow accepts it. Return the click's time."""
        version = "2" if self.versions[model] == "1" else "1"
        url = f"{self.mlflow.url}/api/2.0/mlflow/registered-models/alias"
        body = {"name": model, "alias": "champion", "version": version}
        while True:
            clicked = time.monotonic()
            try:
                if self.session.post(url, json=body, timeout=10).ok:
                    self.versions[model] = version
                    return clicked
            except requests.RequestException:
                self.session.close()
            time.sleep(0.1)

    def requests_per_second(self, seconds: float) -> tuple[float, float, str]:
        """Count requests for some time. Return the mean and the largest rate of a second, and the paths."""
        before, counts = self.proxy.requests.copy(), []
        for _ in range(round(seconds)):
            total = self.proxy.requests.total()
            time.sleep(1)
            counts.append(self.proxy.requests.total() - total)
        paths = ", ".join(f"{path} {count}" for path, count in (self.proxy.requests - before).most_common(4))
        return float(np.mean(counts)), float(max(counts)), paths or "none"


@dataclass
class Clicks:
    """The seconds from each click to the new version, of the followers and of the real servers."""

    followers: list[float] = field(default_factory=list)
    servers: list[float] = field(default_factory=list)
    lacking: int = 0

    def row(self, name: str, seconds: list[float]) -> str:
        p50, p99 = np.percentile(seconds, [50, 99])
        return f"{name}: {len(seconds):,} answers, p50 {p50:.2f} s, p99 {p99:.2f} s, maximum {max(seconds):.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="polling, alias, changes; all by default")
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--clicks", type=int, default=30)
    parser.add_argument("--seconds", type=int, default=60, help="the time for which requests are counted (60)")
    parser.add_argument("--quick", action="store_true", help="20 agents, 100 changes, 5 clicks and 20 s")
    options = parser.parse_args()
    if options.quick:
        options.agents, options.changes, options.clicks, options.seconds = 20, 100, 5, 20
    parts = {"polling": polling, "alias": alias, "changes": changes}
    missed: list[str] = []
    folder = Path(tempfile.mkdtemp(prefix="onnxserve-promotion-"))
    os.environ["ONNXSERVE_HOME"] = str(folder / "home")
    try:
        with running_registry(folder) as registry:
            for name in options.parts or parts:
                (folder / name).mkdir()
                missed += parts[name](registry, folder / name, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"targets: {'all met' if not missed else 'MISSED ' + ', '.join(missed)}")
    return 1 if missed else 0


@contextmanager
def running_registry(folder: Path) -> Iterator[Registry]:
    """Run MLflow with two versions of each model behind a proxy, and fetch all versions into a model cache."""
    from mlflow_deploy_plugin.agent.fetch import MlflowRegistry, ModelCache
    from mlflow_deploy_plugin.registry import resolve

    (folder / "mlflow").mkdir()
    variables = {"MLFLOW_SERVER_ALLOWED_HOSTS": "*"}
    mlflow = MlflowServer(
        folder / "mlflow", app="onnxserve", options=("--workers", str(MLFLOW_WORKERS)), variables=variables
    )
    proxy = Proxy(mlflow.port)
    with ExitStack() as stack:
        stack.callback(mlflow.kill)
        begun = time.monotonic()
        mlflow.start()
        print(f"MLflow with {MLFLOW_WORKERS} workers started in {time.monotonic() - begun:.0f} s", flush=True)
        stack.enter_context(proxy.running())
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{proxy.port}"
        registry = Registry(mlflow, proxy, folder / "cache", register())
        fetching = MlflowRegistry(ModelCache(registry.cache, folder))
        for model, version in itertools.product(registry.versions, ("1", "2")):
            fetching.fetch(resolve(f"models:/{model}/{version}"))
        yield registry


def register() -> dict[str, str]:
    """Register two versions of each model, the first with the alias. Return the version of each model's alias."""
    import mlflow
    import onnx.parser
    from mlflow import MlflowClient

    client, infos = MlflowClient(), []
    for amount in (1, 2):
        graph = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 21]>\n'
            f"adder (float[N,3] x) => (float[N,3] y) <float[1] amount = {{{amount}.0}}> {{ y = Add(x, amount) }}"
        )
        with mlflow.start_run():
            infos.append(mlflow.onnx.log_model(graph, name="m", pip_requirements=["onnxruntime"]))
    names = [f"model-{number}" for number in range(MODELS)]
    for name in names:
        client.create_registered_model(name)
        for info in infos:
            client.create_model_version(name, info.model_uri, info.run_id, await_creation_for=0, model_id=info.model_id)
        client.set_registered_model_alias(name, "champion", "1")
    return dict.fromkeys(names, "1")


def start(registry: Registry, agents: Agents) -> None:
    lacking = agents.wait_for(registry.versions, START_SECONDS)
    assert not lacking, f"{len(lacking)} agents have not started"


def clicks(registry: Registry, agents: Agents, number: int) -> Clicks:
    """Move the alias of the first model, and wait each time until all agents answer with the new version."""
    result, model = Clicks(), agents.models[0]
    for _ in range(number):
        time.sleep(random.uniform(0.5, 1.5))
        clicked = registry.move(model)
        lacking = set(agents.wait_for({model: registry.versions[model]}, CONVERGENCE_SECONDS))
        result.lacking += len(lacking)
        for agent, arrival in agents.latest.items():
            if arrival.model == model and agent not in lacking:
                (result.servers if agent < agents.servers else result.followers).append(arrival.moment - clicked)
    return result


def polling(registry: Registry, folder: Path, options: argparse.Namespace) -> list[str]:
    print(f"\npolling every 2 s, {options.agents} agents of one alias, without the feed")
    models = [next(iter(registry.versions))] * options.agents
    with running_agents(folder, models, 0, 2.0, False, registry.cache) as agents:
        start(registry, agents)
        report_idle(registry, min(options.seconds, 20))
        report_clicks(clicks(registry, agents, min(options.clicks, 5)))
    return []


def alias(registry: Registry, folder: Path, options: argparse.Namespace) -> list[str]:
    print(f"\nthe feed, {options.agents} agents of one alias, {SERVERS} of them real servers")
    models = [next(iter(registry.versions))] * options.agents
    with running_agents(folder, models, SERVERS, 30.0, True, registry.cache) as agents:
        start(registry, agents)
        time.sleep(15)  # The agents connect to the feed, and the requests of the start end.
        rate = report_idle(registry, options.seconds)
        result = clicks(registry, agents, options.clicks)
        report_clicks(result)
    late = np.percentile(result.followers + result.servers, 99) > MOST_SECONDS or result.lacking
    targets = {f"at most {MOST_REQUESTS:g} requests/s": rate <= MOST_REQUESTS, "click p99 ≤ 1 s": not late}
    return [target for target, is_met in targets.items() if not is_met]


def changes(registry: Registry, folder: Path, options: argparse.Namespace) -> list[str]:
    print(f"\n{options.changes} changes of {MODELS} models, {options.agents} agents, {SERVERS} of them real servers")
    names = list(registry.versions)
    models = [names[agent % MODELS] for agent in range(options.agents)]
    slowest, lacking, made = dict[str, list[float]](), 0, 0
    disturbances = itertools.cycle(["killed", "cut", "hangs", "delayed", "cut", "hangs", "delayed"])
    with running_agents(folder, models, SERVERS, 600.0, True, registry.cache) as agents:
        start(registry, agents)
        time.sleep(5)
        while made < options.changes:
            kind = next(disturbances)
            moved = [names[number % MODELS] for number in range(made, min(made + BURST, options.changes))]
            disturb(registry, kind, moved)
            made += len(moved)
            recovered = time.monotonic()
            missing = agents.wait_for(registry.versions, CONVERGENCE_SECONDS)
            seconds = time.monotonic() - recovered
            lacking += len(missing)
            slowest.setdefault(kind, []).append(seconds)
            if missing:
                print(f"MISSED after {kind}: the agents {missing[:20]}", flush=True)
                assert not agents.wait_for(registry.versions, START_SECONDS), "agents stay without the last version"
    for kind, times in slowest.items():
        print(f"{kind}: {len(times)} times, the last agent after {np.median(times):.1f} s, at most {max(times):.1f} s")
    print(f"missed: {lacking} agents after {made:,} changes")
    return ["no change is missed"] if lacking else []


def disturb(registry: Registry, kind: str, moved: list[str]) -> None:
    """Move the alias of each of these models during a disturbance. Return when MLflow can be reached again."""
    match kind:
        case "hangs":
            registry.proxy.hang()
        case "delayed":
            registry.proxy.delay_seconds = 0.5
    for number, model in enumerate(moved):
        if kind == "killed" and number == len(moved) // 2:
            registry.mlflow.kill()
            registry.mlflow.start()
        if kind == "cut" and number % 5 == 0:
            registry.proxy.cut()
        registry.move(model)
    registry.proxy.recover()


def report_idle(registry: Registry, seconds: int) -> float:
    mean, most, paths = registry.requests_per_second(seconds)
    processor = psutil.cpu_percent(1)
    print(f"while nothing changes: {mean:.1f} requests/s in {seconds} s, at most {most:.0f} in one second ({paths})")
    print(f"the machine is {processor:.0f} % busy", flush=True)
    return mean


def report_clicks(result: Clicks) -> None:
    print(result.row("click to the version of a follower", result.followers))
    if result.servers:
        print(result.row("click to the first answer of a real server", result.servers))
    if result.lacking:
        print(f"{result.lacking} answers did not arrive within {CONVERGENCE_SECONDS:g} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
