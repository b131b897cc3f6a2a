"""The measurements: each work starts its servers, checks their responses, sends
requests in interleaved rounds, and yields rows.
"""

import json
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from projects.environments import NotInstalled, environment, versions

from . import models, table
from .load import Measured, Target, closed_loop, post, wrk_loop
from .peers import (
    BENTOML,
    BENTOML_MODELS,
    FASTAPI,
    HERE,
    MLFLOW,
    MLSERVER,
    MLSERVER_MODELS,
    MOSEC,
    OURS,
    OURS_MODELS,
    Peer,
)
from .servers import NotStarted, Server, free_port, running

CONNECTIONS = 8
ONE_ROW = "1 row × 30 floats"


@dataclass
class Bench:
    """One run of the benchmark.

    Attributes:
        installs: peers that are not installed are installed first.
        models: the numbers of models on one server.
    """

    folder: Path
    rounds: int
    seconds: float
    say: Callable[[str], None]
    peers: frozenset[str] | None = None
    installs: bool = True
    models: Sequence[int] = (1, 10, 100)
    notes: list[str] = field(default_factory=list)
    _started: int = 0

    def wants(self, name: str) -> bool:
        return self.peers is None or any(word.lower() in name.lower() for word in self.peers)

    def note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def work_folder(self) -> Path:
        self._started += 1
        folder = self.folder / "runs" / str(self._started)
        folder.mkdir(parents=True)
        return folder


@dataclass(frozen=True)
class Asked:
    """A server and its request."""

    server: Server
    target: Target
    polls: bool = False


def one_row(bench: Bench) -> Iterator[table.Row]:
    """Measure one row of thirty floats, with all servers."""
    model, data = models.small(bench.folder)
    targets = {MLFLOW: 50, FASTAPI: 10, BENTOML: 8, MLSERVER: 8, MOSEC: 2.5}
    with ExitStack() as stack:
        asked: dict[Peer, Asked] = {}
        for peer in (OURS, *targets):
            for request in start(bench, stack, peer, [model], data.head(1)):
                asked[peer] = request
        measured = {"": rounds_of(bench, [*asked.values()], closed_loop)}
        if shutil.which("wrk"):
            measured[" (wrk)"] = rounds_of(bench, [*asked.values()], wrk_loop)
        else:
            bench.notes.append("wrk is not installed: only the polling client was used")
    for client, (mine, *theirs) in measured.items():
        for peer, rounds in zip([*asked][1:], theirs, strict=True):
            yield table.compared(ONE_ROW + client, peer.name, mine, rounds, targets[peer])
    wrong = sum(m.wrong for every in measured.values() for rounds in every for m in rounds)
    bench.notes.append(f"{ONE_ROW}: {wrong} wrong answers of all servers together")


def start_and_memory(bench: Bench) -> Iterator[table.Row]:
    """Measure the time from the command to the first response, and the memory of the
    worker at that time.
    """
    model, data = models.small(bench.folder)
    targets = {MLFLOW: (5, 3), BENTOML: (None, None), MLSERVER: (None, None)}
    seconds: dict[Peer, list[float]] = {}
    memory: dict[Peer, list[float]] = {}
    for _ in range(bench.rounds):
        for peer in (OURS, *targets):
            with ExitStack() as stack:
                for asked in start(bench, stack, peer, [model], data.head(1)):
                    seconds.setdefault(peer, []).append(asked.server.start_seconds)
                    memory.setdefault(peer, []).append(_worker_memory(asked.server))
    for what, values, unit, place in (
        ("start to first response", seconds, "s", 0),
        ("memory of the worker (PSS)", memory, "MB", 1),
    ):
        for peer, others in list(values.items())[1:]:
            target = targets[peer][place]
            yield table.times_less(what, peer.name, values[OURS], others, unit, target)


def form(peer: Peer, rows: pd.DataFrame, name: str = models.SMALL) -> bytes:
    """Return the rows in the form that this server's users send; MLflow takes rows
    without names only for tensors.
    """
    if peer is MLFLOW:
        return models.as_split(rows)
    values = rows.to_numpy().tolist()
    if peer.is_v2:
        tensor = {"name": "x", "shape": rows.shape, "datatype": "FP64", "data": values}
        return models.as_json(inputs=[tensor])
    if peer is BENTOML_MODELS:
        return models.as_json(name=name, inputs=values)
    return models.as_json(inputs=values)


def _worker_memory(server: Server) -> float:
    """Return the memory of the largest worker in megabytes."""
    return max(worker.memory_full_info().pss for worker in server.workers()) / 1e6


def rounds_of(
    bench: Bench,
    everyone: Sequence[Asked],
    client: Callable[[Target, int, float], Measured],
) -> list[list[Measured]]:
    """Run the rounds in the order A B C A B C …, so that a disturbance of the machine
    affects all servers.
    """
    measured: list[list[Measured]] = [[] for _ in everyone]
    polling = [asked.server for asked in everyone if asked.polls]
    for server in polling:
        server.pause()
    for number in range(bench.rounds):
        bench.say(f"  round {number + 1} of {bench.rounds}")
        for asked, results in zip(everyone, measured, strict=True):
            if asked.polls:
                asked.server.go_on()
            results.append(client(asked.target, CONNECTIONS, bench.seconds))
            if asked.polls:
                asked.server.pause()
    for server in polling:
        server.go_on()
    return measured


def start(
    bench: Bench, stack: ExitStack, peer: Peer, served: Sequence[models.Model], rows: pd.DataFrame
) -> list[Asked]:
    """Return a request with these rows to each model; without one if the peer is not
    wanted, not installed, or cannot be started, with a note of the reason. `mlflow
    models serve` has a server per model.
    """
    if peer.requirements and not bench.wants(peer.name):
        return []
    groups = [[model] for model in served] if peer is MLFLOW else [served]
    try:
        programs = environment(peer.requirements, bench.installs) if peer.requirements else HERE
        servers = [_launched(bench, stack, peer, programs, group, rows) for group in groups]
    except (NotInstalled, NotStarted) as error:
        if not peer.requirements:
            raise
        bench.note(f"{peer.name} was skipped: {error}")
        return []
    if peer.shown:
        bench.note(f"{peer.name}: {versions(programs, *peer.shown)}")
    pairs = zip(servers, groups, strict=True)
    return [ask(peer, server, model, rows) for server, group in pairs for model in group]


def _launched(
    bench: Bench,
    stack: ExitStack,
    peer: Peer,
    programs: Path,
    served: Sequence[models.Model],
    rows: pd.DataFrame,
) -> Server:
    """Start a server of these models, and return it when the last answers."""
    work = bench.work_folder()
    port = free_port()
    if peer is OURS_MODELS:
        variants = {model.name: {"main": {"model": str(model.ours)}} for model in served}
        documents = [{"name": name, "variants": value} for name, value in variants.items()]
        (work / "spec.yaml").write_text(yaml.safe_dump_all(documents))
    if peer is BENTOML_MODELS:
        for model in served:
            (work / f"{model.name}.onnx").symlink_to(model.onnx)
    if peer in (MLSERVER, MLSERVER_MODELS):
        _write_mlserver(work, port, peer, served)
    last = served[-1]
    words = {**vars(last), "bin": programs, "port": port, "work": work, "here": HERE}
    words["python"] = sys.executable
    command = [word.format(**words) for word in peer.command.split()]
    variables = {name: value.format(**words) for name, value in peer.environment.items()}
    question = _question(port, peer.path.format(name=last.name), form(peer, rows, last.name))
    server = running(peer.name, command, port, work / "log", variables, question)
    return stack.enter_context(server)


def _question(port: int, path: str, body: bytes) -> urllib.request.Request:
    headers = {"Content-Type": "application/json"}
    return urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)


def ask(peer: Peer, server: Server, model: models.Model, rows: pd.DataFrame) -> Asked:
    """Return the request with these rows after checking its response; every later
    response must contain the same bytes.
    """
    path = peer.path.format(name=model.name)
    body = form(peer, rows, model.name)
    with urllib.request.urlopen(_question(server.port, path, body), timeout=60) as response:
        answer = response.read()
    document = json.loads(answer)
    found = document["outputs"][0]["data"] if peer.is_v2 else document["predictions"]
    wanted = model.estimator.predict(rows).tolist()
    if np.ravel(found).tolist() != wanted:
        raise AssertionError(f"{server.name} answers {answer[:200]!r}; expected {wanted[:5]}")
    fragment = answer[answer.index(b'"data":') :] if peer.is_v2 else answer
    return Asked(server, Target(server.port, post(path, body), fragment), peer.polls)


def _write_mlserver(work: Path, port: int, peer: Peer, served: Sequence[models.Model]) -> None:
    """Write the settings of MLServer. The tensors are for Triton's perf_analyzer."""
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (work / "settings.json").write_text(json.dumps(settings))
    for model in served:
        document: dict[str, object] = {
            "name": model.name,
            "implementation": "mlserver_sklearn.SKLearnModel",
            "parameters": {"uri": str(model.pickled)},
        }
        if peer is MLSERVER:
            document |= {
                "implementation": "mlserver_onnx.OnnxModel",
                "parameters": {"uri": str(model.onnx)},
                "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 30]}],
                "outputs": [{"name": "predictions", "datatype": "INT64", "shape": [-1]}],
            }
        (work / model.name).mkdir()
        (work / model.name / "model-settings.json").write_text(json.dumps(document))
