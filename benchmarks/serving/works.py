"""The measurements: each work starts its servers, checks their responses, sends
requests in interleaved rounds, and yields rows.
"""

import json
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import models, table
from .environments import NotInstalled, environment, versions
from .load import Measured, Target, closed_loop, post, wrk_loop
from .peers import BENTOML, BENTOML_MODELS, FASTAPI, HERE, MLFLOW, MLSERVER, MOSEC, OURS, Peer
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

    def wants(self, peer: Peer) -> bool:
        return self.peers is None or any(word.lower() in peer.name.lower() for word in self.peers)

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
    model, data, answers = models.small(bench.folder)
    targets = {MLFLOW: 50, FASTAPI: 10, BENTOML: 8, MLSERVER: 8, MOSEC: 2.5}
    expected = [int(answers[0])]
    with ExitStack() as stack:
        ours = started_ours(bench, stack, model, form(OURS, data.head(1)), expected)
        found = {peer: started_peer(bench, stack, peer, model, data, expected) for peer in targets}
        others = {peer: asked for peer, asked in found.items() if asked}
        everyone = [ours, *others.values()]
        measured = {"": rounds_of(bench, everyone, closed_loop)}
        if shutil.which("wrk"):
            measured[" (wrk)"] = rounds_of(bench, everyone, wrk_loop)
        else:
            bench.notes.append("wrk is not installed: only the polling client was used")
    for client, (mine, *theirs) in measured.items():
        for peer, rounds in zip(others, theirs, strict=True):
            yield table.compared(ONE_ROW + client, peer.name, mine, rounds, targets[peer])
    wrong = sum(m.wrong for every in measured.values() for rounds in every for m in rounds)
    bench.notes.append(f"{ONE_ROW}: {wrong} wrong answers of all servers together")


def start_and_memory(bench: Bench) -> Iterator[table.Row]:
    """Measure the time from the command to the first response, and the memory of the
    worker at that time.
    """
    model, data, answers = models.small(bench.folder)
    expected = [int(answers[0])]
    targets = {MLFLOW: (5, 3), BENTOML: (None, None), MLSERVER: (None, None)}
    seconds: dict[Peer, list[float]] = {}
    memory: dict[Peer, list[float]] = {}
    for _ in range(bench.rounds):
        for peer in (OURS, *targets):
            with ExitStack() as stack:
                if peer is OURS:
                    asked = started_ours(
                        bench, stack, model, models.as_split(data.head(1)), expected
                    )
                elif (found := started_peer(bench, stack, peer, model, data, expected)) is not None:
                    asked = found
                else:
                    continue
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
    """Return the memory of the largest process in megabytes; for ours only gunicorn's,
    without agent and supervisor.
    """
    processes = server.processes()
    workers = [process for process in processes if process.name() == "gunicorn"]
    return max(process.memory_full_info().pss for process in workers or processes) / 1e6


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


def started_ours(
    bench: Bench, stack: ExitStack, model: models.Model, body: bytes, expected: list[Any]
) -> Asked:
    return _started(bench, stack, OURS, Path("/"), {"ours": model.ours}, body, expected)


def started_peer(
    bench: Bench,
    stack: ExitStack,
    peer: Peer,
    model: models.Model,
    data: Any,
    expected: list[Any],
) -> Asked | None:
    """Return the started peer; None if it is not installed or cannot be started, with a
    note of the reason.
    """
    if not bench.wants(peer):
        return None
    words = {"mlflow": model.mlflow, "onnx": model.onnx, "pickled": model.pickled}
    try:
        programs = environment(peer.requirements, bench.installs)
        body = form(peer, data.head(1))
        asked = _started(bench, stack, peer, programs, words, body, expected)
        note = f"{peer.name}: {versions(programs, *peer.shown)}"
    except NotInstalled as error:
        asked = None
        note = f"{peer.name}: {error}"
    except NotStarted as error:
        asked = None
        note = f"{peer.name} was skipped: {error}"
    if note not in bench.notes:
        bench.notes.append(note)
    return asked


def _started(
    bench: Bench,
    stack: ExitStack,
    peer: Peer,
    programs: Path,
    words: dict[str, Any],
    body: bytes,
    expected: list[Any],
) -> Asked:
    work = bench.work_folder()
    port = free_port()
    if peer is MLSERVER:
        model = {
            "name": models.SMALL,
            "implementation": "mlserver_onnx.OnnxModel",
            "parameters": {"uri": str(words["onnx"])},
            "inputs": [{"name": "X", "datatype": "FP32", "shape": [-1, 30]}],
            "outputs": [{"name": "predictions", "datatype": "INT64", "shape": [-1]}],
        }
        write_mlserver(work, port, [model])
    server = launched(stack, peer, {**words, "bin": programs, "port": port, "work": work}, body)
    return ask(peer, server, body, expected)


def launched(stack: ExitStack, peer: Peer, words: dict[str, Any], body: bytes) -> Server:
    """Start a peer, and return it when it answers `body`.

    Args:
        words: of the peer's command and variables, with its programs `bin`, its `port`
            and its folder `work`.
    """
    words = {**words, "here": HERE, "python": sys.executable}
    command = [word.format(**words) for word in peer.command.split()]
    variables = {name: value.format(**words) for name, value in peer.environment.items()}
    port = words["port"]
    question = question_of(port, peer.path, body)
    server = running(peer.name, command, port, words["work"] / "log", variables, question)
    return stack.enter_context(server)


def question_of(port: int, path: str, body: bytes) -> urllib.request.Request:
    headers = {"Content-Type": "application/json"}
    return urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)


def ask(peer: Peer, server: Server, body: bytes, expected: list[Any]) -> Asked:
    """Return the request with this body after checking its response; every later
    response must contain the same bytes.
    """
    with urllib.request.urlopen(question_of(server.port, peer.path, body), timeout=60) as response:
        answer = response.read()
    document = json.loads(answer)
    values = document["outputs"][0]["data"] if peer.is_v2 else document["predictions"]
    found = np.asarray(values, dtype=np.float64).ravel()
    wanted = np.asarray(expected, dtype=np.float64).ravel()
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise AssertionError(f"{server.name} answers {answer[:200]!r}; expected {wanted[:5]}")
    fragment = answer[answer.index(b'"data":') :] if peer.is_v2 else answer
    return Asked(server, Target(server.port, post(peer.path, body), fragment), peer.polls)


def write_mlserver(work: Path, port: int, settings: Iterable[dict[str, Any]]) -> None:
    """Write the folder of MLServer with the settings of its models."""
    server = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": 0,
        "debug": False,
    }
    (work / "settings.json").write_text(json.dumps(server))
    for model in settings:
        folder = work / model["name"]
        folder.mkdir()
        (folder / "model-settings.json").write_text(json.dumps(model))
