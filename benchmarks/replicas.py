"""Measure several replicas of a server of all registered models behind nginx, next to
one server with the same memory: `python -m benchmarks.registry --replicas 4`.

Clients choose models by Zipf's law, and send each request once. Each minute, the alias
of a tenth of the models moves between two versions. After a third of the time, one
replica is killed with all its processes; after another third, it is started again.
"""

import argparse
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.serving.servers import answers, free_port
from mlflow_deploy_plugin.contrib.replicas.routing import nginx_conf
from mlflow_deploy_plugin.core.spec.parts import ProxySpec, ServerSpec

COLUMNS = 30
HEADERS = {"Content-Type": "application/json"}
BODY = b'{"inputs": [[' + b", ".join([b"0.5"] * COLUMNS) + b"]]}"
MOVED_PER_MINUTE = 0.1


@dataclass
class Replica:
    """A server in a session of its own, which is started again on the same port."""

    folder: Path
    port: int
    options: Sequence[str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve", *self.options]
        command += ["--registry", "@champion", "-p", str(self.port)]
        command += ["--state-dir", str(self.folder / "state")]
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_listed(self) -> None:
        """Wait until the server is ready and knows all models."""
        assert self.process is not None
        question = urllib.request.Request(f"http://127.0.0.1:{self.port}/v2/health/ready")
        while not answers(question) or "registered models are listed" not in self.log():
            if self.process.poll() is not None:
                raise SystemExit(self.log()[-3000:])
            time.sleep(0.2)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send the signal to the server; SIGKILL is sent to all its processes."""
        if self.process is None:
            return
        if number == signal.SIGKILL:
            # As if the machine fails: no process answers that another one is gone.
            os.killpg(self.process.pid, signal.SIGSTOP)
            os.killpg(self.process.pid, number)
        elif self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(timeout=60)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def loads(self) -> int:
        return len(re.findall(r"loaded model-", self.log()))


@dataclass
class Load:
    """Clients that send requests until they are stopped.

    Attributes:
        port: the HTTP port of nginx or of the server.
        seconds: the duration of each request, with the time of its end.
        failed: a description of each request without an answer 200.
    """

    port: int
    names: list[str]
    seconds: list[tuple[float, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        weights = 1 / np.arange(1, len(self.names) + 1)
        chosen = rng.choice(len(self.names), 1_000_000, p=weights / weights.sum())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        for number in chosen:
            if self.stopped.is_set():
                break
            path = f"/models/{self.names[number]}/invocations"
            began = time.monotonic()
            try:
                connection.request("POST", path, BODY, HEADERS)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    self.failed.append(f"{path} {answer.status} {content[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self.failed.append(f"{path} {error!r}")
            ended = time.monotonic()
            self.seconds.append((ended, ended - began))
        connection.close()


@contextmanager
def moving_aliases(names: list[str]) -> Iterator[list[str]]:
    """Move the aliases of a tenth of the models per minute, in a random order, and
    yield the list of the moved models.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    stopped = threading.Event()
    moved: list[str] = []

    def move() -> None:
        rng = np.random.default_rng(2)
        pause = 60 / (len(names) * MOVED_PER_MINUTE)
        versions: dict[str, int] = {}
        due = time.monotonic()
        while not stopped.wait(max(0.0, due - time.monotonic())):
            name = names[rng.integers(len(names))]
            versions[name] = 3 - versions.get(name, 1)
            client.set_registered_model_alias(name, "champion", versions[name])
            moved.append(name)
            due += pause

    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield moved
    finally:
        stopped.set()
        mover.join()


@contextmanager
def proxied(folder: Path, replicas: list[Replica]) -> Iterator[int]:
    """Run nginx in front of the replicas, and yield its port."""
    port = free_port()
    addresses = [{"http": f"127.0.0.1:{replica.port}"} for replica in replicas]
    spec = ProxySpec(replicas=len(replicas))
    listen = {"http": f"127.0.0.1:{port}"}
    text = nginx_conf(spec, ServerSpec(), listen, addresses)
    folder.mkdir()
    (folder / "nginx.conf").write_text(text.replace("/tmp/", f"{folder}/"))
    nginx = shutil.which("nginx", path=f"/usr/sbin:{os.environ['PATH']}")
    if nginx is None:
        raise SystemExit("there is no nginx on this machine: apt-get install nginx")
    command = [nginx, "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def measure_phase(
    port: int, replicas: list[Replica], names: list[str], options: argparse.Namespace
) -> list[str]:
    """Warm up, send requests, move aliases, and, if there are several replicas, kill
    one and start it again. Return the column of the table.
    """
    load = Load(port, names)
    clients = [threading.Thread(target=load.run, args=(seed,)) for seed in range(options.clients)]
    for client in clients:
        client.start()
    time.sleep(options.seconds / 2)
    began = time.monotonic()
    loads_before = sum(replica.loads() for replica in replicas)
    with moving_aliases(names) as moved:
        time.sleep(options.seconds / 3)
        killed_at = time.monotonic()
        if len(replicas) > 1:
            replicas[1].stop(signal.SIGKILL)
        time.sleep(options.seconds / 3)
        started_at = time.monotonic()
        if len(replicas) > 1:
            replicas[1].start()
        time.sleep(options.seconds / 3)
    load.stopped.set()
    for client in clients:
        client.join()
    for line in load.failed[:20]:
        print(line, file=sys.stderr)
    loads = sum(replica.loads() for replica in replicas) - loads_before
    requests = sum(end >= began for end, _ in load.seconds)
    cells = [f"{requests:,}", str(len(load.failed)), f"{len(moved):,}"]
    cells.append(f"{loads:,}, {loads / requests:.1%}")
    ended = time.monotonic()
    periods = [(began, killed_at), (killed_at, started_at), (started_at, ended)]
    for since, until in [(began, ended), *periods]:
        spent = [seconds for end, seconds in load.seconds if since <= end < until]
        p50, p99 = np.percentile(spent or [0], [50, 99])
        cells.append(f"{1e3 * p50:.1f} ms; {1e3 * p99:.0f} ms")
    return cells


def report_replicas(
    root: Path, names: list[str], limit_mebibytes: int, options: argparse.Namespace
) -> None:
    """Measure the replicas, and then one server with the memory of all, and print the
    table.
    """
    columns = []
    for number in (options.replicas, 1):
        memory = f"server.model_memory={limit_mebibytes // number}MiB"
        replicas = [
            Replica(root / f"{number}-{index}", free_port(), ["-C", memory])
            for index in range(number)
        ]
        with ExitStack() as stack:
            for replica in replicas:
                replica.start()
                stack.callback(replica.stop)
            for replica in replicas:
                replica.wait_listed()
            port = replicas[0].port
            if number > 1:
                port = stack.enter_context(proxied(root / "proxy", replicas))
            columns.append(measure_phase(port, replicas, names, options))
    load = os.getloadavg()
    print(
        f"load average {load[0]:.1f}, {psutil.cpu_count()} cores, {len(names):,} models, ", end=""
    )
    print(f"{limit_mebibytes} MiB, {options.clients} clients, {options.seconds} s")
    print(f"| | {options.replicas} replicas, one killed | 1 server |\n|---|---|---|")
    rows = ["requests", "failed", "moved aliases", "loads, share of the requests", "p50; p99"]
    rows += [f"… {period}" for period in ("while all run", "while one is dead", "after its start")]
    for row, *cells in zip(rows, *columns, strict=True):
        print(f"| {row} | {' | '.join(cells)} |")
