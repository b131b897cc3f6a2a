"""Measure promotions without polling: 200 agents that follow the change feed of an
MLflow server.

    .venv/bin/python benchmarks/promotion.py               # 20 minutes on two cores
    .venv/bin/python benchmarks/promotion.py --quick       # 20 agents, five minutes

A real `mlflow server --app-name onnxserve` with four workers runs behind a TCP proxy
that counts the HTTP requests. Two agents are real `onnxserve serve` servers, which are
asked for predictions every 10 ms. The others are followers: the agent's own code in
threads of four processes (`benchmarks/promoting/agents.py`). All of them share the
cores of this machine, so the times are longer than with 200 agents on separate
machines.

polling   agents without the feed, with an interval of 2 s
alias     all agents follow the same alias
changes   each agent follows one of 20 models, whose aliases move while MLflow is killed
          (SIGKILL) and restarted, while connections are cut, while the proxy hangs, and
          while it delays all bytes by 0.5 s

A click is a call of MLflow's API that moves an alias, as MLflow's UI sends it, without
the proxy. It lasts until an agent answers with the new version. A change is missed if
an agent lacks the registry's last version 60 s after the disturbance. In `changes`,
agents without the feed would poll every 600 s, so that no poll can hide a missed
change. The exit status is 1 if a target is missed.

Each stream is opened again after 8 to 12 minutes. `--seconds 600` includes these
requests in the rate.
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

os.environ.update(
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="1",
    GIT_PYTHON_REFRESH="quiet",
    OMP_NUM_THREADS="1",
)
os.environ.update(
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.promoting.agents import Agents, running_agents
from benchmarks.promoting.proxy import Proxy
from tests.support.services.mlflow_server import MlflowServer

MODELS = 20
SERVERS = 2
MLFLOW_WORKERS = 4
MOST_REQUESTS = 4.0
MOST_SECONDS = 1.0
CONVERGENCE_SECONDS = 60.0
"""The time after which an agent without the last version counts as missed. Polls are
ten times as rare.
"""
START_SECONDS = 300.0
KILLED = "MLflow is killed"
CUT = "connections are cut"
HANGS = "the proxy hangs"
DELAYED = "the proxy is slow"
DISTURBANCES = KILLED, CUT, HANGS, DELAYED, CUT, HANGS
BURST = 25
"""Changes per disturbance."""


@dataclass
class Registry:
    """MLflow, its proxy, and the version of each model's alias. `cache` is a model
    cache with all versions.
    """

    mlflow: MlflowServer
    proxy: Proxy
    cache: Path
    versions: dict[str, str] = field(default_factory=dict)
    session: requests.Session = field(default_factory=requests.Session)

    def move(self, model: str) -> float:
        """Move the alias to the other version, directly at MLflow, until MLflow accepts
        it. Return the click's time.
        """
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

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of MLflow's processes since their start."""
        assert self.mlflow.process is not None
        server = psutil.Process(self.mlflow.process.pid)
        times = [process.cpu_times() for process in [server, *server.children(recursive=True)]]
        return float(sum(time.user + time.system for time in times))

    def requests_per_second(self, seconds: float) -> tuple[float, float, str]:
        """Count requests for some time. Return the mean and the largest rate of a
        second, and the paths.
        """
        before = self.proxy.requests.copy()
        counts = []
        for _ in range(round(seconds)):
            total = self.proxy.requests.total()
            time.sleep(1)
            counts.append(self.proxy.requests.total() - total)
        paths = ", ".join(
            f"{path} {count}" for path, count in (self.proxy.requests - before).most_common(4)
        )
        return float(np.mean(counts)), float(max(counts)), paths or "none"


@dataclass
class Results:
    """The rows of the printed table, and the targets that are missed."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def add(self, name: str, value: str, target: str = "", is_met: bool = True) -> None:
        self.rows.append(
            (name, value, f"{target}: {'met' if is_met else 'MISSED'}" if target else ""),
        )
        self.missed += [f"{name}: {target}"] if not is_met else []
        print(f"{name}: {value}", flush=True)

    def print(self) -> None:
        for row in [("", "measured", "target"), ("---", "---", "---"), *self.rows]:
            print(f"| {' | '.join(row)} |")
        print(f"targets: {'MISSED ' + '; '.join(self.missed) if self.missed else 'all met'}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="polling, alias, changes; all by default",
    )
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--clicks", type=int, default=30)
    parser.add_argument(
        "--seconds",
        type=int,
        default=60,
        help="the time for which requests are counted (60)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="20 agents, 100 changes, 5 clicks and 20 s",
    )
    options = parser.parse_args()
    if options.quick:
        options.agents = 20
        options.changes = 100
        options.clicks = 5
        options.seconds = 20
    parts = {"polling": polling, "alias": alias, "changes": changes}
    results = Results()
    folder = Path(tempfile.mkdtemp(prefix="onnxserve-promotion-"))
    os.environ["ONNXSERVE_HOME"] = str(folder / "home")
    try:
        with running_registry(folder) as registry:
            for name in options.parts or parts:
                (folder / name).mkdir()
                parts[name](registry, folder / name, results, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results.print()
    return 1 if results.missed else 0


@contextmanager
def running_registry(folder: Path) -> Iterator[Registry]:
    """Run MLflow with two versions of each model behind a proxy, and fetch all versions
    into a model cache.
    """
    from mlflow_deploy_plugin.core.registry.resolution import resolve
    from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache

    (folder / "mlflow").mkdir()
    variables = {"MLFLOW_SERVER_ALLOWED_HOSTS": "*"}
    mlflow = MlflowServer(
        folder / "mlflow",
        app="onnxserve",
        options=("--workers", str(MLFLOW_WORKERS)),
        variables=variables,
    )
    proxy = Proxy(mlflow.port)
    with ExitStack() as stack:
        stack.callback(mlflow.kill)
        begun = time.monotonic()
        mlflow.start()
        print(
            f"MLflow with {MLFLOW_WORKERS} workers started in {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        stack.enter_context(proxy.running())
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{proxy.port}"
        registry = Registry(mlflow, proxy, folder / "cache", register())
        fetching = MlflowRegistry(ModelCache(registry.cache, folder))
        for model, version in itertools.product(registry.versions, ("1", "2")):
            fetching.fetch(resolve(f"models:/{model}/{version}"))
        yield registry


def register() -> dict[str, str]:
    """Register two versions of each model, the first with the alias. Return the version
    of each model's alias.
    """
    import mlflow
    import onnx.parser
    from mlflow import MlflowClient

    client = MlflowClient()
    infos = []
    for amount in (1, 2):
        graph = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 21]>\n'
            f"adder (float[N,3] x) => (float[N,3] y) <float[1] amount = {{{amount}.0}}> "
            "{ y = Add(x, amount) }",
        )
        with mlflow.start_run():
            infos.append(mlflow.onnx.log_model(graph, name="m", pip_requirements=["onnxruntime"]))
    names = [f"model-{number}" for number in range(MODELS)]
    for name in names:
        client.create_registered_model(name)
        for info in infos:
            client.create_model_version(
                name,
                info.model_uri,
                info.run_id,
                await_creation_for=0,
                model_id=info.model_id,
            )
        client.set_registered_model_alias(name, "champion", "1")
    return dict.fromkeys(names, "1")


def start(registry: Registry, agents: Agents) -> None:
    lacking = agents.wait_for(registry.versions, START_SECONDS)
    assert not lacking, f"{len(lacking)} agents have not started"


def measure_idle(
    registry: Registry,
    results: Results,
    name: str,
    seconds: int,
    has_target: bool = True,
) -> None:
    cpu_seconds = registry.cpu_seconds()
    mean, most, paths = registry.requests_per_second(seconds)
    cores = (registry.cpu_seconds() - cpu_seconds) / seconds
    value = f"{mean:.2f} per second in {seconds} s, at most {most:.0f} in one second ({paths})"
    target = f"at most {MOST_REQUESTS:g} per second" if has_target else ""
    results.add(
        f"{name}: requests while nothing changes",
        value,
        target,
        not has_target or mean <= MOST_REQUESTS,
    )
    results.add(f"{name}: CPU of MLflow meanwhile", f"{cores:.2f} cores")


def measure_clicks(
    registry: Registry,
    agents: Agents,
    results: Results,
    name: str,
    number: int,
    has_target: bool = True,
) -> None:
    """Move the aliases of all followed models, and wait each time until all agents
    answer with the new versions.
    """
    times: dict[str, list[float]] = {"a follower": [], "a real server": []}
    for _ in range(number):
        time.sleep(random.uniform(0.5, 1.5))
        clicked = {model: registry.move(model) for model in dict.fromkeys(agents.models)}
        late = set(agents.wait_for(registry.versions, CONVERGENCE_SECONDS))
        for agent, model in enumerate(agents.models):
            seconds = (
                float("inf") if agent in late else agents.latest[agent].moment - clicked[model]
            )
            times["a real server" if agent < agents.servers else "a follower"].append(seconds)
    for kind, values in times.items():
        if values:
            p50, p99 = np.percentile(values, [50, 99])
            value = (
                f"p50 {p50:.2f} s, p99 {p99:.2f} s, maximum {max(values):.2f} s of {len(values):,}"
            )
            target = f"p99 ≤ {MOST_SECONDS:g} s" if has_target else ""
            results.add(
                f"{name}: click to {kind}",
                value,
                target,
                not has_target or p99 <= MOST_SECONDS,
            )


def polling(
    registry: Registry,
    folder: Path,
    results: Results,
    options: argparse.Namespace,
) -> None:
    models = [next(iter(registry.versions))] * options.agents
    with running_agents(folder, models, 0, 2.0, False, registry.cache) as agents:
        start(registry, agents)
        measure_idle(registry, results, "polls every 2 s, no feed", min(options.seconds, 20), False)
        measure_clicks(
            registry,
            agents,
            results,
            "polls every 2 s, no feed",
            min(options.clicks, 5),
            False,
        )


def alias(registry: Registry, folder: Path, results: Results, options: argparse.Namespace) -> None:
    models = [next(iter(registry.versions))] * options.agents
    with running_agents(folder, models, SERVERS, 30.0, True, registry.cache) as agents:
        start(registry, agents)
        measure_clicks(registry, agents, results, "one alias", options.clicks)
        measure_idle(registry, results, "one alias", options.seconds)


def changes(
    registry: Registry,
    folder: Path,
    results: Results,
    options: argparse.Namespace,
) -> None:
    names = list(registry.versions)
    models = [names[agent % MODELS] for agent in range(options.agents)]
    slowest = dict[str, list[float]]()
    missed = 0
    made = 0
    with running_agents(folder, models, SERVERS, 600.0, True, registry.cache) as agents:
        start(registry, agents)
        measure_clicks(registry, agents, results, f"{MODELS} aliases at once", options.clicks // 3)
        for kind in itertools.cycle(DISTURBANCES):
            moved = [
                names[number % MODELS] for number in range(made, min(made + BURST, options.changes))
            ]
            if not moved:
                break
            disturb(registry, kind, moved)
            made = made + len(moved)
            recovered = time.monotonic()
            lacking = agents.wait_for(registry.versions, CONVERGENCE_SECONDS)
            slowest.setdefault(kind, []).append(time.monotonic() - recovered)
            missed += len(lacking)
            if lacking:
                print(f"MISSED by the agents {lacking[:20]}, {kind}", flush=True)
                start(registry, agents)
    for kind, times in slowest.items():
        value = (
            f"{np.median(times):.1f} s in the median of {len(times)}, at most {max(times):.1f} s"
        )
        results.add(f"{kind}: until the last agent has the last version", value)
    results.add(f"agents without the last version, {made:,} changes", str(missed), "0", missed == 0)


def disturb(registry: Registry, kind: str, moved: list[str]) -> None:
    """Move the alias of each of these models during a disturbance. Return when MLflow
    can be reached again.
    """
    if kind == HANGS:
        registry.proxy.hang()
    registry.proxy.delay_seconds = 0.5 if kind == DELAYED else 0.0
    for number, model in enumerate(moved):
        if kind == KILLED and number == len(moved) // 2:
            registry.mlflow.kill()
            registry.mlflow.start()
        if kind == CUT and number % 5 == 0:
            registry.proxy.cut()
        registry.move(model)
    registry.proxy.recover()


if __name__ == "__main__":
    sys.exit(main())
